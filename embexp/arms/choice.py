"""Compares all arms of a run on test and names the cheapest that is not worse than the best. Called by `arms.measured`.

Dev says which arm is the best; test, with paired intervals over documents, which others are as good. Knows scores and
costs alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from embexp.evaluation.metrics import FEWEST_DOCUMENTS
from embexp.evaluation.significance import Delta, Scores, compare

SLOWER, SLOWER_MS = 1.5, 1.0  # a question that takes this many times as long and this much more is as fast
LARGER = 1.1  # an index that is this many times as large is as small

ByArm = Mapping[str, Mapping[str, Scores]]  # arm -> metric -> scores on test


def against(first: Mapping[str, Scores], arms: ByArm, *, document_of: Mapping[str, str]) -> dict[str, dict[str, Delta]]:
    """Arm -> metric -> arm minus `first` on the same queries, for the metrics that both have.

    All are drawn together: the same documents for every arm and metric, in the time of one comparison.
    """
    both = [(arm, metric) for arm, scores in arms.items() for metric in first if metric in scores]
    base = {f"{arm} {metric}": first[metric] for arm, metric in both}
    found = compare(base, {f"{arm} {metric}": arms[arm][metric] for arm, metric in both}, document_of=document_of)
    return {
        arm: {metric: found[f"{arm} {metric}"] for name, metric in both if name == arm}
        for arm in dict.fromkeys(arm for arm, _ in both)
    }


def verdict(
    dev: Mapping[str, float],
    against_best: Mapping[str, Delta],
    costs: Mapping[str, Mapping[str, Any]],
    *,
    margin: float,
) -> dict[str, Any]:
    """Which arm to run.

    dev: the primary metric by arm; the best is `best_on(dev)`. against_best: of every other arm, on test.

    | key       | holds                                                                                         |
    |-----------|-----------------------------------------------------------------------------------------------|
    | best      | the best arm on dev                                                                           |
    | as_good   | arms whose interval on test ends above -margin and that are not significantly worse; the best |
    | worse     | arms that are significantly worse on test                                                     |
    | undecided | the others: test has too few questions to tell                                                |
    | cheapest  | of those that are as good, see `cheapest`; null where test has too few documents for any       |
    | margin    | as given                                                                                      |
    """
    best = best_on(dev)
    few = any(delta.documents < FEWEST_DOCUMENTS for delta in against_best.values())
    worse = [arm for arm, delta in against_best.items() if delta.verdict == "worse"]
    good = [arm for arm, delta in against_best.items() if delta.ci_low > -margin and arm not in worse and not few]
    as_good = [arm for arm in dev if arm in good or arm == best]
    return {
        "best": best,
        "cheapest": None if few else cheapest({arm: costs[arm] for arm in as_good}),
        "as_good": as_good,
        "worse": worse,
        "undecided": [arm for arm in against_best if arm not in (*as_good, *worse)],
        "margin": margin,
    }


def best_on(dev: Mapping[str, float]) -> str:
    """The arm with the highest score; among equals the first, so name the simpler ones first."""
    return max(dev, key=dev.__getitem__)


def cheapest(costs: Mapping[str, Mapping[str, Any]]) -> str:
    """The arm that costs least, first in what production pays for every day.

    Of the arms that answer about as fast as the fastest (SLOWER, SLOWER_MS), those with about the smallest index
    (LARGER), of these the one that trains shortest; among equals the first.
    """
    fastest = min(cost["query_ms"] for cost in costs.values())
    fast = [arm for arm, cost in costs.items() if cost["query_ms"] <= SLOWER * fastest + SLOWER_MS]
    smallest = min(costs[arm]["index_mib"] for arm in fast)
    small: Sequence[str] = [arm for arm in fast if costs[arm]["index_mib"] <= LARGER * smallest]
    return min(small, key=lambda arm: costs[arm]["training_s"])


def described(deltas: Mapping[str, Delta]) -> dict[str, dict[str, Any]]:
    """As they stand in result.json."""
    return {metric: asdict(delta) for metric, delta in deltas.items()}
