"""What mining is about: documents, the passages cut from them, and questions on passages.

Read by everything in this package; knows nothing of files, models or servers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol


@dataclass(frozen=True)
class Document:
    """A text of the knowledge base as Markdown. name: its path within the folder that was read, with slashes."""

    name: str
    text: str


@dataclass(frozen=True)
class Passage:
    """A piece of a document, small enough for the model that is tuned.

    | field    | holds                                                             |
    |----------|-------------------------------------------------------------------|
    | text     | the words, as in the document                                     |
    | document | the document's name                                               |
    | headings | the headings above it, outermost first                            |
    | position | its place among the document's passages, from 0                   |
    """

    text: str
    document: str
    headings: tuple[str, ...] = ()
    position: int = 0
    given_id: str | None = None  # of passages that come ready with ids of their own

    @cached_property
    def id(self) -> str:
        """The given id, else a hash of headings and text: stable whatever happens to other documents."""
        return self.given_id or hashed(*self.headings, self.text)

    @property
    def title(self) -> str:
        """The headings in one line, as BEIR's title."""
        return " > ".join(self.headings)

    @property
    def whole(self) -> str:
        """What is searched and trained on: title and text."""
        return f"{self.title}\n{self.text}" if self.headings else self.text


@dataclass(frozen=True)
class Wanted:
    """A passage that questions are asked of: one of each of these kinds, in this order."""

    passage: Passage
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A query made from a passage.

    kind: question, keywords, problem (from an LLM), heading or sentence (without one). span: the words of the passage
    that answer it; with cloze they are the query itself, and the passage that is trained on goes without them. also:
    ids of further passages that it stands for, in the same document and under the same headings.
    """

    text: str
    passage: str  # its id
    kind: str
    span: str
    cloze: bool = False
    also: tuple[str, ...] = ()

    @cached_property
    def id(self) -> str:
        """A hash of passage and text."""
        return hashed(self.passage, self.text)


@dataclass(frozen=True)
class Mined:
    """What a miner made of one passage. problem: why an answer, or a part of it, gave no question; each is counted."""

    passage: Passage
    questions: tuple[Question, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rejected:
    """A question that the funnel dropped, at which stage and why."""

    question: Question
    stage: str
    reason: str


class Miner(Protocol):
    """Makes questions. asks_llm: whether a language model answers, so that it can paraphrase and judge too."""

    asks_llm: bool

    def mine(self, wanted: Sequence[Wanted]) -> Iterator[Mined]:
        """Make questions of these passages, as they are ready, in any order, once for each wanted passage."""

    def requests(self, wanted: Sequence[Wanted]) -> Iterable[Any]:
        """What a language model would be asked, for an estimate of the cost."""


class Judge(Protocol):
    """Says whether passages answer questions, as a person with the passage before them would."""

    def answers(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """For each (question, passage's whole text): yes, no, or None where no judgement could be had."""


def hashed(*parts: str) -> str:
    """Sixteen hexadecimal digits of a SHA-256 over texts; their borders count."""
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{len(part.encode())}:".encode() + part.encode())
    return found.hexdigest()[:16]
