"""Finds texts that are the same but for small changes. Called by `splits` and by mining; knows nothing of either."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def near_duplicates(
    left: Mapping[str, str], right: Mapping[str, str], *, threshold: float
) -> Iterator[tuple[str, str]]:
    """Pairs of ids (left, right) whose texts are the same but for small changes.

    Texts are compared without case and punctuation by the cosine of their counts of character n-grams (3 to 5), which
    for two texts does not depend on any third; threshold 1 finds the same words, in any order.
    """
    from sklearn.feature_extraction.text import HashingVectorizer  # slow to import; needed only with data at hand

    if not left or not right:
        return
    left_ids, right_ids = list(left), list(right)
    left_texts = [_normal(left[key]) or " " for key in left_ids]
    right_texts = [_normal(right[key]) or " " for key in right_ids]
    vectorizer = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), alternate_sign=False)
    right_vectors = vectorizer.transform(right_texts)
    texts_with = np.bincount(right_vectors.indices, minlength=right_vectors.shape[1])
    columns = right_vectors.T.tocsr()
    rest = threshold / 2
    for start in range(0, len(left_ids), 1000):  # in pieces, so that memory stays flat
        block = vectorizer.transform(left_texts[start : start + 1000])
        # what is left out adds less than its length to a cosine: few pairs remain to be looked at whole
        partly = (_rarest(block, texts_with, rest=rest) @ columns).tocoo()
        rows, others = (axis[partly.data >= threshold - rest - 1e-6] for axis in (partly.row, partly.col))
        parts = np.array_split(np.arange(len(rows)), len(rows) // 100_000 + 1)
        whole = [block[rows[part]].multiply(right_vectors[others[part]]).sum(axis=1) for part in parts]
        near = np.concatenate([np.asarray(cosines).ravel() for cosines in whole]) >= threshold - 1e-6
        for row, column in sorted(zip(rows[near].tolist(), others[near].tolist(), strict=True)):
            yield left_ids[start + row], right_ids[column]


def _rarest(vectors: Any, texts_with: np.ndarray, *, rest: float) -> Any:
    """Rows (unit vectors, sparse) without their most common features, as many as together stay shorter than `rest`.

    Most of the work is in features that most texts have (after All-Pairs; Bayardo, Ma and Srikant, 2007).
    texts_with: how many texts have each feature.
    """
    found = vectors.tocoo()
    order = np.lexsort((texts_with[found.col], found.row))
    rows, columns, values = found.row[order], found.col[order], found.data[order]
    sums = np.cumsum(values**2)
    row_sums = sums[np.searchsorted(rows, rows, side="right") - 1]
    kept = row_sums - sums + values**2 >= rest**2 - 1e-9  # the length of this feature and the more common ones
    return type(found)((values[kept], (rows[kept], columns[kept])), shape=found.shape).tocsr()


def _normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold())) or text.strip()
