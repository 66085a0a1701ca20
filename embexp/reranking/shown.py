"""The reranker in a report: a table and its verdict. Called by `report` and `page.content`.

Reads a result (the content of result.json) and nothing else; all is empty where a run has no reranker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from embexp.errors import counted
from embexp.reporting.tables import COMPARED, Block, Table, compared, number


def blocks(result: Mapping[str, Any], metrics: Sequence[str]) -> list[Block]:
    """The table of these metrics, and what is needed to read it."""
    found = result.get("reranker") or {}  # a run of an earlier version has no such key
    if "delta" not in found:
        return []
    return [table(result, metrics), line(result)]


def table(result: Mapping[str, Any], metrics: Sequence[str]) -> Table:
    """Scores on test with and without it."""
    found = result["reranker"]
    shown = [metric for metric in dict.fromkeys([*metrics, result["metric"]]) if metric in found["delta"]]
    lines = [
        [name, number(result[found["of"]]["test"][name]), *compared(found["test"][name], found["delta"][name])]
        for name in shown
    ]
    return Table(["test", found["of"], f"{found['of']} + reranker", *COMPARED], lines)


def line(result: Mapping[str, Any]) -> str:
    """What it is, and its verdict."""
    found, metric = result["reranker"], result["metric"]
    helper = result["fingerprint"]["helpers"].get("reranker.path", {"commit": None})
    what = found["path"] if helper["commit"] else "a local cross-encoder"  # no path of the machine
    if "pairs" in found:
        what = f"a cross-encoder trained on {counted(found['pairs'], 'pair')}"
    said = {"better": "is better", "worse": "is worse", "no difference": "makes no sure difference"}[found["verdict"]]
    line = f"The reranker ({what}), on the first {found['depth']} passages of {found['of']}, {said} by {metric}."
    chosen = ", the best on dev" if found.get("weights") else ""
    return f"{line} Its scores have the weight {found.get('weight', 1.0):g}{chosen}, those of the search the rest."
