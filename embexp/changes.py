"""Which test queries training changed most, and what stood first for them before and after.

Called by `result`, which keeps them beside the rankings, and by `page`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from embexp.retrieval_set import RetrievalSet

Ranking = Mapping[str, Sequence[tuple[str, float]]]  # as in `search`, which imports torch

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
    first right passage."""
    deepest = deepest_mrr(list(per_query.columns))
    by = [name for name in (metric, deepest) if name and {f"base.{name}", f"tuned.{name}"} <= set(per_query.columns)]
    if not by:
        return [], []
    gains = pd.DataFrame({name: per_query[f"tuned.{name}"] - per_query[f"base.{name}"] for name in by})
    gains = gains.round(9).set_axis(per_query["query_id"])
    ordered = gains[(gains != 0).any(axis=1)].sort_values(by, ascending=False, kind="stable")
    first, second = ordered[by[0]], ordered[by[-1]]
    better = ordered[(first > 0) | ((first == 0) & (second > 0))]
    worse = ordered[(first < 0) | ((first == 0) & (second < 0))]
    return list(better.index[:EXAMPLES]), list(worse.index[::-1][:EXAMPLES])


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
