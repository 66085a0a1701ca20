"""The queries of a run on its page: what each scored before and after, and those that changed most side by side.

Called by `page.content`. Reads retrieval/per_query.parquet and retrieval/examples.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from pyarrow import ArrowInvalid

from embexp.evaluation.significance import interval_of_mean
from embexp.page.document import finite
from embexp.results.changes import deepest_mrr, gains

ROOM = 500_000  # bytes for the rows of the table, so that a page with thousands of queries still opens at once
LONGEST = 200  # characters of a query in the table
ARMS = ("base", "tuned", "reranked", "bm25")
SINCE = {1: "better", -1: "worse", 0: "same"}


@dataclass(frozen=True)
class PerQuery:
    """columns: of per_query.parquet, by name."""

    columns: dict[str, np.ndarray]

    @cached_property
    def _counted(self) -> np.ndarray:
        """The positions of the queries that the verdict is about: paraphrases are scored apart."""
        return np.flatnonzero(self.columns["slice"] != "paraphrase")

    @cached_property
    def _document_of(self) -> np.ndarray:
        return np.unique(self.columns["document"][self._counted].astype(str), return_inverse=True)[1]

    def interval(self, column: str) -> tuple[float, float] | None:
        """The 95 % interval of a column's mean; None where there is no such column or a single document."""
        if column not in self.columns or len(set(self._document_of.tolist())) < 2:
            return None
        low, high = interval_of_mean(self.columns[column][self._counted].astype(float), self._document_of)
        return max(0.0, low), min(1.0, high)


def read(folder: Path) -> PerQuery | None:
    """The scores per query of a run; None where it has none (yet)."""
    try:
        table = pyarrow.parquet.read_table(folder / "retrieval" / "per_query.parquet")
    except (OSError, ArrowInvalid):
        return None
    return PerQuery({name: column.to_numpy() for name, column in zip(table.column_names, table.columns, strict=True)})


def table(per_query: PerQuery | None, *, metric: str) -> dict[str, Any] | None:
    """Columns and rows for the page's script, the most changed first, as many as there is room for; `of`: how many
    there are in all. A rank is of the first right passage; null: below the deepest that was ranked."""
    if per_query is None:
        return None
    columns = per_query.columns
    deepest = deepest_mrr(list(columns))
    arms = [arm for arm in ARMS if f"{arm}.{deepest}" in columns]
    shown = [("query", "text"), ("slice", "choice")]
    values: list[list[Any]] = [_texts(columns), [name or "" for name in columns["slice"].tolist()]]
    for arm in arms:
        shown.append((f"{'BM25' if arm == 'bm25' else arm} rank", "rank"))
        values.append([round(1 / score) if score > 0 else None for score in columns[f"{arm}.{deepest}"].tolist()])
    order = range(len(values[0]))
    if (gained := gains(columns, metric=metric)) is not None:
        order = np.lexsort((-np.abs(gained.rank), -np.abs(gained.metric))).tolist()  # as the examples beside
        if f"tuned.{metric}" in columns:
            change = columns[f"tuned.{metric}"] - columns[f"base.{metric}"]
            shown.append((f"change of {metric}", "change"))
            values.append([finite(value, digits=3) for value in change.tolist()])
        shown.append(("since training", "choice"))
        values.append([SINCE[value] for value in gained.direction.tolist()])
    rows, room = [], ROOM
    for place in order:
        row = [column[place] for column in values]
        room -= len(json.dumps(row, ensure_ascii=False).encode())
        if room < 0:
            break
        rows.append(row)
    depth = int(deepest.rpartition("@")[2]) if deepest else None
    return {"columns": shown, "rows": rows, "of": len(values[0]), "depth": depth}


def _texts(columns: dict[str, np.ndarray]) -> list[str]:
    """The queries, or their ids where the texts were not to be kept."""
    pairs = zip(columns["query"].tolist(), columns["query_id"].tolist(), strict=True)
    texts = [identifier if text is None else text for text, identifier in pairs]
    return [text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…" for text in texts]


def examples(folder: Path) -> dict[str, Any] | None:
    """What `changes` kept, as the page shows it; None where there is nothing."""
    try:
        kept = json.loads((folder / "retrieval" / "examples.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not kept["improved"] and not kept["harmed"]:
        return None
    queries, passages = (kept["texts"].get(of, {}) for of in ("queries", "passages"))

    def example(query: str) -> dict[str, Any]:
        sides = {}
        for arm, hits in kept["rankings"][query].items():
            found = [{"id": p, "rank": rank, "right": right, "text": passages.get(p)} for p, rank, right in hits]
            sides[arm] = {"hits": found, "rank": next((hit["rank"] for hit in found if hit["right"]), None)}
        return {"id": query, "query": queries.get(query), "sides": sides}

    return {
        "kinds": [
            (name, [example(query) for query in kept[key]])
            for name, key in (("Most improved", "improved"), ("Most harmed", "harmed"))
        ],
        "depth": kept["depth"],
        "texts": bool(passages),
    }
