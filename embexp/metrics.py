"""Retrieval measures of one ranking, as trec_eval and sentence-transformers define them. Called by `evaluators`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

FEWEST_DOCUMENTS = 20  # for a verdict; at twenty the worst simulated world gets 75 % coverage (docs/trust.md)
Grades = Mapping[str, int]  # passage id -> grade of one query; > 0 is relevant


def recall(ranked: Sequence[str], grades: Grades, k: int) -> float:
    """Relevant passages in the top k / all relevant passages."""
    return _hits(ranked, grades, k) / _relevant(grades)


def precision(ranked: Sequence[str], grades: Grades, k: int) -> float:
    """Relevant passages in the top k / k."""
    return _hits(ranked, grades, k) / k


def accuracy(ranked: Sequence[str], grades: Grades, k: int) -> float:
    """1 if a relevant passage is in the top k, else 0 (hit rate, success)."""
    return float(_hits(ranked, grades, k) > 0)


def mrr(ranked: Sequence[str], grades: Grades, k: int) -> float:
    """1 / rank of the first relevant passage, 0 when it is below k."""
    return next((1 / rank for rank, passage in enumerate(ranked[:k], start=1) if grades.get(passage, 0) > 0), 0.0)


def average_precision(ranked: Sequence[str], grades: Grades, k: int) -> float:
    """Mean of the precision at each relevant passage in the top k, over all relevant passages (trec_eval's map_cut)."""
    found, total = 0, 0.0
    for rank, passage in enumerate(ranked[:k], start=1):
        if grades.get(passage, 0) > 0:
            found += 1
            total += found / rank
    return total / _relevant(grades)


def ndcg(ranked: Sequence[str], grades: Grades, k: int) -> float:
    """Discounted cumulative gain with the grade as gain, over the best possible (trec_eval's ndcg_cut)."""
    gains = [max(0, grades.get(passage, 0)) for passage in ranked[:k]]
    best = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:k]
    return _discounted(gains) / _discounted(best)


MEASURES: dict[str, Callable[[Sequence[str], Grades, int], float]] = {
    "recall": recall,
    "precision": precision,
    "accuracy": accuracy,
    "mrr": mrr,
    "map": average_precision,
    "ndcg": ndcg,
}


def _hits(ranked: Sequence[str], grades: Grades, k: int) -> int:
    return sum(grades.get(passage, 0) > 0 for passage in ranked[:k])


def _relevant(grades: Grades) -> int:
    return sum(grade > 0 for grade in grades.values())


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))
