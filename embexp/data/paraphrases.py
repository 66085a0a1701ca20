"""Drops train queries that ask what a dev or test query asks in other words.

`splits` finds copies by their letters; this looks at the meaning, by the base model's embeddings. Called by
`preparing` before rows are made; dev and test are never changed, so that runs compare.
"""

from __future__ import annotations

import logging

import numpy as np

from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.encoding.embedding import Embeddings
from embexp.encoding.encoder import Encoder
from embexp.errors import UserError, counted

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 2048  # of either side: 17 MB of cosines, however long the sides are


def without_paraphrases(
    train: RetrievalSet, splits: Splits, encoder: Encoder, *, threshold: float | None
) -> RetrievalSet:
    """Train without the queries whose cosine with a dev or test query is `threshold` or more; null keeps all.

    The encoder's model must be a trained one: random vectors are near wherever words are shared. Raises UserError when
    more than half of train would go.
    """
    held_out = [*splits.dev.queries.values(), *(splits.test.queries[query] for query in splits.judged)]
    if threshold is None or not train.queries or not held_out:
        return train
    near = similar(encoder.queries(list(train.queries.values())), encoder.queries(held_out), threshold=threshold)
    if 2 * int(near.sum()) > len(near):
        raise UserError(
            f"paraphrase={threshold}: {int(near.sum())} of {len(near)} train queries are this near to a dev or test "
            "query in the base model's eyes. Raise it (at most 1), or set paraphrase=null if the data rightly repeats"
        )
    if near.any():
        left_out = counted(int(near.sum()), "train query", "train queries")
        log.info("%s left out: dev or test asks the same (cosine %s or more)", left_out, threshold)
    return train.with_queries(query for query, is_near in zip(train.queries, near, strict=True) if not is_near)


def similar(left: Embeddings, right: Embeddings, *, threshold: float) -> np.ndarray:
    """For each row of `left` whether a row of `right` has this cosine or more once their common mean is taken off.

    Models differ in how near they put any two texts (E5 0.7 and more); without the mean one threshold fits them. Both
    sides are read in blocks and never copied whole.
    """
    mean = common_mean(left, right)
    nearest = np.full(len(left), -1.0, dtype=np.float32)
    for start in range(0, len(left), ROWS_AT_ONCE):
        rows, best = centred(left[start : start + ROWS_AT_ONCE], mean), nearest[start : start + ROWS_AT_ONCE]
        for other in range(0, len(right), ROWS_AT_ONCE):
            beside = centred(right[other : other + ROWS_AT_ONCE], mean)
            np.maximum(best, (rows @ beside.T).max(axis=1), out=best)
    return nearest >= threshold - 1e-6


def common_mean(left: Embeddings, right: Embeddings) -> np.ndarray:
    """(dimensions) of the rows of both sides."""
    total = left.sum(axis=0, dtype=np.float64) + right.sum(axis=0, dtype=np.float64)
    return (total / (len(left) + len(right))).astype(np.float32)


def centred(rows: Embeddings, mean: np.ndarray) -> Embeddings:
    """The rows without the mean, at length 1; one that is the mean itself stays zero."""
    moved = rows - mean
    moved /= np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)
    return moved
