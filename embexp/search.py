"""Rankings: for each query the top passages, by exact search over embeddings or by BM25. Called by `evaluators`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import bm25s
import numpy as np

from embexp.cache import json_kept
from embexp.encoding import Encoder
from embexp.retrieval_set import RetrievalSet

Ranking = Mapping[str, Sequence[tuple[str, float]]]  # query id -> (passage id, score), best first

CELLS_AT_ONCE = 32_000_000  # scores held in memory at once: 128 MB of float32


class Arm(Protocol):
    """Something that ranks passages; `encoder` is None where it has no embeddings."""

    encoder: Encoder | None

    def search(self, retrieval_set: RetrievalSet, *, top: int) -> Ranking:
        """Rank the corpus for every query, `top` passages each."""


class Dense:
    """Exact search by cosine similarity."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder: Encoder | None = encoder

    def search(self, retrieval_set: RetrievalSet, *, top: int) -> Ranking:
        """Rank by cosine; see `ranked` for ties."""
        assert self.encoder is not None
        return ranked(retrieval_set, cosine_scores(retrieval_set, self.encoder), top=top)


class BM25:
    """Keyword search with bm25s (Lù, 2024) at its defaults; words are lower-cased runs of word characters."""

    encoder: Encoder | None = None

    def search(self, retrieval_set: RetrievalSet, *, top: int) -> Ranking:
        """Rank by BM25; passages that share no word with the query are not ranked."""
        found = json_kept("bm25", [retrieval_set.digest, top], lambda: self._ranking(retrieval_set, top))
        return {query: [(passage, score) for passage, score in hits] for query, hits in found.items()}

    def _ranking(self, retrieval_set: RetrievalSet, top: int) -> Ranking:
        ranking = ranked(retrieval_set, keyword_scores(retrieval_set), top=top)
        return {query: [(passage, score) for passage, score in hits if score > 0] for query, hits in ranking.items()}


def cosine_scores(retrieval_set: RetrievalSet, encoder: Encoder) -> Iterator[np.ndarray]:
    """Blocks of (some queries, passages) cosines, in the queries' order."""
    passages = encoder.passages(list(retrieval_set.corpus.values()))
    queries = encoder.queries(list(retrieval_set.queries.values()))
    block = max(1, CELLS_AT_ONCE // len(passages))
    return (queries[start : start + block] @ passages.T for start in range(0, len(queries), block))


def keyword_scores(retrieval_set: RetrievalSet) -> Iterator[np.ndarray]:
    """For each query in turn the BM25 scores of all passages, (1, passages)."""
    index = bm25s.BM25()
    index.index(_tokens(list(retrieval_set.corpus.values())), show_progress=False)
    for words in _tokens(list(retrieval_set.queries.values())):
        known = [word for word in words if word in index.vocab_dict]
        yield np.atleast_2d(index.get_scores(known) if known else np.zeros(len(retrieval_set.corpus)))


def _tokens(texts: list[str]) -> list[list[str]]:
    return bm25s.tokenize(texts, token_pattern=r"\w+", stopwords=None, return_ids=False, show_progress=False)


def ranked(retrieval_set: RetrievalSet, scores: Iterator[np.ndarray], *, top: int) -> Ranking:
    """The `top` passages per query from score blocks of shape (some queries, all passages), in the queries' order.

    Among equal scores passages that are not relevant come first, then by id: a tie never flatters.
    """
    passage_ids = list(retrieval_set.corpus)
    by_id = {passage: place for place, passage in enumerate(sorted(passage_ids))}
    query_ids = iter(retrieval_set.queries)
    ranking: dict[str, list[tuple[str, float]]] = {}
    for block in scores:
        kth = max(0, len(passage_ids) - top)
        thresholds = np.partition(block, kth, axis=1)[:, kth]
        for row, threshold, query in zip(block, thresholds, query_ids, strict=False):
            relevant = set(retrieval_set.relevant(query))
            hits = [(float(row[place]), passage_ids[place]) for place in np.flatnonzero(row >= threshold)]
            hits.sort(key=lambda hit: (-hit[0], hit[1] in relevant, by_id[hit[1]]))
            ranking[query] = [(passage, score) for score, passage in hits[:top]]
    return ranking


if __name__ == "__main__":  # python -m embexp.search RUN "question"
    import runpy

    runpy.run_module("embexp.ask", run_name="__main__", alter_sys=True)
