"""The current and the new model on today's test set, as a whole, on old documents and on new ones. Called by
`retraining`; what follows from it is `decision`'s."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from embexp.config.components import build
from embexp.data.copies import near_duplicates
from embexp.data.manifest import Manifest
from embexp.data.retrieval_set import Splits
from embexp.drift.differences import Differences
from embexp.evaluation.evaluators import evaluate
from embexp.evaluation.search import Dense
from embexp.evaluation.significance import Scores, compare
from embexp.experiment import EVALUATION_NEGATIVES
from embexp.results.finished import Finished

log = logging.getLogger(__name__)


def compared(
    current: Finished, new: Finished, splits: Splits, fair: Collection[str], differences: Differences
) -> dict[str, Any]:
    """Both models on the same questions in the same corpus, by the new run's primary metric.

    splits: the new run's. fair: the test questions that neither model was trained on (`fair_of`).

    | key    | holds                                                                                          |
    |--------|------------------------------------------------------------------------------------------------|
    | metric | its name                                                                                       |
    | parts  | all, old, new and the slices of test -> current, new, queries, documents, delta, verdict; null |
    |        | where a part has no question. old: on documents as they were; new: on added or changed ones    |
    | unfair | how many questions are left out, being none of those                                           |

    delta: new minus current, with its interval over documents.
    """
    metric = new.result["metric"]
    evaluators = [build(node, allowed=new.config["allowed_packages"]) for node in new.config["evaluator"].values()]
    log.info("scoring the current and the new model on today's test ...")
    current_scores, new_scores = (
        evaluate(evaluators, Dense(run.tuned()[1]), splits.test, **EVALUATION_NEGATIVES).scores[metric]
        for run in (current, new)
    )
    fresh = {*differences.new_documents, *differences.changed_documents}
    fair = set(fair)
    on_new = {query for query in fair if not fresh.isdisjoint(splits.test.documents_of(query))}
    parts: dict[str, Collection[str]] = {"all": fair, "old": fair - on_new, "new": on_new}
    parts |= {name: fair & set(queries) for name, queries in splits.slices.items() if name != "paraphrase"}
    document_of = {query: splits.test.document_of(query) for query in splits.test.queries}
    measured = {name: part_of(current_scores, new_scores, queries, document_of) for name, queries in parts.items()}
    return {"metric": metric, "parts": measured, "unfair": len(splits.judged) - len(fair)}


def fair_of(splits: Splits, known: Manifest, learnt: Mapping[str, str], *, near_duplicate: float) -> set[str]:
    """Test questions that neither model was trained on, and that are near none of them.

    A mined data set keeps each document on its side; any other is cut anew, so that the current model may have learnt
    what is tested now, also under another name of its document. learnt: id -> text of questions that models before the
    new one were trained on. Which of its own are near test, a run refuses to start on.
    """
    asked = {query: splits.test.queries[query] for query in splits.judged}
    if known.mining is None:
        passages: dict[str, list[str]] = defaultdict(list)
        for key, document in splits.test.documents.items():
            passages[document].append(key)
        trained = {document for document, keys in passages.items() if known.was_trained(document, keys)}
        asked = {query: text for query, text in asked.items() if trained.isdisjoint(splits.test.documents_of(query))}
    return asked.keys() - {query for query, _ in near_duplicates(asked, learnt, threshold=near_duplicate)}


def part_of(
    current: Scores, new: Scores, queries: Collection[str], document_of: Mapping[str, str]
) -> dict[str, Any] | None:
    """What `compared` holds of a part of the questions."""
    kept = set(queries)
    before, after = current.of_queries(kept), new.of_queries(kept)
    if not before.query_ids:
        return None
    delta = compare({"": before}, {"": after}, document_of=document_of)[""]
    return {
        "current": before.score, "new": after.score, "queries": delta.queries, "documents": delta.documents,
        "delta": asdict(delta), "verdict": delta.verdict,
    }  # fmt: skip
