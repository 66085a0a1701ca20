"""The passages that a model finds for one question, and whether the data knows the answer. Called by `search`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from embexp.encoding import Encoder
from embexp.retrieval_set import Splits
from embexp.splits import asked


@dataclass(frozen=True)
class Known:
    """A question of the data: train, dev or test; its slice, in test; the ids of the passages that answer it."""

    side: str
    query: str
    slice: str | None
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Hit:
    """A passage that was found, with its cosine; known: whether the data say that it answers."""

    place: int
    passage: str
    score: float
    known: bool
    text: str


@dataclass(frozen=True)
class Found:
    """The first passages, and the place of every known answer in the whole corpus, from 1."""

    hits: list[Hit]
    places: Mapping[str, int]


class Finder:
    """Searches a corpus that is embedded once."""

    def __init__(self, encoder: Encoder, corpus: Mapping[str, str]) -> None:
        self._encoder, self._texts = encoder, corpus
        self._ids = list(corpus)
        self._row = {passage: row for row, passage in enumerate(self._ids)}
        self._vectors = encoder.passages(list(corpus.values()))

    def find(self, question: str, *, top: int, answers: Collection[str] = ()) -> Found:
        """The `top` passages for a question; among equal scores known answers come last, then by id, as in a run."""
        scores = self._vectors @ self._encoder.queries([question])[0]
        kept = np.flatnonzero(scores >= np.partition(scores, -min(top, len(scores)))[-min(top, len(scores))])
        order = sorted(kept.tolist(), key=lambda row: (-scores[row], self._ids[row] in answers, self._ids[row]))[:top]
        hits = [
            Hit(place, self._ids[row], float(scores[row]), self._ids[row] in answers, self._texts[self._ids[row]])
            for place, row in enumerate(order, start=1)
        ]
        rows = {answer: self._row[answer] for answer in sorted(answers) if answer in self._row}
        return Found(hits, {answer: _place(scores, answer, rows) for answer in rows})


def _place(scores: np.ndarray, answer: str, rows: Mapping[str, int]) -> int:
    """Where a known answer stands among all passages; rows: those of all known answers, sorted by id."""
    own = scores[rows[answer]]
    later = [row for other, row in rows.items() if other >= answer and scores[row] == own]  # itself too
    return 1 + int((scores >= own).sum()) - len(later)


def known_questions(splits: Splits) -> dict[str, Known]:
    """The data's questions by their words; one that stands on two sides counts for test, then dev."""
    slice_of = {query: name for name, queries in splits.slices.items() for query in queries}
    known = {}
    for side, data in (("train", splits.train), ("dev", splits.dev), ("test", splits.test)):
        for query, text in data.queries.items():
            part = slice_of.get(query) if side == "test" else None
            known[asked(text)] = Known(side, query, part, tuple(data.relevant(query)))
    return known
