"""The passages that a model finds for one question, and whether the data knows the answer. Called by `search`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from embexp.data.retrieval_set import Splits
from embexp.data.splits import asked
from embexp.encoding.encoder import Encoder
from embexp.reranking.reordering import blended
from embexp.rows.teachers import Judge


@dataclass(frozen=True)
class Known:
    """A question of the data: train, dev or test; its slice, in test; the ids of the passages that answer it."""

    side: str
    query: str
    slice: str | None
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Hit:
    """A passage that was found, with its cosine, or what a reranker gives it; known: whether it answers by the data."""

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

    def __init__(
        self, encoder: Encoder, corpus: Mapping[str, str], *, scorer: Judge | None = None, depth: int = 0,
        weight: float = 1.0,
    ) -> None:  # fmt: skip
        """scorer: puts the first `depth` passages in another order, with this weight (`blended`); None leaves them."""
        self._encoder, self._texts, self._scorer, self._depth = encoder, corpus, scorer, depth
        self._weight = weight
        self._ids = list(corpus)
        self._row = {passage: row for row, passage in enumerate(self._ids)}
        self._vectors = encoder.passages(list(corpus.values()))

    def find(self, question: str, *, top: int, answers: Collection[str] = ()) -> Found:
        """The `top` passages for a question; among equal scores known answers come last, then by id, as in a run."""
        scores = self._vectors @ self._encoder.queries([question])[0]
        first = min(max(top, self._depth), len(scores))
        kept = np.flatnonzero(scores >= np.partition(scores, -first)[-first])
        order = self._ordered(dict(zip(kept.tolist(), scores[kept].tolist(), strict=True)), answers)[:first]
        if self._scorer is not None:
            order = self._again(self._scorer, question, order, answers)
        hits = [
            Hit(place, self._ids[row], score, self._ids[row] in answers, self._texts[self._ids[row]])
            for place, (row, score) in enumerate(order[:top], start=1)
        ]
        rows = {answer: self._row[answer] for answer in sorted(answers) if answer in self._row}
        places = {answer: _place(scores, answer, rows) for answer in rows}
        return Found(hits, places | {hit: place for place, hit in self._places(order) if hit in places})

    def _ordered(self, scores: Mapping[int, float], answers: Collection[str]) -> list[tuple[int, float]]:
        """Rows and their scores, best first."""
        return sorted(scores.items(), key=lambda one: (-one[1], self._ids[one[0]] in answers, self._ids[one[0]]))

    def _again(
        self, scorer: Judge, question: str, order: list[tuple[int, float]], answers: Collection[str]
    ) -> list[tuple[int, float]]:
        """The first ones by the scorer, with its weight; the others as they were."""
        rows, first = zip(*order[: self._depth], strict=True)
        judged = scorer([question] * len(rows), [self._texts[self._ids[row]] for row in rows])
        scores = blended(np.zeros(len(rows), dtype=int), np.array(first), judged, weight=self._weight)
        return self._ordered(dict(zip(rows, scores.tolist(), strict=True)), answers) + order[self._depth :]

    def _places(self, order: list[tuple[int, float]]) -> Iterator[tuple[int, str]]:
        return ((place, self._ids[row]) for place, (row, _) in enumerate(order, start=1))


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
