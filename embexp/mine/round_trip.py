"""Does a question find its passage again? And which other passages answer it? Called by `funnel`.

A question that no search leads back to its passage is vague, or about something else (Alberti et al., 2019;
Promptagator, Dai et al., 2022, keeps what its retriever has first). Here the first 20 count, since a filter that wants
the first place leaves only what is easy already.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embexp.data.retrieval_set import RetrievalSet
from embexp.errors import UserError
from embexp.mine.passages import Judge, Passage, Question
from embexp.mine.sentences import KINDS as PSEUDO, without

if TYPE_CHECKING:
    from embexp.encoding.encoder import Encoder

REWORDED = ("problem",)  # kinds that avoid the words of their passage


@dataclass(frozen=True)
class RoundTrip:
    """How well a question must find its passage.

    | field        | meaning                                                                                    |
    |--------------|--------------------------------------------------------------------------------------------|
    | top          | among how many of the first passages it must be, for BM25 or for the model                 |
    | top_reworded | the same for problems, which avoid the passage's words, where BM25 alone searches and no   |
    |              | judge said that the passage answers; where one did they are not tried                      |
    | model        | an embedding model's folder or Hub id, not the one that is tuned: what that one finds      |
    |              | already is the least worth learning; null searches with BM25 alone                         |

    Pseudo-queries must find what is left of their passage without their own words; that drops many where passages are
    short, and training on the rest gives as much in less time (benchmarks/README.md).
    """

    top: int = 20
    top_reworded: int = 100
    model: str | None = None

    def __post_init__(self) -> None:
        for name in ("top", "top_reworded"):
            if getattr(self, name) < 1:
                raise UserError(f"filter.round_trip.{name}={getattr(self, name)} must be a whole number from 1 up")

    def lost(
        self, questions: Sequence[Question], places: Mapping[str, int], answered: frozenset[str]
    ) -> dict[str, str]:
        """Question id -> why it goes. places: from `places`. answered: questions that a judge said yes to."""
        reasons = {}
        for question in questions:
            reworded = question.kind in REWORDED and self.model is None
            top = self.top_reworded if reworded else self.top
            if places[question.id] > top and not (reworded and question.id in answered):
                reasons[question.id] = f"its passage comes at place {places[question.id]}, after the first {top}"
        return reasons


@dataclass(frozen=True)
class Search:
    """Questions over the passages as they are trained on: without the words of pseudo-queries, or finding one would be
    no wonder. Passages with the same text count as one."""

    data: RetrievalSet

    @staticmethod
    def over(questions: Sequence[Question], passages: Mapping[str, Passage]) -> Search:
        """Any of a question's passages, and of those with the same text, counts as found."""
        spans: dict[str, list[str]] = defaultdict(list)
        for question in questions:
            for key in (question.passage, *question.also) if question.cloze else ():
                spans[key].append(question.span)
        corpus = {key: without(passage, spans.get(key, ())) for key, passage in passages.items()}
        copies: dict[str, list[str]] = defaultdict(list)
        for key, passage in passages.items():
            copies[passage.whole].append(key)
        qrels = {
            question.id: dict.fromkeys(
                (copy for key in (question.passage, *question.also) for copy in copies[passages[key].whole]), 1
            )
            for question in questions
        }
        queries = {question.id: question.text for question in questions}
        return Search(RetrievalSet(queries, corpus, qrels, {}))

    def by_keywords(self) -> dict[str, int]:
        """Question id -> the place of its first passage by BM25, from 1."""
        from embexp.evaluation.search import keyword_scores

        return self._places(keyword_scores(self.data))

    def by_model(self, encoder: Encoder) -> dict[str, int]:
        """Question id -> the place of its first passage by an embedding model, from 1."""
        from embexp.evaluation.search import cosine_scores

        return self._places(cosine_scores(self.data, encoder))

    def _places(self, scores: Iterator[np.ndarray]) -> dict[str, int]:
        """How many other passages score as high or higher, and one; a block of rows is held at a time."""
        column = {key: place for place, key in enumerate(self.data.corpus)}
        found: dict[str, int] = {}
        queries = iter(self.data.queries)
        for block in scores:
            for row, query in zip(block, queries, strict=False):
                own = [column[key] for key in self.data.qrels[query]]
                best = row[own].max()
                found[query] = 1 + int((row >= best).sum() - (row[own] >= best).sum())
        return found


def places(
    questions: Sequence[Question], passages: Mapping[str, Passage], *, model: str | None
) -> tuple[dict[str, int], dict[str, int]]:
    """Question id -> the place of its passage, by BM25 and by the better of BM25 and the model."""
    if not questions:
        return {}, {}
    search = Search.over(questions, passages)
    keywords = search.by_keywords()
    if model is None:
        return keywords, keywords
    vectors = search.by_model(encoder_of(model))
    return keywords, {key: min(place, vectors[key]) for key, place in keywords.items()}


def complete(
    questions: Sequence[Question],
    passages: Mapping[str, Passage],
    judge: Judge,
    *,
    top: int,
    model: str | None = None,
) -> dict[str, tuple[str, ...]]:
    """Question id -> other passages that a judge says answer it too, of the first `top` by BM25 and by the model.

    As Gecko (Lee et al., 2024) does with the 20 nearest passages: the one that a question was written from need not be
    the only one that answers, and one that does is no negative. Pseudo-queries are no questions and are passed over.
    """
    asked = [question for question in questions if question.kind not in PSEUDO]
    if not asked or top < 1:
        return {}
    from embexp.evaluation.search import BM25, Arm, Dense

    search = Search.over(asked, passages)
    arms: list[Arm] = [BM25(), *([Dense(encoder_of(model))] if model else [])]
    pairs: list[tuple[str, str]] = []
    for arm in arms:
        most = top + max(len(grades) for grades in search.data.qrels.values())
        for query, hits in arm.search(search.data, top=most).items():
            others = [key for key, _ in hits if key not in search.data.qrels[query]]
            pairs += [(query, key) for key in others[:top]]
    pairs = list(dict.fromkeys(pairs))
    said = judge.answers([(search.data.queries[query], passages[key].whole) for query, key in pairs])
    found: dict[str, list[str]] = defaultdict(list)
    for (query, key), answers in zip(pairs, said, strict=True):
        if answers:
            found[query].append(key)
    return {query: tuple(keys) for query, keys in found.items()}


def encoder_of(model: str) -> Encoder:
    """An embedding model that is not the one tuned. Raises UserError when it can't be had."""
    from embexp.encoding.encoder import Encoder
    from embexp.models.embedding_model import Transformer

    class Judging(Transformer):
        """The filter's own."""

        SETTING = "filter.round_trip.model"

    loaded = Judging(path=model).load([])
    return Encoder(loaded, progress="round trip", content=loaded.origin["content"])
