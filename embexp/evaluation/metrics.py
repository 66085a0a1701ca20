"""Retrieval measures, as trec_eval and sentence-transformers define them. Called by `evaluators`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FEWEST_DOCUMENTS = 20  # for a verdict; at twenty the worst simulated world gets 75 % coverage (docs/trust.md)


@dataclass(frozen=True)
class Graded:
    """What queries found and what there was to find. A passage that is not relevant has grade 0.

    | field    | holds                                                                            |
    |----------|----------------------------------------------------------------------------------|
    | found    | (queries, ranks): the grade of the passage at each rank                          |
    | best     | (queries, ranks): the same for the best possible ranking                         |
    | relevant | (queries,): how many passages are relevant, whether found, in the corpus or not  |
    """

    found: np.ndarray
    best: np.ndarray
    relevant: np.ndarray


def recall(graded: Graded, k: int) -> np.ndarray:
    """Relevant passages in the top k / all relevant passages."""
    return _hits(graded, k) / graded.relevant


def precision(graded: Graded, k: int) -> np.ndarray:
    """Relevant passages in the top k / k."""
    return _hits(graded, k) / k


def accuracy(graded: Graded, k: int) -> np.ndarray:
    """1 if a relevant passage is in the top k, else 0 (hit rate, success)."""
    return (_hits(graded, k) > 0).astype(float)


def mrr(graded: Graded, k: int) -> np.ndarray:
    """1 / rank of the first relevant passage, 0 when it is below k."""
    hit = graded.found[:, :k] > 0
    return np.where(hit.any(axis=1), 1 / (1 + hit.argmax(axis=1)), 0.0)


def average_precision(graded: Graded, k: int) -> np.ndarray:
    """Mean of the precision at each relevant passage in the top k, over all relevant passages (trec_eval's map_cut)."""
    hit = graded.found[:, :k] > 0
    precisions = hit.cumsum(axis=1) / _ranks(hit)
    return _summed(np.where(hit, precisions, 0.0)) / graded.relevant


def ndcg(graded: Graded, k: int) -> np.ndarray:
    """Discounted cumulative gain with the grade as gain, over the best possible (trec_eval's ndcg_cut)."""
    return _discounted(graded.found[:, :k]) / _discounted(graded.best[:, :k])


# a score per query, (queries,) float64
MEASURES: dict[str, Callable[[Graded, int], np.ndarray]] = {
    "recall": recall,
    "precision": precision,
    "accuracy": accuracy,
    "mrr": mrr,
    "map": average_precision,
    "ndcg": ndcg,
}


def _hits(graded: Graded, k: int) -> np.ndarray:
    return (graded.found[:, :k] > 0).sum(axis=1)


def _discounted(gains: np.ndarray) -> np.ndarray:
    return _summed(gains / np.log2(_ranks(gains) + 1))


def _ranks(columns: np.ndarray) -> np.ndarray:
    return np.arange(1, columns.shape[1] + 1)


def _summed(columns: np.ndarray) -> np.ndarray:
    """From the first rank down, which .sum() doesn't promise: the same bits however many queries there are."""
    return columns.cumsum(axis=1)[:, -1]
