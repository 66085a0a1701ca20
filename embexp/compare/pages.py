"""What compare.html shows. Called by `compare.cli`; the tables are `compare.shown`'s, written by `page.document`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from embexp.compare import shown
from embexp.compare.coordinates import parallel
from embexp.compare.groups import Board
from embexp.compare.pairs import Pair
from embexp.errors import counted
from embexp.page.document import finite
from embexp.results.runs import Run

BEST = 20  # groups of a board that stand in a table without a script


def of(
    found: Sequence[Board],
    compared: Mapping[str, tuple[list[Pair], list[str]]],
    others: Sequence[Run],
    unread: Sequence[str],
) -> dict[str, Any]:
    """Everything that the template `compare` reads."""
    runs = sum(len(group.runs) for board in found for group in board.groups)
    return {
        "title": f"{counted(runs + len(others), 'run')} compared",
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "boards": [_board(board, *compared[board.title], name=f"board-{i}") for i, board in enumerate(found)],
        "runs": _runs(found, others),
        "others": shown.others_table(others, most=None if len(others) <= 100 else 100),
        "unread": shown.unread_listing(unread),
    }


def _board(board: Board, compared: Sequence[Pair], missing: Sequence[str], *, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "title": board.title,
        "beside": shown.beside(board),
        "ranking": shown.ranking(board, most=BEST),
        "remarks": shown.remarks(board),
        "arms": shown.arms_table(board),
        "more": len(board.groups) - BEST,
        "by_choice": shown.by_choice(board),
        "parallel": parallel(board, f"{name}-parallel"),
        "pairs": shown.pairs_table(compared),
        "against_first": shown.pairs_table(shown.against_first(compared)),
        "pairs_words": shown.pairs_words(compared),
        "missing": list(missing),
    }


def _runs(found: Sequence[Board], others: Sequence[Run]) -> dict[str, Any]:
    """All runs for the page's script, the ranked ones first."""
    columns = [
        ("run", "text"), ("data", "choice"), ("loss", "choice"), ("model", "choice"), ("what differs", "text"),
        ("seed", "count"), ("dev", "score"), ("test", "score"), ("delta on test", "change"), ("verdict", "choice"),
        ("caveat", "text"), ("status", "choice"),
    ]  # fmt: skip
    rows = []
    for board in found:
        names = shown.short_names(board.varied)
        for group in board.groups:
            differs = " ".join(f"{names[key]}={shown.value(group.varied[key])}" for key in board.varied)
            rows += [_row(run, board.metric, board.title, differs) for run in group.runs]
    rows += [_row(run, run.config["metric"], run.names["dataset"], "") for run in others]
    return {"columns": columns, "rows": rows, "depth": None}


def _row(run: Run, metric: str, data: str, differs: str) -> list[Any]:
    delta = ((run.result or {}).get("delta") or {}).get(metric) or {}
    return [
        str(run.folder), data, run.names["loss"], run.names["model"], differs, run.config["seed"],
        finite(run.score("dev", metric), digits=4), finite(run.score("test", metric), digits=4),
        finite(delta.get("absolute"), digits=4), (run.result or {}).get("verdict") or "",
        (run.result or {}).get("caveat") or "", run.status,
    ]  # fmt: skip
