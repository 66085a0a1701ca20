"""Finds texts that are the same but for small changes. Called by `splits` and by mining; knows nothing of either.

All pairs are found, without comparing all: near texts share some of their rarer n-grams (after All-Pairs; Bayardo, Ma
and Srikant, 2007), so that each text is compared with those alone that stand in the same short lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from embexp.parallel.machine import threads

BANDS = 2.0 ** np.arange(2, 31)  # n-grams by how often they stand in the texts: up to 4, 8, 16, ... times
LEFT_AT_ONCE, RIGHT_AT_ONCE = 4_000, 8_000  # texts; so few that their sums stay in the processor's cache
ROUNDING = 1e-6
CANDIDATE_ROUNDING = 1e-4  # candidates are found in single precision

Pairs = np.ndarray  # (pairs, 2): places of texts


def near_duplicates(
    left: Mapping[str, str], right: Mapping[str, str], *, threshold: float
) -> Iterator[tuple[str, str]]:
    """Pairs of ids (left, right) whose texts are the same but for small changes.

    Texts are compared without case and punctuation by the cosine of their counts of character n-grams (3 to 5), which
    for two texts does not depend on any third; threshold 1 finds the same words, in any order. The time grows with the
    texts and with how long the lists of their rarer n-grams are, which in one language is more than linear.
    """
    if not left or not right:
        return
    texts = _Texts.of([*left.values(), *right.values()], threshold=threshold)
    sides = np.arange(len(left)), np.arange(len(left), len(texts.sizes))
    found = [np.empty((0, 2), np.int64)]
    with ThreadPoolExecutor(threads()) as pool:  # the products leave Python's lock
        for block in _blocks(texts, *sides):
            found += pool.map(partial(_near, texts, block, threshold=threshold), texts.parts(block.left, LEFT_AT_ONCE))
    pairs = np.concatenate(found)
    left_ids, right_ids = list(left), list(right)
    for row, column in pairs[np.lexsort(pairs.T[::-1])].tolist():
        yield left_ids[row], right_ids[column - len(left)]


@dataclass(frozen=True)
class _Texts:
    """Texts as counts of words, and words as counts of n-grams.

    An n-gram never spans two words, so a text's n-grams are the sum of its words'. lengths: of a text's n-grams as a
    vector. bands: of each n-gram. levels: of each text the first band up to which its n-grams are enough to find it by;
    rest: (bands, texts) the share of its length that lies in later bands. sizes: how many different n-grams a text has;
    least: how many a text near it has at least.
    """

    words: Any
    ngrams: Any
    lengths: np.ndarray
    bands: np.ndarray
    levels: np.ndarray
    rest: np.ndarray
    sizes: np.ndarray
    least: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str], *, threshold: float) -> _Texts:
        words, ngrams = _counts(texts)
        # rarity is only the order in which n-grams are tried, so that counting some twice does no harm
        bands = np.searchsorted(BANDS, words.sum(axis=0) @ ngrams)
        squares = np.empty((len(BANDS), len(texts)), np.float32)  # by band
        sizes = np.empty(len(texts))
        for start in range(0, len(texts), 20_000):  # in pieces, so that memory stays flat
            counts = words[start : start + 20_000] @ ngrams
            here = np.diff(counts.indptr)
            places = bands[counts.indices] * len(here) + np.repeat(np.arange(len(here)), here)
            found = np.bincount(places, weights=counts.data**2, minlength=len(BANDS) * len(here))
            squares[:, start : start + 20_000] = found.reshape(len(BANDS), -1)
            sizes[start : start + 20_000] = here
        whole = squares.sum(axis=0)
        # of n n-grams, each there once, a text at 0.9 shares 0.81 n at least
        least = sizes - (1 - threshold**2) * whole
        shares = np.cumsum(squares, axis=0) / np.maximum(whole, 1)
        # two texts of which less than this is left over add less than the threshold there
        levels = np.argmax(shares >= 1 - 0.95 * threshold, axis=0)
        rest = np.sqrt(np.maximum(1 - shares, 0))
        return cls(words, ngrams, np.sqrt(np.maximum(whole, 1)), bands, levels, rest, sizes, least)

    def vectors(self, rows: np.ndarray, ngrams: Any) -> Any:
        """(rows, n-grams) float32: some texts, each of length 1 over all n-grams."""
        counts = self.words[rows] @ ngrams
        counts.data /= np.repeat(self.lengths[rows], np.diff(counts.indptr))
        return counts.astype(np.float32)

    def parts(self, rows: np.ndarray, at_once: int) -> list[np.ndarray]:
        """The rows in parts, by size."""
        ordered = rows[np.argsort(self.sizes[rows], kind="stable")]
        return [ordered[start : start + at_once] for start in range(0, len(ordered), at_once)]


@dataclass(frozen=True)
class _Block:
    """Texts to be compared in the n-grams up to a band; transposed: the right ones' vectors."""

    level: int
    ngrams: Any
    left: np.ndarray
    right: Sequence[np.ndarray]
    transposed: Sequence[Any]


