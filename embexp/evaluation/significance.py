"""Is the difference between two models real? Paired bootstrap over documents. Called by `evaluators`, `result`.

Questions on one document are not independent, so whole documents are drawn (a cluster bootstrap; Cameron, Gelbach and
Miller, 2008), always the same for both models, which pairs them. Percentiles of few documents, or of many of which few
changed, are too narrow; they are widened to a t interval's (Hesterberg, 2015, What teachers should know about the
bootstrap), as far as the draws reach. benchmarks/trust.py measures what that gives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from embexp.errors import UserError
from embexp.evaluation.metrics import FEWEST_DOCUMENTS

Verdict = Literal["better", "worse", "no difference"]
DRAWS_OF_MEANS = 10_000
DRAWS_OF_STATISTICS = 300  # statistics that are no means (a correlation, say) are computed anew for every draw


@dataclass(frozen=True)
class Scores:
    """One metric over items (queries, or rows of a pair evaluator).

    query_ids: the query of each item. values: the metric per item when it is their mean, else None, and then
    `statistic` computes it from the positions of the items to use.
    """

    query_ids: Sequence[str]
    values: np.ndarray | None = None
    statistic: Callable[[np.ndarray], float] | None = None

    def __post_init__(self) -> None:
        assert (self.values is None) != (self.statistic is None), "a metric is a mean of values or a statistic"

    @property
    def score(self) -> float:
        """The metric over all items."""
        return self.over(np.arange(len(self.query_ids)))

    def over(self, items: np.ndarray) -> float:
        """The metric over the items at these positions, which may repeat."""
        if self.values is not None:
            return float(self.values[items].mean())
        assert self.statistic is not None
        return self.statistic(items)

    def of_queries(self, query_ids: Collection[str]) -> Scores:
        """The same metric over the items of these queries only."""
        kept = np.flatnonzero([query in query_ids for query in self.query_ids])
        names = [self.query_ids[item] for item in kept.tolist()]
        if self.values is not None:
            return Scores(names, values=self.values[kept])
        return Scores(names, statistic=lambda items: self.over(kept[items]))


@dataclass(frozen=True)
class Delta:
    """Tuned minus base on the same queries; the interval holds 95 %. wins, ties and losses count queries (null for
    metrics that have no value per query)."""

    absolute: float
    relative: float | None
    ci_low: float
    ci_high: float
    p_value: float
    wins: int | None
    ties: int | None
    losses: int | None
    queries: int
    documents: int

    @property
    def verdict(self) -> Verdict:
        """`better` or `worse` when interval and p-value both exclude zero, on enough documents to be trusted.

        They differ where few documents carry the change: no draw lies far enough out to end the widened interval.
        """
        if self.documents < FEWEST_DOCUMENTS or self.p_value >= 0.05:
            return "no difference"
        if self.ci_low > 0:
            return "better"
        return "worse" if self.ci_high < 0 else "no difference"


def compare(
    base: Mapping[str, Scores], tuned: Mapping[str, Scores], *, document_of: Mapping[str, str], seed: int = 0
) -> dict[str, Delta]:
    """The delta of two models for every metric, on the same items.

    document_of: query id -> document, the unit that is drawn. The interval is the bootstrap's percentiles, widened for
    few documents, at most to the outermost draw; the p-value is two-sided, from the share of draws on the far side of
    zero, widened alike. It is below 0.05 where the interval excludes zero, unless that ends at the outermost draw.
    """
    deltas = {}
    for items, metrics in _by_items(base).items():
        assert all(tuple(tuned[metric].query_ids) == items for metric in metrics), (
            "base and tuned differ in their items"
        )
        _, cluster_of = np.unique([document_of[query] for query in items], return_inverse=True)
        means = [metric for metric in metrics if base[metric].values is not None]
        differences = [tuned[metric].values - base[metric].values for metric in means]  # type: ignore[operator]
        draws = dict(zip(means, _draws_of_means(differences, cluster_of, np.random.default_rng(seed)), strict=True))
        for metric in metrics:
            if metric not in draws:
                rng = np.random.default_rng(seed)
                draws[metric] = _draws_of_statistic(base[metric], tuned[metric], cluster_of, rng)
            deltas[metric] = _delta(base[metric], tuned[metric], draws[metric], cluster_of)
    return {metric: deltas[metric] for metric in base}


def _by_items(scores: Mapping[str, Scores]) -> dict[tuple[str, ...], list[str]]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for metric, each in scores.items():
        groups.setdefault(tuple(each.query_ids), []).append(metric)
    return groups


def _delta(base: Scores, tuned: Scores, draws: np.ndarray, cluster_of: np.ndarray) -> Delta:
    from scipy import special  # slow to import; needed only where two models are compared

    before, after = base.score, tuned.score
    if not np.isfinite([before, after]).all():
        raise UserError(f"a metric is {before} for the base and {after} for the tuned model; it can't be compared")
    draws = draws[np.isfinite(draws)]  # a draw may leave a correlation undefined
    documents = int(cluster_of.max()) + 1
    effective = float(documents)
    wins = ties = losses = None
    if base.values is not None and tuned.values is not None:
        difference = tuned.values - base.values
        effective = _effective_documents(difference, cluster_of)
        wins, losses = int((difference > 1e-12).sum()), int((difference < -1e-12).sum())
        ties = len(difference) - wins - losses
    # the share of draws to cut off at each end so that it ends where a t interval would, not a normal one
    wider = np.sqrt(effective / (effective - 1)) if effective > 1 else np.inf
    tail = float(special.ndtr(wider * special.stdtrit(max(effective - 1, 1e-9), 0.025)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    far = np.clip(min((draws <= 0).mean(), (draws >= 0).mean()), 0.5 / len(draws), 0.5)
    p_value = 2 * special.stdtr(max(effective - 1, 1e-9), special.ndtri(far) / wider)
    return Delta(
        absolute=after - before,
        relative=(after - before) / before if before else None,
        ci_low=float(low),
        ci_high=float(high),
        p_value=float(p_value),
        wins=wins,
        ties=ties,
        losses=losses,
        queries=len(set(base.query_ids)),
        documents=documents,
    )


def _effective_documents(difference: np.ndarray, cluster_of: np.ndarray) -> float:
    """How many documents the interval's width really rests on, from 2 up to all of them.

    The variance is a sum over documents; where a few of them carry most of it, it is as uncertain as one from few
    documents. Its degrees of freedom by Satterthwaite are 2 (sum u^2)^2 / sum u^4 where most u are near zero.
    """
    documents = int(cluster_of.max()) + 1
    influence = np.bincount(cluster_of, weights=difference - difference.mean())
    if not influence.any():
        return documents
    return float(np.clip(2 * (influence**2).sum() ** 2 / (influence**4).sum(), min(2, documents), documents))


def _draws_of_means(
    differences: Sequence[np.ndarray], cluster_of: np.ndarray, rng: np.random.Generator
) -> Sequence[np.ndarray]:
    """One array of draws per metric; all metrics see the same drawn documents."""
    if not differences:
        return []
    clusters = int(cluster_of.max()) + 1
    sizes = np.bincount(cluster_of)
    sums = np.stack([np.bincount(cluster_of, weights=difference) for difference in differences], axis=1)
    blocks = []
    for _ in range(DRAWS_OF_MEANS // 100):  # in pieces, so that memory stays flat
        drawn = rng.integers(clusters, size=(100, clusters)) + np.arange(100)[:, None] * clusters
        # counted in one pass: four times as fast as rng.multinomial
        times = np.bincount(drawn.ravel(), minlength=100 * clusters).reshape(100, clusters).astype(np.float64)
        blocks.append((times @ sums) / (times @ sizes)[:, None])
    return list(np.concatenate(blocks).T)


def _draws_of_statistic(base: Scores, tuned: Scores, cluster_of: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    clusters = int(cluster_of.max()) + 1
    members = [np.flatnonzero(cluster_of == cluster) for cluster in range(clusters)]
    draws = []
    for _ in range(DRAWS_OF_STATISTICS):
        items = np.concatenate([members[cluster] for cluster in rng.integers(clusters, size=clusters)])
        draws.append(tuned.over(items) - base.over(items))
    return np.asarray(draws)


def interval_of_mean(values: np.ndarray, cluster_of: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of one mean over items of which those of a cluster are not independent, by a t interval with
    cluster-robust variance (Cameron and Miller, 2015). It says how far a score would move with other documents, and
    nothing of whether two models differ. Infinite with a single cluster."""
    variance, clusters = _variance_of_mean(values, cluster_of)
    if clusters < 2:
        return -np.inf, np.inf
    from scipy import special

    half = float(-special.stdtrit(clusters - 1, 0.025) * np.sqrt(variance))
    return float(values.mean() - half), float(values.mean() + half)


