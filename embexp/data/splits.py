"""Cuts a RetrievalSet into train, dev and test by document. Called by the loaders in `datasets`; knows no models."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from embexp.cache import json_kept
from embexp.data.copies import near_duplicates
from embexp.data.retrieval_set import Parted, RetrievalSet, Splits, validated
from embexp.errors import UserError

NEAR_COPIES = "queries dropped as near copies of test or dev"  # the note that counts them


@dataclass(frozen=True)
class Shares:
    """How a source without splits of its own is cut; shares are parts of all queries.

    test and dev: from documents held out whole. seen: new questions on documents that stay in train, for a test slice
    of their own. seed: of the cut alone, so that runs with other training seeds share one test set.
    """

    test: float = 0.2
    dev: float = 0.1
    seen: float = 0.0
    near_duplicate: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        shares = {"test": self.test, "dev": self.dev, "seen": self.seen}
        wrong = {name: share for name, share in shares.items() if not 0 <= share < 1}
        if wrong or not self.test or not self.dev or self.test + self.dev + self.seen >= 1:
            raise UserError(
                f"split shares are {shares}; test and dev must be above 0, each below 1 and their sum with seen below 1"
            )
        if not 0 < self.near_duplicate <= 1:  # above 1 even equal queries would pass
            raise UserError(f"near_duplicate is {self.near_duplicate}; it must be above 0 and at most 1")


def cut(retrieval_set: RetrievalSet, shares: Shares, *, notes: Mapping[str, int] | None = None) -> Splits:
    """Cut by document; then drop from train what stands nearly the same in dev or test, and from dev what is in test.

    Documents that one query joins stay on one side. Raises UserError when there are too few documents.
    """
    whole = unified(validated(retrieval_set))
    sides = json_kept("splits", [whole.digest, asdict(shares)], lambda: _cut(whole, shares))
    train, dev, test = (whole.with_queries(sides[name]) for name in ("train", "dev", "test"))
    notes = {**(notes or {}), NEAR_COPIES: sides["near copies"]}
    parted = Parted((train, dev, test), shares.near_duplicate)
    return Splits(train, dev, test, slices_of(train, test), notes, parted=parted)


def _cut(whole: RetrievalSet, shares: Shares) -> dict[str, Any]:
    """The query ids of each side and how many were dropped as near copies."""
    groups = _groups_of_queries(whole)
    if len(groups) < 3:
        raise UserError(
            f"too little to split: {len(whole.queries)} queries on {len(groups)} independent documents; "
            "train, dev and test need at least one document each. Name a finer group, or add documents"
        )
    rng = random.Random(shares.seed)
    test, dev, train = _deal(groups, [shares.test, shares.dev], rng)
    seen = _questions_on_kept_documents(whole, train, round(shares.seen * len(whole.queries)), rng)
    train = [query for query in train if query not in seen]
    test = [*test, *sorted(seen)]
    clean_dev = _without_near_copies(whole, dev, test, shares)
    clean_train = _without_near_copies(whole, train, [*clean_dev, *test], shares)
    if not clean_train or not clean_dev:
        raise UserError(
            f"too little to split: near copies of test queries left train with {len(clean_train)} and dev with "
            f"{len(clean_dev)} queries. Raise dataset.split.near_duplicate (now {shares.near_duplicate}) or add data"
        )
    near_copies = len(train) + len(dev) - len(clean_train) - len(clean_dev)
    return {"train": clean_train, "dev": clean_dev, "test": test, "near copies": near_copies}


def cut_dev(train: RetrievalSet, test: RetrievalSet, shares: Shares) -> Splits:
    """For sources that bring train and test: take dev out of train, by document, and from train what is near dev."""
    whole = unified(validated(train))
    groups = _groups_of_queries(whole)
    if len(groups) < 2:
        raise UserError("too little to split: train has one independent document, and dev needs one of its own")
    dev, rest = _deal(groups, [shares.dev], random.Random(shares.seed))
    parts = [whole.digest, asdict(shares), "dev"]
    kept = json_kept("splits", parts, lambda: _without_near_copies(whole, rest, dev, shares))
    if not kept:
        raise UserError(
            "too little to split: every train query is a near copy of a dev query. "
            f"Raise dataset.split.near_duplicate (now {shares.near_duplicate}) or add data"
        )
    splits = given(whole.with_queries(kept), whole.with_queries(dev), test)
    return replace(splits, notes={NEAR_COPIES: len(rest) - len(kept)})


def given(train: RetrievalSet, dev: RetrievalSet, test: RetrievalSet) -> Splits:
    """Splits as the source gives them; the slices follow from the documents. Leaks are left for `refuse_leaks`."""
    sides = [unified(validated(side)) for side in (train, dev, test)]
    return Splits(sides[0], sides[1], sides[2], slices_of(sides[0], sides[2]))


def only_test(test: RetrievalSet) -> Splits:
    """A set for evaluation alone: train and dev are empty, so that it can be scored and not trained on."""
    side = unified(validated(test))
    nothing = side.with_queries([])
    return Splits(nothing, nothing, side, slices_of(nothing, side))


def halved(retrieval_set: RetrievalSet) -> tuple[RetrievalSet, RetrievalSet]:
    """Two halves of the queries, cut by document, always the same. Raises UserError for one document."""
    groups = _groups_of_queries(retrieval_set)
    if len(groups) < 2:
        raise UserError(
            f"too little to halve: all {len(retrieval_set.queries)} queries are on one document; choose a data set "
            "with a dev, or with more documents"
        )
    first, rest = _deal(groups, [0.5], random.Random(0))
    return retrieval_set.with_queries(first), retrieval_set.with_queries(rest)


def limited(splits: Splits, most: int) -> Splits:
    """A small copy for trying things out: at most `most` queries per split, and the passages they need plus as many."""
    sides = [
        side.with_queries(list(side.queries)[:most] if name != "test" else _spread(splits, most))
        for name, side in (("train", splits.train), ("dev", splits.dev), ("test", splits.test))
    ]
    needed = {passage for side in sides for query in side.queries for passage in side.qrels[query]}
    spare = [passage for passage in splits.train.corpus if passage not in needed][: len(needed)]
    train, dev, test = (side.with_passages([*needed, *spare]) for side in sides)
    brought = {name: ids for name, ids in splits.slices.items() if name not in ("seen", "unseen")}
    brought = {name: tuple(query for query in ids if query in test.queries) for name, ids in brought.items()}
    mined = test.with_queries(query for query in test.queries if query not in {*sum(brought.values(), ())})
    return replace(splits, train=train, dev=dev, test=test, slices={**slices_of(train, mined), **brought})


def trainable(splits: Splits) -> RetrievalSet:
    """Train over the passages that training may see: negatives too must not come from documents held out whole."""
    unseen = splits.slices.get("unseen", ())
    held_out = {document for query in splits.dev.queries for document in splits.dev.documents_of(query)}
    held_out |= {document for query in unseen for document in splits.test.documents_of(query)}
    held_out -= {document for query in splits.train.queries for document in splits.train.documents_of(query)}
    train = splits.train
    return train.with_passages(passage for passage in train.corpus if train.documents.get(passage) not in held_out)


def unified(retrieval_set: RetrievalSet) -> RetrievalSet:
    """Join queries with the same text, and give passages with the same text the same judgements.

    Queries are compared without case and end punctuation; other signs count, as in C and C++.
    A copy of a relevant passage is relevant: otherwise finding it counts as an error and it serves as a negative.
    """
    first: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for query, text in retrieval_set.queries.items():
        grades = qrels.setdefault(first.setdefault(asked(text), query), {})
        for passage, grade in retrieval_set.qrels.get(query, {}).items():
            grades[passage] = max(grade, grades.get(passage, grade))
    copies = _copies(retrieval_set.corpus)
    for grades in qrels.values() if copies else ():
        for passage, grade in list(grades.items()):
            for copy in copies.get(passage, ()):
                grades[copy] = max(grade, grades.get(copy, grade))
    queries = {query: retrieval_set.queries[query] for query in first.values()}
    return replace(retrieval_set, queries=queries, qrels=qrels)


def _copies(corpus: Mapping[str, str]) -> dict[str, list[str]]:
    """Of each passage whose text stands there more than once, all that have it."""
    first: dict[str, str] = {}
    copies: dict[str, list[str]] = {}
    for passage, text in corpus.items():
        known = first.setdefault(text.strip(), passage)
        if known != passage:
            copies.setdefault(known, [known]).append(passage)
            copies[passage] = copies[known]
    return copies


def asked(text: str) -> str:
    """A question without case, spacing and end punctuation: the same for two that ask the same word for word."""
    return " ".join(text.casefold().split()).rstrip(" .?!")


def _groups_of_queries(retrieval_set: RetrievalSet) -> list[list[str]]:
    """Queries that must stay together since their documents are joined."""
    places: dict[str, int] = {}  # of documents
    parent: list[int] = []

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    own: list[int] = []  # of each query one of its documents, or a place of its own where it has none
    for query in retrieval_set.queries:
        documents = retrieval_set.documents_of(query)
        found = [places.setdefault(document, len(parent) + new) for new, document in enumerate(documents)]
        parent.extend(range(len(parent), len(parent) + max(1, len(documents))))
        own.append(found[0] if found else len(parent) - 1)
        for document in found[1:]:
            parent[root(document)] = root(found[0])
    groups: dict[int, list[str]] = defaultdict(list)
    for query, place in zip(retrieval_set.queries, own, strict=True):
        groups[root(place)].append(query)
    return list(groups.values())


def _deal(groups: Sequence[list[str]], shares: Sequence[float], rng: random.Random) -> list[list[str]]:
    """Deal groups at random to sides of the given shares; what is left over is the last side. No side stays empty."""
    groups = sorted(groups, key=lambda group: group[0])
    rng.shuffle(groups)
    total = sum(map(len, groups))
    sides: list[list[list[str]]] = [[] for _ in shares]
    dealt = [0] * len(shares)  # queries
    rest: list[list[str]] = []
    for group in groups:
        open_sides = (s for s, share in enumerate(shares) if len(group) + dealt[s] <= share * total)
        side = next(open_sides, None)
        if side is None:
            rest.append(group)
        else:
            sides[side].append(group)
            dealt[side] += len(group)
    for side_groups in sides:
        if not side_groups:  # no group was small enough: the smallest left, never the last of a side
            giver = rest if len(rest) > 1 else max(sides, key=len)
            giver.sort(key=len, reverse=True)
            side_groups.append(giver.pop())
    return [[query for group in side_groups for query in group] for side_groups in [*sides, rest]]


def _questions_on_kept_documents(whole: RetrievalSet, train: Sequence[str], count: int, rng: random.Random) -> set[str]:
    """Up to `count` queries of train whose every document keeps another query in train."""
    left: dict[str, int] = defaultdict(int)
    for query in train:
        for document in whole.documents_of(query):
            left[document] += 1
    taken: set[str] = set()
    for query in rng.sample(sorted(train), len(train)):
        documents = whole.documents_of(query)
        if len(taken) < count and all(left[document] > 1 for document in documents):
            taken.add(query)
            for document in documents:
                left[document] -= 1
    return taken


def _without_near_copies(whole: RetrievalSet, kept: Sequence[str], others: Iterable[str], shares: Shares) -> list[str]:
    pairs = near_duplicates(
        {query: whole.queries[query] for query in kept},
        {query: whole.queries[query] for query in others},
        threshold=shares.near_duplicate,
    )
    copies = {left for left, _ in pairs}
    return [query for query in kept if query not in copies]


def slices_of(train: RetrievalSet, test: RetrievalSet) -> dict[str, tuple[str, ...]]:
    """Test's queries as seen and unseen, by whether train has a query on one of their documents."""
    trained = {document for query in train.queries for document in train.documents_of(query)}
    is_unseen = {query: trained.isdisjoint(test.documents_of(query)) for query in test.queries}
    seen, unseen = (tuple(query for query, new in is_unseen.items() if new is side) for side in (False, True))
    return {name: queries for name, queries in (("seen", seen), ("unseen", unseen)) if queries}


def _spread(splits: Splits, most: int) -> list[str]:
    """Some test queries of every slice, so that a limited run still shows each."""
    share = max(1, most // max(1, len(splits.slices)))
    chosen = [query for queries in splits.slices.values() for query in queries[:share]]
    return [query for query in splits.test.queries if query in set(chosen)]
