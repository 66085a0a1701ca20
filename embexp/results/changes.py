"""Which test queries training changed most, and what stood first for them before and after.

Called by `result`, which keeps them beside the rankings, and by `page.queries`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from embexp.data.retrieval_set import RetrievalSet

Ranking = Mapping[str, Sequence[tuple[str, float]]]  # as in `ranking`, which imports torch

EXAMPLES = 8  # of each kind
FIRST = 3  # passages shown of each ranking
LONGEST = 600  # characters of a passage or a query


def examples(
    rankings: Mapping[str, Ranking], per_query: pd.DataFrame, data: RetrievalSet, *, metric: str
) -> dict[str, Any]:
    """What there is to show of the most improved and the most harmed queries; nothing without a tuned model.

    | key              | holds                                                                                   |
    |------------------|-----------------------------------------------------------------------------------------|
    | improved, harmed | query ids, the most changed first                                                       |
    | rankings         | query id -> base and tuned -> [passage id, rank, whether it is right]: the first ones,  |
    |                  | and the first right one where it stands below                                           |
    | depth            | the passages ranked per query                                                           |
    | texts            | id -> text, cut at LONGEST characters, under queries and passages                       |
    """
    improved, harmed = most_changed(per_query, metric=metric)
    shown = {
        query: {arm: _first(rankings[arm][query], set(data.relevant(query))) for arm in ("base", "tuned")}
        for query in [*improved, *harmed]
    }
    passages = {hit[0] for by_arm in shown.values() for hits in by_arm.values() for hit in hits}
    return {
        "improved": improved,
        "harmed": harmed,
        "rankings": shown,
        "depth": max((len(hits) for hits in rankings["base"].values()), default=0),
        "texts": {
            "queries": {query: _cut(data.queries[query]) for query in shown},
            "passages": {passage: _cut(data.corpus[passage]) for passage in sorted(passages) if passage in data.corpus},
        },
    }


def most_changed(per_query: pd.DataFrame, *, metric: str) -> tuple[list[str], list[str]]:
    """Ids of the most improved and of the most harmed queries: by the primary metric, among equals by the rank of the
    first right passage. Paraphrases are left out, as of the verdict."""
    judged = per_query[per_query["slice"] != "paraphrase"]
    found = gains(judged, metric=metric)
    if found is None:
        return [], []
    order = np.lexsort((-found.rank, -found.metric))
    ids, direction = judged["query_id"].to_numpy()[order], found.direction[order]
    return ids[direction > 0][:EXAMPLES].tolist(), ids[direction < 0][::-1][:EXAMPLES].tolist()


@dataclass(frozen=True)
class Gains:
    """Tuned minus base for each query, by the primary metric and by the MRR that looks deepest, (queries,) each; the
    other one for both where a metric has no value per query."""

    metric: np.ndarray
    rank: np.ndarray

    @property
    def direction(self) -> np.ndarray:
        """1 for a query that improved, -1 for one that was harmed, else 0: the metric decides, then the rank."""
        return np.sign(np.where(self.metric != 0, self.metric, self.rank))


def gains(scores: Mapping[str, Any] | pd.DataFrame, *, metric: str) -> Gains | None:
    """What training changed of each query; None without a tuned model. scores: <arm>.<metric> -> (queries,)."""
    names = set(map(str, scores))
    by = [name for name in (metric, deepest_mrr(list(names))) if name and {f"base.{name}", f"tuned.{name}"} <= names]
    if not by:
        return None
    found = [np.asarray(scores[f"tuned.{name}"]) - np.asarray(scores[f"base.{name}"]) for name in by]
    return Gains(found[0].round(9), found[-1].round(9))


def deepest_mrr(columns: Sequence[str]) -> str | None:
    """The name of the MRR that looks deepest: 1 / mrr@100 is the rank of the first right passage, down to 100."""
    depths = [int(found[1]) for name in columns if (found := re.fullmatch(r"base\.mrr@(\d+)", name))]
    return f"mrr@{max(depths)}" if depths else None


def _first(hits: Sequence[tuple[str, float]], right: set[str]) -> list[tuple[str, int, bool]]:
    ranked = [(passage, rank, passage in right) for rank, (passage, _) in enumerate(hits, start=1)]
    shown = ranked[:FIRST]
    if not any(hit[2] for hit in shown):
        shown += next(([hit] for hit in ranked if hit[2]), [])
    return shown


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1].rstrip()}…"