@dataclass(frozen=True)
class Difference:
    """The mean of one group of items minus that of another; the interval holds 95 %."""

    value: float
    ci_low: float
    ci_high: float


def difference_of_means(
    values: np.ndarray, cluster_of: np.ndarray, others: np.ndarray, cluster_of_others: np.ndarray
) -> Difference:
    """Of two groups that share no cluster: Welch's t interval over clusters (Welch, 1947), the variances cluster-robust
    as in `interval_of_mean`. Infinite where either has a single cluster."""
    value = float(values.mean() - others.mean())
    parts = [_variance_of_mean(values, cluster_of), _variance_of_mean(others, cluster_of_others)]
    total = sum(variance for variance, _ in parts)
    if not np.isfinite(total):
        return Difference(value, -np.inf, np.inf)
    if total == 0:
        return Difference(value, value, value)
    freedom = total**2 / sum(variance**2 / (clusters - 1) for variance, clusters in parts)
    from scipy import special

    half = float(-special.stdtrit(freedom, 0.025) * np.sqrt(total))
    return Difference(value, value - half, value + half)


def _variance_of_mean(values: np.ndarray, cluster_of: np.ndarray) -> tuple[float, int]:
    """With the number of clusters."""
    sums = np.bincount(cluster_of, weights=values - values.mean())
    clusters = len(sums)
    if clusters < 2:
        return np.inf, clusters
    return float((sums**2).sum() * clusters / (clusters - 1)) / len(values) ** 2, clusters
