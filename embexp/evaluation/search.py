"""Finds passages: exact search over embeddings, BM25, or both. Called by `evaluators`, `negatives` and `teachers`."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import bm25s
import numpy as np
import torch

from embexp import libraries
from embexp.cache import arrays_kept, digest
from embexp.data.retrieval_set import RetrievalSet
from embexp.encoding.embedding import Embeddings
from embexp.encoding.encoder import Encoder
from embexp.evaluation import rough
from embexp.evaluation.ranking import GROUP, NEVER, First, Ranking

libraries.quiet("bm25s")

CELLS_AT_ONCE = 64_000_000  # scores held in memory at once: 256 MB of float32
KEYWORD_CELLS_AT_ONCE = 16_000_000
PASSAGES_AT_ONCE = 65_536
FUSED = 100  # passages of each ranking that are fused
SMOOTHING = 60  # the k of reciprocal rank fusion, as published

Without = Mapping[str, Collection[str]]  # query id -> passages that are not ranked for it


class Arm(Protocol):
    """Something that ranks passages; `encoder` is None where it has no embeddings."""

    encoder: Encoder | None

    def search(self, retrieval_set: RetrievalSet, *, top: int) -> Ranking:
        """Rank the corpus for every query, `top` passages each."""


class Dense:
    """Exact search by cosine similarity."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder: Encoder | None = encoder

    def search(self, retrieval_set: RetrievalSet, *, top: int, without: Without | None = None) -> Ranking:
        """Rank by cosine; see `ranking` for ties, and `First` for what is left out."""
        assert self.encoder is not None
        passages = self.encoder.passages(list(retrieval_set.corpus.values()))
        queries = self.encoder.queries(list(retrieval_set.queries.values()))
        return nearest(retrieval_set, queries, passages, top=top, device=self.encoder.device, without=without)


class BM25:
    """Keyword search with bm25s (Lù, 2024) at its defaults; words are lower-cased runs of word characters."""

    encoder: Encoder | None = None

    def __init__(self) -> None:
        self._index: KeywordIndex | None = None  # of the corpus that was searched last; dev and test often share one

    def search(self, retrieval_set: RetrievalSet, *, top: int, without: Without | None = None) -> Ranking:
        """Rank by BM25; passages that share no word with the query are not ranked, nor what is to be left out."""

        def make() -> dict[str, np.ndarray]:
            if self._index is None or self._index.corpus != retrieval_set.corpus:
                self._index = KeywordIndex(retrieval_set.corpus)
            scores = self._index.scores(list(retrieval_set.queries.values()))
            found = ranked(retrieval_set, _sharing_words(scores), top=top, without=without)
            return {"places": found.places, "scores": found.scores, "lowest": found.lowest}

        left_out = {query: sorted(passages) for query, passages in (without or {}).items()}
        found = arrays_kept("bm25", [retrieval_set.digest, top, digest(left_out)], make)
        return Ranking(list(retrieval_set.queries), list(retrieval_set.corpus), **found)


class Hybrid:
    """Two arms whose rankings are fused by rank; it has no embeddings of its own."""

    encoder: Encoder | None = None

    def __init__(self, keyword: Arm, model: Arm) -> None:
        """model: whose order decides between equal sums."""
        self._keyword, self._model = keyword, model

    def search(self, retrieval_set: RetrievalSet, *, top: int) -> Ranking:
        """Rank by both; see `fused`."""
        deep = max(top, FUSED)
        found = [arm.search(retrieval_set, top=deep) for arm in (self._model, self._keyword)]
        return fused(*found, top=top)


def fused(first: Ranking, second: Ranking, *, top: int) -> Ranking:
    """Reciprocal rank fusion of two rankings of the same queries and corpus (Cormack, Clarke and Buettcher, 2009).

    A passage scores the sum of 1 / (60 + its rank) over the rankings that hold it, ranks from 1. Two rankings often
    give equal sums; then the one that `first` ranks higher comes first, as a search engine could do too. `lowest` is of
    no use here, and infinite.
    """
    passages, (rows, columns) = len(first.passage_ids), np.nonzero(first.places >= 0)
    other_rows, other_columns = np.nonzero(second.places >= 0)
    pairs = np.concatenate([
        rows * passages + first.places[rows, columns], other_rows * passages + second.places[other_rows, other_columns]
    ])  # fmt: skip
    ranks = np.concatenate([columns, other_columns]) + 1
    numbers, pair_of = np.unique(pairs, return_inverse=True)
    scores = np.bincount(pair_of, weights=1 / (SMOOTHING + ranks), minlength=len(numbers))
    in_first = np.full(len(numbers), passages)
    in_first[pair_of[: len(rows)]] = columns  # those that it lacks come after, in the order of the other
    row_of, place_of = np.divmod(numbers, passages)
    order = np.lexsort((in_first, -scores.round(12), row_of))
    row_of, place_of, scores = row_of[order], place_of[order], scores[order]
    rank = np.arange(len(order)) - np.searchsorted(row_of, row_of)
    kept, width = rank < top, min(top, passages)
    places = np.full((len(first.query_ids), width), -1)
    found = np.full(places.shape, NEVER, dtype=np.float32)
    places[row_of[kept], rank[kept]], found[row_of[kept], rank[kept]] = place_of[kept], scores[kept]
    unknown = np.full(len(places), np.inf, dtype=np.float32)
    return Ranking(first.query_ids, first.passage_ids, places, found, unknown)


