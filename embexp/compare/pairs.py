"""Is one run better than another? Both answered the same queries, so their scores are compared query by query.

Called by `compare.cli`. The bootstrap is `significance`'s; runs on different test sets are refused with what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from embexp.compare.groups import Board, Group
from embexp.errors import UserError
from embexp.results.runs import Run, leaves

if TYPE_CHECKING:
    from embexp.evaluation.significance import Delta, Scores

MOST = 8  # groups of a board that are compared with each other


@dataclass(frozen=True)
class Pair:
    """The second group minus the first on test, by their means over seeds per query. p_value: of delta, corrected for
    the number of pairs (Holm, 1979)."""

    first: Group
    second: Group
    delta: Delta
    p_value: float

    @property
    def verdict(self) -> str:
        """Of the second against the first, with the corrected p-value."""
        return replace(self.delta, p_value=self.p_value).verdict


def pairs(board: Board, *, most: int = MOST) -> tuple[list[Pair], list[str]]:
    """Each of the first groups of a board that were scored on test against those below it, and what is missing."""
    from embexp.evaluation.significance import compare

    scored: dict[int, Scores] = {}
    documents: dict[str, str] = {}
    missing = []
    groups = [group for group in board.groups if group.test is not None][:most]
    for group in groups:
        try:
            scored[group.number], found = _scores(group.runs, board.metric)
        except UserError as error:
            missing.append(str(error))
            continue
        documents = documents or found
    chosen = [group for group in groups if group.number in scored]
    both = {f"{a.number} {b.number}": (a, b) for a, b in combinations(chosen, 2)}
    first = {name: scored[a.number] for name, (a, _) in both.items()}
    second = {name: scored[b.number] for name, (_, b) in both.items()}
    found_deltas = compare(first, second, document_of=documents) if both else {}
    adjusted = holm([delta.p_value for delta in found_deltas.values()])
    return [
        Pair(*both[name], delta, p) for (name, delta), p in zip(found_deltas.items(), adjusted, strict=True)
    ], missing


def pair(first: Run, second: Run, *, metric: str) -> Delta:
    """The second run minus the first on test. Raises UserError when their test sets are not the same, or the metric was
    not measured in both."""
    from embexp.evaluation.significance import compare

    if reason := difference(first, second, metric):
        raise UserError(f"{first.folder} and {second.folder} can't be compared: {reason}")
    (one, documents), (other, _) = _scores([first], metric), _scores([second], metric)
    return compare({metric: one}, {metric: other}, document_of=documents)[metric]


def difference(first: Run, second: Run, metric: str) -> str:
    """Why two runs can't be compared by a metric on test, in words; empty where they can."""
    for run in (first, second):
        if not _on_test(run):
            why = "a trial of a sweep looks at dev alone" if run.status == "completed" else f"the run is {run.status}"
            return f"{run.folder} has no scores on test ({why})"
    one, other = ((run.result or {})["fingerprint"] for run in (first, second))
    if one["test"] == other["test"]:
        both = [name for name in _on_test(first) if name in _on_test(second)]
        return "" if metric in both else f"not both have {metric} on test; both have {', '.join(both) or 'none'}"
    part = (
        "the questions or the qrels of test differ (fingerprint.test), the passages searched are the same"
        if one["corpus"] == other["corpus"]
        else "the passages searched differ (fingerprint.corpus)"
    )
    configs = ({"limit": run.config["limit"], "dataset": run.config["dataset"]} for run in (first, second))
    before, now = (dict(leaves(config)) for config in configs)
    changed = [
        f"{key} is {before.get(key)} and {now.get(key)}" for key in {**before, **now} if before.get(key) != now.get(key)
    ]
    return f"{part}; {'; '.join(changed[:5])}" if changed else part


def _on_test(run: Run) -> list[str]:
    """The metrics that a completed run has on test."""
    if run.result is None or run.status != "completed":
        return []
    return list((run.result["tuned"] or run.result["base"])["test"] or {})


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in the same order: the smallest times n, the next times n - 1, ..."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, so_far = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = so_far
    return adjusted


def _scores(found: Sequence[Run], metric: str) -> tuple[Scores, dict[str, str]]:
    """The mean over runs of a metric per query, in the queries' order by id, and the document of each query.

    Raises UserError when a run kept no scores per query.
    """
    import numpy as np
    import pyarrow.parquet

    from embexp.evaluation.significance import Scores

    values: list[list[float]] = []
    table: dict[str, list[Any]] = {}
    ids: list[str] = []
    for run in found:
        if run.score("test", metric) is None:  # a trial beside the runs that confirm it
            continue
        file, arm = run.folder / "retrieval" / "per_query.parquet", "tuned" if (run.result or {})["tuned"] else "base"
        column = f"{arm}.{metric}"
        try:
            read = pyarrow.parquet.read_table(file)
        except (OSError, ValueError) as error:  # pyarrow's own are ValueErrors
            raise UserError(f"{run.folder} is not compared query by query: {file.name} can't be read") from error
        if column not in read.column_names:
            raise UserError(f"{run.folder} is not compared query by query: {metric} has no value per query")
        table = read.select(["query_id", "document", "slice", column]).to_pydict()
        kept = [place for place, name in enumerate(table["slice"]) if name != "paraphrase"]  # no part of the verdict
        kept.sort(key=lambda place: table["query_id"][place])
        ids = [table["query_id"][place] for place in kept]
        values.append([table[column][place] for place in kept])
    documents = dict(zip(table["query_id"], table["document"], strict=True))
    return Scores(ids, values=np.mean(values, axis=0)), documents
