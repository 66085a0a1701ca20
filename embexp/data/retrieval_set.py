"""Queries, passages and who answers whom: the one form that every data source is turned into.

Made by `datasets`, cut by `splits`, read by everything after. Knows nothing of models or files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from embexp.cache import digest
from embexp.errors import UserError, listed

Qrels = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class RetrievalSet:
    """Queries with their relevance judgements over a corpus, as in TREC and BEIR.

    | field     | holds                                                              |
    |-----------|--------------------------------------------------------------------|
    | queries   | query id -> text                                                   |
    | corpus    | passage id -> text; always the whole knowledge base                |
    | qrels     | query id -> passage id -> grade; > 0 is relevant, 0 judged not so  |
    | documents | passage id -> the document it comes from (an article, a module)    |
    """

    queries: Mapping[str, str]
    corpus: Mapping[str, str]
    qrels: Qrels
    documents: Mapping[str, str]

    @cached_property
    def digest(self) -> str:
        """Of the whole content, the order included."""
        parts = (self.queries, self.corpus, self.qrels, self.documents)
        return digest([list(part.items()) for part in parts])

    def relevant(self, query_id: str) -> list[str]:
        """The ids of a query's relevant passages, sorted."""
        return sorted(passage for passage, grade in self.qrels.get(query_id, {}).items() if grade > 0)

    def documents_of(self, query_id: str) -> set[str]:
        """The documents that a query's relevant passages come from."""
        grades, documents = self.qrels.get(query_id, {}), self.documents
        return {documents[passage] for passage, grade in grades.items() if grade > 0 and passage in documents}

    def document_of(self, query_id: str) -> str:
        """One document per query, the unit that the bootstrap resamples: the first of `documents_of`."""
        return min(self.documents_of(query_id), default=query_id)

    def with_queries(self, query_ids: Iterable[str]) -> RetrievalSet:
        """The same corpus with only these queries, in this order."""
        kept = list(query_ids)
        return RetrievalSet(
            {query: self.queries[query] for query in kept},
            self.corpus,
            {query: self.qrels[query] for query in kept},
            self.documents,
        )

    def with_passages(self, passage_ids: Iterable[str]) -> RetrievalSet:
        """The same queries over a part of the corpus, in the corpus's order; qrels outside it stay, as misses."""
        kept = set(passage_ids)
        corpus = {passage: text for passage, text in self.corpus.items() if passage in kept}
        return RetrievalSet(self.queries, corpus, self.qrels, self.documents)


@dataclass(frozen=True)
class Parted:
    """Train, dev and test as they were cut, and from which similarity on the queries of one were left out of others."""

    sides: tuple[RetrievalSet, RetrievalSet, RetrievalSet]
    near_duplicate: float


@dataclass(frozen=True)
class Mined:
    """How a mined data set was made: the config of mining, and a digest of the whole text of each passage that the
    sides read with gaps (see `manifest`)."""

    config: Mapping[str, Any]
    whole: Mapping[str, int]


@dataclass(frozen=True)
class Splits:
    """Train, dev and test over one corpus; `slices` names parts of test by query ids.

    | slice      | questions                                                                                |
    |------------|------------------------------------------------------------------------------------------|
    | unseen     | on documents held out whole                                                              |
    | seen       | new ones, on documents that training questions came from                                 |
    | real       | of real users                                                                            |
    | paraphrase | training questions in other words: scored apart, and no part of the verdict              |
    """

    train: RetrievalSet
    dev: RetrievalSet
    test: RetrievalSet
    slices: Mapping[str, tuple[str, ...]]
    notes: Mapping[str, int] = field(default_factory=dict)  # what the source dropped or merged, with counts
    origin: Mapping[str, str | None] = field(default_factory=dict)  # where it came from, such as a Hub commit
    apart: tuple[RetrievalSet, ...] = ()  # test as several sets with a corpus of their own, whose scores are averaged
    caveat: str | None = None  # of a source that leaks by design: not held against leaks, and said beside every verdict
    parted: Parted | None = field(default=None, compare=False)  # by whom the sides were cleared of near copies
    mined: Mined | None = field(default=None, compare=False)

    def parted_at(self, near_duplicate: float) -> bool:
        """Whether these very sides were cut so that no query of one is this near to one of another."""
        if self.parted is None or self.parted.near_duplicate > near_duplicate:
            return False
        return all(own is cut for own, cut in zip((self.train, self.dev, self.test), self.parted.sides, strict=True))

    @property
    def judged(self) -> list[str]:
        """The test queries that the verdict is about, and that must not stand in train: all but paraphrases."""
        apart = set(self.slices.get("paraphrase", ()))
        return [query for query in self.test.queries if query not in apart]

    @property
    def tokenizer_texts(self) -> list[str]:
        """What a tokenizer may be trained on: never the questions that the model is tested on."""
        return [*self.train.corpus.values(), *self.train.queries.values()]


def validated(retrieval_set: RetrievalSet) -> RetrievalSet:
    """Return the set unchanged when it is sound.

    Raises UserError that lists every kind of fault at once: empty sets, empty texts, ids with white space (TREC
    files are split at it), queries without a relevant passage, qrels that name ids which do not exist.
    """
    queries, corpus, qrels = retrieval_set.queries, retrieval_set.corpus, retrieval_set.qrels
    white_space = re.compile(r"\s").search
    problems = []

    def found(what: str, ids: Iterable[str], fix: str) -> None:
        ids = sorted(ids)
        if ids:
            problems.append(f"{len(ids)} {what}: {listed(ids)}. {fix}")

    if not queries or not corpus:
        problems.append(f"the data set has {len(queries)} queries and {len(corpus)} passages; both are needed")
    for name, texts in (("queries", queries), ("passages", corpus)):
        empty = (key for key, text in texts.items() if not text or text.isspace())
        found(f"{name} with an empty text", empty, "Remove them or give them a text.")
        broken = (key for key, text in texts.items() if not _is_unicode(text) or not _is_unicode(key))
        found(f"{name} with broken characters (half of a surrogate pair)", broken, "Save the data as valid UTF-8.")
        spaced = (repr(key) for key in texts if not key or white_space(key))
        found(f"ids of {name} that are empty or hold white space", spaced, "Use ids without white space.")
    judged = {passage for grades in qrels.values() for passage in grades}
    found(
        "qrels name passages that are not in the corpus", judged - corpus.keys(), "Add the passages or drop the qrels."
    )
    found("qrels name queries that do not exist", qrels.keys() - queries.keys(), "Add the queries or drop the qrels.")
    unanswered = (query for query in queries if not any(grade > 0 for grade in qrels.get(query, {}).values()))
    found("queries have no relevant passage", unanswered, "Give each at least one qrel with a grade above 0.")
    if problems:
        raise UserError(*problems)
    return retrieval_set


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