def nearest(
    retrieval_set: RetrievalSet,
    queries: Embeddings,
    passages: Embeddings,
    *,
    top: int,
    device: str | torch.device = "cpu",
    without: Without | None = None,
) -> Ranking:
    """The `top` passages of each query by the product of their embeddings, a row for each in the set's order.

    Passages are read once, in blocks, so that they may be a memory map that is larger than memory. `rough` finds the
    same sooner, where it pays. Else all products have one shape: where a library sums in another order for another
    shape, equal passages would not score alike.
    """
    first = First(retrieval_set, top=top, device=device, without=without)
    parts = math.ceil(len(passages) / PASSAGES_AT_ONCE)
    width = min(len(passages), math.ceil(len(passages) / parts / GROUP) * GROUP)
    left = torch.from_numpy(queries).to(device)
    if rough.pays(len(passages), top=top, device=device):
        for start in range(0, len(passages), width):
            rough.add(first, left, torch.from_numpy(passages[start : start + width]), place=start)
        return first.ranking()
    height = max(1, min(len(left), CELLS_AT_ONCE // width))
    room = torch.full((height, math.ceil(width / GROUP) * GROUP), NEVER, device=device)
    for start in range(0, len(passages), width):
        place = min(start, len(passages) - width)  # the last block begins in the one before it
        right = torch.from_numpy(passages[place : place + width]).to(device)
        for row in range(0, len(left), height):
            scores = room[: len(left) - row]
            torch.mm(left[row : row + height], right.T, out=scores[:, :width])
            scores[:, : start - place] = NEVER
            first.add(scores, row=row, place=place)
    return first.ranking()


def ranked(
    retrieval_set: RetrievalSet, scores: Iterable[np.ndarray], *, top: int, without: Without | None = None
) -> Ranking:
    """The `top` passages per query from float32 blocks of shape (some queries, all passages), in the queries' order."""
    first, row = First(retrieval_set, top=top, without=without), 0
    for block in scores:
        first.add(torch.from_numpy(block), row=row, place=0)
        row += len(block)
    return first.ranking()


def cosine_scores(retrieval_set: RetrievalSet, encoder: Encoder) -> Iterator[np.ndarray]:
    """Blocks of (some queries, passages) cosines, in the queries' order."""
    passages = encoder.passages(list(retrieval_set.corpus.values()))
    queries = encoder.queries(list(retrieval_set.queries.values()))
    block = max(1, CELLS_AT_ONCE // len(passages))
    return (queries[start : start + block] @ passages.T for start in range(0, len(queries), block))


def keyword_scores(retrieval_set: RetrievalSet) -> Iterator[np.ndarray]:
    """Blocks of (some queries, passages) BM25 scores, float32, in the queries' order."""
    return KeywordIndex(retrieval_set.corpus).scores(list(retrieval_set.queries.values()))


class KeywordIndex:
    """bm25s's index of a corpus, passage id -> text."""

    def __init__(self, corpus: Mapping[str, str]) -> None:
        self.corpus = corpus
        self._index = bm25s.BM25()
        self._index.index(_tokens(list(corpus.values()), return_ids=True), show_progress=False)

    def scores(self, queries: Sequence[str]) -> Iterator[np.ndarray]:
        """Blocks of (some queries, passages) scores, float32, in the queries' order, made by torch's threads."""
        known = self._index.vocab_dict
        words = [[word for word in query if word in known] for query in _tokens(queries, return_ids=False)]
        height = max(1, KEYWORD_CELLS_AT_ONCE // len(self.corpus))
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # a run's share of the cores
            for start in range(0, len(words), height):
                yield np.stack(list(pool.map(self._row, words[start : start + height])))

    @property
    def nbytes(self) -> int:
        """Of its arrays; the words themselves are not counted."""
        return sum(part.nbytes for part in self._index.scores.values() if isinstance(part, np.ndarray))

    def _row(self, words: list[str]) -> np.ndarray:
        return np.asarray(self._index.get_scores(words)) if words else np.zeros(len(self.corpus), np.float32)


def _sharing_words(scores: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Without the passages that share no word with the query."""
    return (np.where(block > 0, block, np.float32(NEVER)) for block in scores)


def _tokens(texts: Sequence[str], *, return_ids: bool) -> Any:
    return bm25s.tokenize(texts, token_pattern=r"\w+", stopwords=None, return_ids=return_ids, show_progress=False)
