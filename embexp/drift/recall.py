"""Does the tuned model answer questions on what is new as well as on what it knew? Called by `drifting`.

The same miner makes questions of new passages and of known ones (see `shift.sides_of`), and all are searched in the
same corpus: the run's own test has other questions and another corpus, so its recall is not comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from embexp.data.retrieval_set import RetrievalSet
from embexp.data.splits import unified
from embexp.drift.shift import Sides, drawn
from embexp.drift.today import Today
from embexp.encoding.encoder import Encoder
from embexp.evaluation.evaluators import graded
from embexp.evaluation.metrics import recall
from embexp.evaluation.search import Dense
from embexp.evaluation.significance import Difference, difference_of_means
from embexp.mine import written
from embexp.mine.funnel import Funnel
from embexp.mine.passages import Miner, Passage, Question, Wanted

SIDES = ("new", "known")


@dataclass(frozen=True)
class Recalled:
    """recall@k of each side, new minus known with its interval over documents, and what it was measured on.

    enough: whether there were questions on enough documents of each side to judge by.
    """

    at: int
    new: float
    known: float
    difference: Difference
    questions: Mapping[str, int]
    documents: Mapping[str, int]
    corpus: int
    alike: bool
    enough: bool


def measured(
    today: Today, sides: Sides, encoder: Encoder, *, miner: Miner, funnel: Funnel, settings: Mapping[str, Any],
    seed: int,
) -> Recalled | None:  # fmt: skip
    """Mine, search and compare; None where there are questions on fewer than two documents of a side."""
    asked_of = {
        side: {
            # of a document that has changed passages from anywhere are asked about, and so of the known ones too
            name: drawn(groups[name], most=settings["passages"], seed=seed)
            for name in drawn(list(groups), most=settings["documents"], seed=seed)
        }
        for side, groups in (("new", sides.new), ("known", sides.known))
    }
    side_of = {key: side for side, groups in asked_of.items() for keys in groups.values() for key in keys}
    passages = _corpus(today, [name for groups in asked_of.values() for name in groups], settings["corpus"], seed)
    wanted = [Wanted(passages[key], ("question",)) for key in side_of]
    place = {key: number for number, key in enumerate(side_of)}
    mined = sorted(miner.mine(wanted), key=lambda each: place[each.passage.id])
    # as questions of test: without a round trip, which would leave only what a search finds
    sifted = replace(funnel, round_trip=None).sift(mined, passages, judge=None, held_out=frozenset(passages))
    data = _as_set(sifted.kept, passages, today)
    if not data.queries:
        return None
    asked = {query.id: side_of[query.passage] for query in sifted.kept if query.id in data.queries}
    ids = {side: [query for query in data.queries if asked[query] == side] for side in SIDES}
    documents = {side: np.array([data.document_of(query) for query in ids[side]]) for side in SIDES}
    counts = {side: len(set(documents[side])) for side in SIDES}
    if min(counts.values()) < 2:
        return None
    ranking = Dense(encoder).search(data, top=settings["at"])
    found = {
        side: recall(graded(ranking, data.qrels, ids[side], ranks=settings["at"]), settings["at"]) for side in SIDES
    }
    places = {side: np.unique(documents[side], return_inverse=True)[1] for side in SIDES}
    return Recalled(
        settings["at"], float(found["new"].mean()), float(found["known"].mean()),
        difference_of_means(found["new"], places["new"], found["known"], places["known"]),
        {side: len(ids[side]) for side in SIDES}, counts, len(data.corpus), sides.alike,
        min(counts.values()) >= settings["least_documents"],
    )  # fmt: skip


def _corpus(today: Today, documents: Sequence[str], most: int, seed: int) -> dict[str, Passage]:
    """The whole of these documents, and random other passages up to so many, in today's order."""
    kept = {key for name in documents for key in today.by_document[name]}
    others = [key for key in today.passages if key not in kept]
    kept.update(drawn(others, most=max(0, most - len(kept)), seed=seed))
    return {key: passage for key, passage in today.passages.items() if key in kept}


def _as_set(questions: Sequence[Question], passages: Mapping[str, Passage], today: Today) -> RetrievalSet:
    """The questions over the corpus without the words of pseudo-queries, as mining writes them."""
    queries = written.queries_of(
        {"test": questions}, passages, easy=frozenset(), further={}, side_of=dict.fromkeys(passages, "test")
    )
    texts = {key: passage.whole for key, passage in passages.items()} | written.cloze_texts(queries, passages)
    qrels = {key: query.answers for key, query in queries.items()}
    units = {key: today.units[key] for key in passages}
    return unified(RetrievalSet({key: query.text for key, query in queries.items()}, texts, qrels, units))