def _blocks(texts: _Texts, left: np.ndarray, right: np.ndarray) -> Iterator[_Block]:
    """All pairs of texts, each once: in the n-grams up to the later of their two bands."""
    for level in np.unique(texts.levels).tolist():
        ngrams = texts.ngrams[:, np.flatnonzero(texts.bands <= level)]
        own, earlier = texts.levels == level, texts.levels < level
        for some, others in ((own[left], (own | earlier)[right]), (earlier[left], own[right])):
            if some.any() and others.any():
                parts = texts.parts(right[others], RIGHT_AT_ONCE)
                transposed = [texts.vectors(part, ngrams).T.tocsr() for part in parts]
                yield _Block(level, ngrams, left[some], parts, transposed)


def _near(texts: _Texts, block: _Block, rows: np.ndarray, *, threshold: float) -> Pairs:
    """The near pairs of some of a block's left texts."""
    rest = texts.rest[block.level]
    vectors = texts.vectors(rows, block.ngrams)
    found = [np.empty((0, 2), np.int64)]
    for part, transposed in zip(block.right, block.transposed, strict=True):
        if texts.least[rows].min() > texts.sizes[part[-1]] or texts.least[part].min() > texts.sizes[rows[-1]]:
            continue
        common = vectors @ transposed
        # the later n-grams add no more than the product of what is left of both
        places = np.flatnonzero(common.data >= threshold - rest[rows].max() * rest[part].max() - CANDIDATE_ROUNDING)
        one, other = rows[np.searchsorted(common.indptr, places, side="right") - 1], part[common.indices[places]]
        possible = common.data[places] + rest[one] * rest[other] >= threshold - CANDIDATE_ROUNDING
        found.append(_compared(texts, one[possible], other[possible], threshold=threshold))
    return np.concatenate(found)


def _compared(texts: _Texts, left: np.ndarray, right: np.ndarray, *, threshold: float) -> Pairs:
    """Those of the pairs whose cosine is the threshold or more."""
    near = [np.empty(0, bool)]
    for start in range(0, len(left), 20_000):
        rows, others = left[start : start + 20_000], right[start : start + 20_000]
        common = (texts.words[rows] @ texts.ngrams).multiply(texts.words[others] @ texts.ngrams).sum(axis=1)
        cosines = np.asarray(common).ravel() / texts.lengths[rows] / texts.lengths[others]
        near.append(cosines >= threshold - ROUNDING)
    return np.stack([left, right], axis=1)[np.concatenate(near)]


def _counts(texts: Sequence[str]) -> tuple[Any, Any]:
    """(texts, words) and (words, n-grams): how often each stands in the other."""
    import pyarrow
    import pyarrow.compute
    from scipy import sparse
    from sklearn.feature_extraction.text import HashingVectorizer  # slow to import; needed only with data at hand

    lists = pyarrow.compute.utf8_split_whitespace(pyarrow.array(map(_normal, texts), pyarrow.large_string()))
    found = lists.flatten().dictionary_encode()
    columns, ends = (np.array(values, np.int32) for values in (found.indices, lists.offsets))
    shape = len(texts), len(found.dictionary)
    words = sparse.csr_array((np.ones(len(columns)), columns, ends), shape=shape)
    words.sum_duplicates()
    vectorizer = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), alternate_sign=False, norm=None)
    ngrams = vectorizer.transform(found.dictionary.to_pylist())
    used, found_at = np.unique(ngrams.indices, return_inverse=True)
    shape = ngrams.shape[0], len(used)
    return words, sparse.csr_array((ngrams.data, found_at.astype(np.int32), ngrams.indptr), shape=shape)


def _normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold())) or text.strip()
