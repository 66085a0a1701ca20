"""Refuses splits that leak: a question on two sides, or a document called unseen that training saw.

Called by `preparing`, for every source. Knows nothing of models or files.
"""

from __future__ import annotations

from embexp.cache import json_kept
from embexp.data.copies import near_duplicates
from embexp.data.retrieval_set import Splits
from embexp.errors import UserError, counted, listed


def refuse_leaks(splits: Splits, *, near_duplicate: float) -> None:
    """Raise UserError, with ids, when a query stands nearly the same on two sides or an `unseen` one's document is in
    train."""
    problems = _shared_documents(splits)
    if not splits.parted_at(near_duplicate):
        parts = [splits.train.digest, splits.dev.digest, splits.test.digest, splits.slices, near_duplicate]
        problems = json_kept("leaks", parts, lambda: _near_copies(splits, near_duplicate)) + problems
    if problems:
        raise UserError(*problems)


def _near_copies(splits: Splits, near_duplicate: float) -> list[str]:
    problems = []
    sides = {"train": splits.train, "dev": splits.dev, "test": splits.test.with_queries(splits.judged)}
    for left, right in (("train", "test"), ("dev", "test"), ("train", "dev")):
        pairs = list(near_duplicates(sides[left].queries, sides[right].queries, threshold=near_duplicate))
        if pairs:
            shown = listed([f"{a} = {b} ({sides[left].queries[a][:60]!r})" for a, b in pairs], most=3)
            found = counted(len(pairs), "query stands", "queries stand")
            problems.append(
                f"leak: {found}, exactly or nearly, in {left} and in {right}: {shown}. "
                f"Remove what stands in {left}, or leave out the split column so that embexp cuts by document"
            )
    return problems


def _shared_documents(splits: Splits) -> list[str]:
    trained = {document for query in splits.train.queries for document in splits.train.documents_of(query)}
    unseen = splits.slices.get("unseen", ())
    shared = [query for query in unseen if splits.test.documents_of(query) & trained]
    if not shared:
        return []
    found = counted(len(shared), "test query", "test queries")
    return [
        f"leak: {found} called unseen, on documents that training saw: {listed(shared)}. "
        "Move them to the slice seen, or hold their documents out"
    ]
