"""What a report says of the guard set and of merging. Called by `report`, `page` and `reporting.card`, and by `job`.

Reads a result (the content of result.json) and nothing else; one of an earlier version has neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embexp.errors import counted
from embexp.reporting.tables import COMPARED, FEWEST_FOR_INTERVAL, Block, Table, compared, interval, number, signed

FEW = ("recall@1", "recall@10", "ndcg@10", "mrr@10")  # metrics of the guard set that are shown, beside the primary one
TO_TRY = (
    "What to try: merge=true, which keeps a share of the change; a lower trainer.learning_rate; fewer weights "
    "(model.peft=lora, or model.adapter=query_linear)"
)


def failed(result: Mapping[str, Any]) -> bool:
    """Whether more was forgotten than `max_forgetting` allows."""
    return bool(result.get("forgetting")) and result["forgetting"]["passed"] is False


def warning(result: Mapping[str, Any]) -> str:
    """What to say first where more was forgotten than `max_forgetting` allows; else empty."""
    if not failed(result):
        return ""
    return f"**The tuned model has forgotten too much (passed: false).** {_change(result)} {TO_TRY}."


def findings(result: Mapping[str, Any]) -> str:
    """A sentence on the guard set, where `warning` has not said it, and one on the share that merging chose."""
    measured = bool(result.get("forgetting")) and result["forgetting"]["delta"] is not None
    said = [_change(result)] if measured and not failed(result) else []
    return " ".join([*said, *(kept(result, what) for what in _merges(result))])


def _merges(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The shares and the chosen one, by what was merged: the tuned model itself or the arm, never both."""
    arm = (result.get("arms") or {}).get("merged")
    found = {"Merged": result.get("merge"), "The arm merged": arm and arm["merge"]}
    return {what: merge for what, merge in found.items() if merge}


def kept(result: Mapping[str, Any], what: str = "Merged") -> str:
    """Which share of the change was kept, and why. what: was merged, `Merged` for the tuned model itself."""
    merge, limit = _merges(result)[what], (result.get("forgetting") or {}).get("max_forgetting")
    share = merge["chosen"]
    within = f" of those that lose at most {limit:g} on the guard set's dev" if limit is not None else ""
    if _loses_too_much(merge, result):
        least = f"no share loses at most {limit:g} on the guard set's dev, and it loses the least"
        return f"{what}: {share:g} of the weights' change is kept: {least}."
    if share == 0:
        return f"{what}: nothing of the weights' change is kept: no share{within} is better on dev than the base."
    return f"{what}: {share:g} of the weights' change is kept, the best share on dev{within}."


def _loses_too_much(merge: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """Whether even the chosen share loses more on the guard's dev than it may."""
    forgetting = result.get("forgetting")
    if not forgetting or forgetting["max_forgetting"] is None:
        return False
    found = merge["shares"][f"{merge['chosen']:g}"]["guard"]
    least = forgetting["base"]["dev"][result["metric"]] - forgetting["max_forgetting"]
    return bool(found < least - 1e-9)


def _change(result: Mapping[str, Any]) -> str:
    forgetting, metric = result["forgetting"], result["metric"]
    from embexp.evaluation.metrics import FEWEST_DOCUMENTS  # here, since --help needs this module and no numpy

    delta, allowed = forgetting["delta"][metric], forgetting["max_forgetting"]
    base, tuned = (forgetting[arm]["test"][metric] for arm in ("base", "tuned"))
    line = (
        f"On the guard set {forgetting['dataset']} {metric} {base:.3f} -> {tuned:.3f} "
        f"({counted(forgetting['queries']['test'], 'query', 'queries')}): {signed(delta)}"
    )
    if delta["documents"] >= FEWEST_FOR_INTERVAL:
        line += f", 95 % interval {interval(delta)}"
    if delta["documents"] < FEWEST_DOCUMENTS:
        line += f" (it has only {counted(delta['documents'], 'document')}, too few to be sure)"
    return line + ("." if allowed is None else f"; max_forgetting={allowed:g} is the most that it may fall.")


def tables(result: Mapping[str, Any]) -> list[Block]:
    """The guard set's scores before and after, and what each share of the change scores on dev."""
    found: list[Block] = []
    forgetting = result.get("forgetting")
    if forgetting and forgetting["delta"]:
        found.append(_before_and_after(result))
    for merge in _merges(result).values():
        scores = merge["shares"].items()
        lines = [[share, number(each["dev"]), number(each["guard"])] for share, each in scores]
        found.append(Table(["share of the change", f"{result['metric']} on dev", "on the guard's dev"], lines))
    return found


def _before_and_after(result: Mapping[str, Any]) -> Table:
    guard, lines = result["forgetting"], []
    before = {"base": "base", "fully_tuned": "all of the change", "merged": "the arm merged"}
    for metric in dict.fromkeys([result["metric"], *FEW]):
        if metric in guard["delta"]:
            scores = [number(guard[arm]["test"][metric]) for arm in before if guard[arm]]
            lines.append([metric, *scores, *compared(guard["tuned"]["test"][metric], guard["delta"][metric])])
    heads = [head for arm, head in before.items() if guard[arm]]
    return Table([f"guard set {guard['dataset']}", *heads, "tuned", *COMPARED], lines)
