"""Passages taken as not relevant to a query. Named by the files in conf/negatives; called by `shapes`.

No known positive is ever a negative, nor a passage with a positive's text. Passages that were judged not relevant
(grade 0) come first.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from embexp.cache import digest, json_kept
from embexp.data.retrieval_set import RetrievalSet
from embexp.encoding.encoder import Encoder
from embexp.errors import UserError
from embexp.evaluation.ranking import Ranking
from embexp.evaluation.search import BM25, Dense
from embexp.rows.teachers import Cosines, CrossEncoderScores, Judge, Keywords

QUERIES_AT_ONCE = 5000  # whose candidates are judged in one call
LOOKED_AT = 1000  # queries whose negatives get a second look


@dataclass(frozen=True, eq=False)
class Drawn(Mapping[str, list[str]]):
    """Query id -> negative passage ids, and how they were found.

    filled_at_random: how many of them, where the search left too few.
    """

    by_query: Mapping[str, list[str]]
    found_by: Literal["random", "bm25", "model", "both"]
    filled_at_random: int = 0

    def __getitem__(self, query: str) -> list[str]:
        return self.by_query[query]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_query)

    def __len__(self) -> int:
        return len(self.by_query)


# conf/negatives/random.yaml: what a config says that asks for no negatives in particular
DEFAULT = {"_target_": "embexp.rows.negatives.draw_random", "_partial_": True, "per_query": 1}
# needs (retrieval_set, seed=..., encoder=the base model's)
Negatives = Callable[..., Drawn]


def draw_random(retrieval_set: RetrievalSet, *, per_query: int, seed: int, encoder: Encoder | None = None) -> Drawn:
    """Draw `per_query` passages for each query: those judged not relevant first, then at random from the corpus.

    Raises UserError when a query leaves fewer passages than asked.
    """
    del encoder
    by_query, _ = _filled(retrieval_set, {}, _known(retrieval_set), per_query=per_query, seed=seed)
    return Drawn(by_query, "random")  # none of them fills a gap


def draw_bm25(
    retrieval_set: RetrievalSet, *, per_query: int, rank_range: list[int], seed: int, encoder: Encoder | None = None
) -> Drawn:
    """The passages that BM25 ranks first to last of `rank_range`, counted without known positives, best first.

    Judged ones come first; where BM25 finds too few the rest is drawn at random. Raises UserError as `draw_random`.
    """
    del encoder
    first, last = _ranks(rank_range)
    parts: dict[str, Any] = {"by": "bm25", "per_query": per_query, "ranks": [first, last], "seed": seed}

    def make() -> list[Any]:
        known = _known(retrieval_set)
        ranking = BM25().search(retrieval_set, top=last, without=known)
        candidates = _passages(ranking, _from(ranking, first))
        return list(_filled(retrieval_set, candidates, known, per_query=per_query, seed=seed))

    by_query, filled = json_kept("negatives", parts | _content(retrieval_set), make)
    return Drawn(by_query, "bm25", filled)


def draw_hard(
    retrieval_set: RetrievalSet,
    *,
    per_query: int,
    rank_range: list[int],
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    rescorer: str | None = None,
    seed: int,
    encoder: Encoder,
) -> Drawn:
    """The model's nearest passages that are not known positives and score well below the query's positive.

    After NV-Retriever (arXiv 2407.15831): a candidate must score at most the positive's score minus `absolute_margin`,
    and at most (1 - `relative_margin`) of it; null switches a margin off. Of several positives the lowest-scored
    counts: an unlabelled answer may be as good as the worst known one. rescorer: a cross-encoder whose scores decide
    instead. Ranks as in `draw_bm25`; candidates keep the model's order.
    """
    first, last = _ranks(rank_range)
    for name, margin in (("absolute_margin", absolute_margin), ("relative_margin", relative_margin)):
        if margin is not None and not 0 <= margin <= 1:
            raise UserError(f"negatives.{name}={margin}; it must be from 0 to 1, or null for none")

    rescoring = CrossEncoderScores(rescorer, setting="negatives.rescorer") if rescorer else None
    limited = absolute_margin is not None or relative_margin is not None

    def limit(positive: np.ndarray) -> np.ndarray:
        return positive - np.maximum(absolute_margin or 0.0, (relative_margin or 0.0) * np.abs(positive))

    def make() -> list[Any]:
        known = _known(retrieval_set)
        ranking = Dense(encoder).search(retrieval_set, top=last, without=known)
        fit = _from(ranking, first)
        if limited and rescoring is None:
            lowest = ranking.lowest.astype(np.float64)
            limits = np.where(np.isfinite(lowest), limit(np.where(np.isfinite(lowest), lowest, 0)), np.inf)
            fit &= ranking.scores <= limits.astype(np.float32)[:, None]
        candidates = _passages(ranking, fit)
        for query, positive, scores in _judged(retrieval_set, candidates, rescoring) if limited and rescoring else ():
            kept = zip(candidates[query], scores <= float(limit(np.asarray(positive))), strict=True)
            candidates[query] = [passage for passage, fits in kept if fits]
        return list(_filled(retrieval_set, candidates, known, per_query=per_query, seed=seed))

    if encoder.identity is None:  # of a model in training: nothing to know it by
        by_query, filled = make()
        return Drawn(by_query, "model", filled)
    parts = {"by": encoder.identity, "per_query": per_query, "ranks": [first, last], "seed": seed}
    parts |= {"margins": [absolute_margin, relative_margin], "rescorer": rescoring.identity if rescoring else None}
    by_query, filled = json_kept("negatives", parts | _content(retrieval_set), make)
    return Drawn(by_query, "model", filled)


def draw_both(
    retrieval_set: RetrievalSet, *, per_query: int, rank_range: list[int], seed: int, encoder: Encoder
) -> Drawn:
    """In turn from BM25's and from the model's passages of `rank_range`, each drawn at random, as GPL does.

    After Generative Pseudo Labeling (arXiv 2112.07577): nothing is kept away by a margin, since a teacher says how
    relevant each is. Ranks, judged passages and errors as in `draw_bm25`.
    """
    first, last = _ranks(rank_range)
    known, rng = _known(retrieval_set), random.Random(seed)
    candidates: dict[str, list[str]] = {query: [] for query in retrieval_set.queries}
    rankings = [arm.search(retrieval_set, top=last, without=known) for arm in (BM25(), Dense(encoder))]
    found = [_passages(ranking, _from(ranking, first)) for ranking in rankings]
    for query, chosen in candidates.items():
        drawn = [rng.sample(passages, len(passages)) for by in found if (passages := by[query])]
        chosen += [passage for pair in itertools.zip_longest(*drawn) for passage in pair if passage is not None]
    by_query, filled = _filled(retrieval_set, candidates, known, per_query=per_query, seed=seed)
    return Drawn(by_query, "both", filled)


def second_look(drawn: Drawn, retrieval_set: RetrievalSet, *, encoder: Encoder, seed: int) -> dict[str, Any]:
    """How many were drawn, and the share that another judge finds at least as good as the query's positive.

    The judge had no say in the draw: BM25 for what the model (and a rescorer) found, the model for the rest; what both
    found has none. Pairs judged in the data are not looked at; of many queries a sample is.
    """
    counted = {"found_by": drawn.found_by, "drawn": sum(map(len, drawn.values()))}
    counted |= {"filled_at_random": drawn.filled_at_random}
    if drawn.found_by == "both":
        return counted | {"second_look": None, "looked_at": 0, "doubtful": None}
    asked = sorted(random.Random(seed).sample(sorted(drawn), min(LOOKED_AT, len(drawn))))
    unjudged = {query: [p for p in drawn[query] if p not in retrieval_set.qrels[query]] for query in asked}
    name = "bm25" if drawn.found_by == "model" else "model"

    def make() -> list[int]:
        judge: Judge = Keywords(retrieval_set) if name == "bm25" else Cosines(encoder)
        doubtful = looked_at = 0
        for _, positive, scores in _judged(retrieval_set, unjudged, judge):
            doubtful += int((scores >= positive).sum())
            looked_at += len(scores)
        return [doubtful, looked_at]

    by = name if name == "bm25" else encoder.identity
    parts = {"by": by, "drawn": unjudged, "data": retrieval_set.digest}
    # a model in training has no identity: nothing to know its opinion by
    doubtful, looked_at = make() if by is None else json_kept("second_look", parts, make)
    share = doubtful / looked_at if looked_at else None
    return counted | {"second_look": name, "looked_at": looked_at, "doubtful": share}


def _ranks(rank_range: Sequence[int]) -> tuple[int, int]:
    if len(rank_range) != 2 or not 1 <= rank_range[0] <= rank_range[1]:
        raise UserError(f"negatives.rank_range={list(rank_range)}; it must be [first, last] with 1 <= first <= last")
    return rank_range[0], rank_range[1]


def _content(retrieval_set: RetrievalSet) -> dict[str, str]:
    texts = [list(retrieval_set.queries.items()), list(retrieval_set.corpus.items())]  # draws depend on the order too
    return {"texts": digest(texts), "qrels": digest(retrieval_set.qrels)}


def _known(retrieval_set: RetrievalSet) -> dict[str, set[str]]:
    """For each query the passages that are never its negatives: the relevant ones and copies of their text."""
    copies: dict[str, list[str]] = defaultdict(list)
    for passage, text in retrieval_set.corpus.items():
        copies[text.strip()].append(passage)
    known = {}
    for query in retrieval_set.queries:
        relevant = [passage for passage in retrieval_set.relevant(query) if passage in retrieval_set.corpus]
        known[query] = {copy for passage in relevant for copy in copies[retrieval_set.corpus[passage].strip()]}
    return known


def _from(ranking: Ranking, first: int) -> np.ndarray:
    """(queries, top): where a passage stands that ranks at `first` or later."""
    fit = ranking.places >= 0
    fit[:, : first - 1] = False
    return fit


def _passages(ranking: Ranking, chosen: np.ndarray) -> dict[str, list[str]]:
    """Query id -> the passages where `chosen`, (queries, top), is true, in their order."""
    ids = ranking.passage_ids
    rows = zip(ranking.query_ids, ranking.places, chosen, strict=True)
    return {query: [ids[place] for place in places[fits].tolist()] for query, places, fits in rows}


def _judged(
    retrieval_set: RetrievalSet, candidates: Mapping[str, Sequence[str]], judge: Judge
) -> Iterator[tuple[str, float, np.ndarray]]:
    """Each query with the score of its lowest-scored positive and those of its candidates."""
    queries = [query for query in candidates if any(p in retrieval_set.corpus for p in retrieval_set.relevant(query))]
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        block = queries[start : start + QUERIES_AT_ONCE]
        relevant = {query: [p for p in retrieval_set.relevant(query) if p in retrieval_set.corpus] for query in block}
        pairs = [(query, passage) for query in block for passage in (*relevant[query], *candidates[query])]
        texts = [retrieval_set.queries[query] for query, _ in pairs], [retrieval_set.corpus[p] for _, p in pairs]
        scores, place = judge(*texts), 0
        for query in block:
            split, end = place + len(relevant[query]), place + len(relevant[query]) + len(candidates[query])
            yield query, float(scores[place:split].min()), scores[split:end]
            place = end


def _filled(
    retrieval_set: RetrievalSet,
    candidates: Mapping[str, Sequence[str]],
    known: Mapping[str, set[str]],
    *,
    per_query: int,
    seed: int,
) -> tuple[dict[str, list[str]], int]:
    """Judged passages, then candidates in their order, then random ones, `per_query` each; and how many are random."""
    if per_query < 1:
        raise UserError(f"negatives.per_query={per_query}; it must be at least 1")
    rng = random.Random(seed)
    corpus = list(retrieval_set.corpus)
    drawn, filled = {}, 0
    for query in retrieval_set.queries:
        grades = retrieval_set.qrels[query]
        judged = sorted(passage for passage, grade in grades.items() if grade <= 0 and passage in retrieval_set.corpus)
        if len(corpus) - len(known[query]) < per_query:
            raise UserError(
                f"negatives: query {query} has fewer than {per_query} passages that are not relevant, among "
                f"{len(corpus)}; lower negatives.per_query or choose a loss that reads pairs (loss=mnrl)"
            )
        chosen = dict.fromkeys([*(p for p in judged if p not in known[query]), *candidates.get(query, ())])
        chosen = dict.fromkeys(list(chosen)[:per_query])
        filled += per_query - len(chosen)
        while len(chosen) < per_query:  # by rejection: relevant passages are few
            passage = rng.choice(corpus)
            if passage not in grades and passage not in known[query]:
                chosen[passage] = None
            elif len(corpus) <= len(grades) + len(known[query]) + per_query:
                chosen.update(dict.fromkeys(p for p in corpus if p not in known[query]))
        drawn[query] = list(chosen)[:per_query]
    return drawn, filled
