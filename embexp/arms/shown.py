"""The further arms and the learning curve in a report: sentences and tables. Called by `report` and `page.content`.

Reads a result (the content of result.json) and nothing else; all is empty where a run was asked for neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embexp.errors import counted
from embexp.reporting.tables import Block, Table, interval, number, signed

NAMES = {
    "bm25": "BM25", "base": "base", "hybrid_base": "BM25 + base", "adapter": "adapter", "tuned": "tuned",
    "fully_tuned": "tuned, not merged", "hybrid_tuned": "BM25 + tuned", "merged": "merged",
    "reranked": "reranked",
}  # fmt: skip


def names(result: Mapping[str, Any]) -> dict[str, str]:
    """What each arm of a result is called; of the reranked one it is known there what was re-ordered."""
    if "reranked" not in result["arms"]:
        return NAMES
    return NAMES | {"reranked": f"{result['reranker']['of']} + reranker"}


def sentences(result: Mapping[str, Any]) -> list[str]:
    """What to run, and whether more questions would help."""
    said = [arms_line(result)] if result["arms_verdict"] else []
    return [*said, curve_line(result)] if result["learning_curve"] else said


def blocks(result: Mapping[str, Any]) -> list[Block]:
    """The tables, with what is needed to read them."""
    arms: list[Block] = [arms_table(result), costs_table(result), costs_line(result)] if result["arms"] else []
    return [*arms, curve_table(result)] if result["learning_curve"] else arms


def arms_line(result: Mapping[str, Any]) -> str:
    """The cheapest arm that is as good as the best, with its numbers, and what test can't tell."""
    verdict, arms = result["arms_verdict"], result["arms"]
    metric, best, chosen = verdict["metric"], verdict["best"], verdict["cheapest"]
    called = names(result)
    at = f"{metric} {arms[best]['test'][metric]:.3f} on test"
    if chosen is None:
        return f"**Best arm on dev: {called[best]}**, {at}. Test has too few documents to compare arms with it."
    if chosen == best:
        line = f"**Arm to run: {called[best]}**, the best on dev ({at}); "
        line += f"no cheaper one is sure to be less than {verdict['margin']:g} worse."
    else:
        delta = arms[chosen]["against_best"][metric]
        line = (
            f"**Arm to run: {called[chosen]}**, the cheapest that is as good as the best on dev, {called[best]}: "
            f"{metric} {arms[chosen]['test'][metric]:.3f} against {arms[best]['test'][metric]:.3f} on test, "
            f"{delta['absolute']:+.3f}, 95 % interval {delta['ci_low']:+.3f} to {delta['ci_high']:+.3f} (a loss below "
            f"{verdict['margin']:g} is taken as none)."
        )
    if verdict["undecided"]:
        undecided = ", ".join(called[arm] for arm in verdict["undecided"])
        lowest = min(arms[arm]["against_best"][metric]["ci_low"] for arm in verdict["undecided"])
        queries = counted(arms[verdict["undecided"][0]]["against_best"][metric]["queries"], "query", "queries")
        line += f" {queries} can't tell of {undecided}: worse by up to {-lowest:.3f}, or not."
    return line


def arms_table(result: Mapping[str, Any]) -> Table:
    """Each arm's score, and its differences from base and best with their intervals."""
    metric, best = result["arms_verdict"]["metric"], result["arms_verdict"]["best"]
    called, lines = names(result), []
    for name, arm in result["arms"].items():
        scores = [number(arm[side][metric]) for side in ("dev", "test")]
        lines.append([called[name], *scores, change(arm["delta"], metric), change(arm["against_best"], metric)])
    return Table(["arm", f"{metric} on dev", "test", "minus base", f"minus {called[best]}, the best on dev"], lines)


def costs_table(result: Mapping[str, Any]) -> Table:
    """What each arm costs."""
    spent = {name: arm["cost"] for name, arm in result["arms"].items()}
    keys = {
        "query_ms": "ms a question",
        "index_mib": "MiB of index",
        "index_s": "s to index",
        "training_s": "s to train",
    }
    called = names(result)
    lines = [[called[name], *(f"{cost[key]:.1f}" for key in keys)] for name, cost in spent.items()]
    return Table(["arm", *keys.values()], lines)


def costs_line(result: Mapping[str, Any]) -> str:
    """How the costs were measured."""
    on = result["arms_verdict"]["measured_on"]
    scaled = f" Embedding was timed on {on['passages']} passages and scaled." if on["passages"] < on["of"] else ""
    return (
        f"Differences are on test, with 95 % intervals. Costs are of this machine, for {counted(on['of'], 'passage')}: "
        f"a question is the median of {on['questions']} at most, one at a time, from its text to its passages.{scaled}"
    )


def curve_line(result: Mapping[str, Any]) -> str:
    """Whether twice as many questions would help, and how sure that is."""
    curve = result["learning_curve"]
    last, slope = curve["points"][-1], curve["per_doubling"]
    words = {
        "yes": "Twice as many questions to train on would help",
        "hardly": "Twice as many questions to train on would hardly help",
        "unknown": "Whether twice as many questions to train on would help can't be told",
    }
    return (
        f"**{words[curve['would_help']]}**: from {last['questions']:,} to {2 * last['questions']:,} {curve['metric']} "
        f"would change by {curve['low']:+.3f} to {curve['high']:+.3f}, if it goes on as it did "
        f"({slope['absolute']:+.3f} a doubling so far). Each number of questions was trained on once, with seed "
        f"{curve['seed']}; how far another seed would move the scores is not in this range."
    )


def curve_table(result: Mapping[str, Any]) -> Table:
    """The scores by how many questions were trained on."""
    curve = result["learning_curve"]
    lines = []
    for point in curve["points"]:
        scores = [number(point[side][curve["metric"]]) for side in ("dev", "test")]
        lines.append([f"{point['share']:.0%}", f"{point['questions']:,}", *scores])
    return Table(["of the questions", "number", f"{curve['metric']} on dev", "test"], lines)


def change(deltas: Mapping[str, Any] | None, metric: str) -> str:
    """A difference with its interval, as `interval` has it; a dash for none."""
    if not deltas or metric not in deltas:
        return "-"
    delta = deltas[metric]
    return f"{signed(delta)} ({interval(delta)})"
