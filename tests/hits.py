"""Rankings written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from embexp.evaluation.ranking import Ranking


def ranking_of(hits: Mapping[str, Sequence[str]], corpus: Sequence[str]) -> Ranking:
    """Query id -> its first passages, scored 1, 1/2, 1/3, ..."""
    longest = max(map(len, hits.values()))
    places = np.full((len(hits), longest), -1)
    scores = np.full((len(hits), longest), -np.inf, dtype=np.float32)
    for row, passages in enumerate(hits.values()):
        places[row, : len(passages)] = [list(corpus).index(passage) for passage in passages]
        scores[row, : len(passages)] = [1 / rank for rank in range(1, len(passages) + 1)]
    return Ranking(list(hits), list(corpus), places, scores, lowest=np.full(len(hits), np.inf, dtype=np.float32))
