"""Do two groups of documents have the same embeddings, but for chance? A kernel two-sample test over documents.

The maximum mean discrepancy (Gretton et al., 2012, A Kernel Two-Sample Test) with a Gaussian kernel at the median
distance. Passages of one document are not exchangeable, so the document is the unit: the kernel of two documents is the
mean over their passages' pairs, which weighs each document alike, and labels are permuted over documents. The estimate
is the unbiased one, without a document's kernel with itself. In benchmarks/drift.py it finds more than the same over
passages and than a classifier's AUC. Called by `shift`; knows nothing of texts or models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST_FOR_MEDIAN = 2000  # passages whose distances give the median
AT_ONCE = 500  # permutations


@dataclass(frozen=True)
class Tested:
    """statistic: the squared discrepancy, which is near 0 (or below) without a shift, and at most 2. p_value: the share
    of permutations with as large a one, this one included."""

    statistic: float
    p_value: float


def kernel_of(rows: np.ndarray, document_of: np.ndarray) -> np.ndarray:
    """(documents, documents): mean kernels of unit vectors, (passages, dimensions). document_of: row -> document."""
    squared = np.maximum(2 - 2 * (rows @ rows.T), 0)
    some = squared[:: max(1, len(rows) // MOST_FOR_MEDIAN), :: max(1, len(rows) // MOST_FOR_MEDIAN)]
    median = float(np.median(some[np.triu_indices(len(some), 1)]))
    kernel = np.exp(squared / -max(median, 1e-6))  # all the same: no bandwidth is right, and none finds a shift
    sizes = np.bincount(document_of)
    member = np.zeros((len(sizes), len(rows)), dtype=np.float32)
    member[document_of, np.arange(len(rows))] = 1 / sizes[document_of]
    return np.asarray(member @ kernel @ member.T, dtype=np.float64)


def tested(kernel: np.ndarray, is_new: np.ndarray, *, permutations: int, seed: int) -> Tested:
    """Test whether the documents that are new differ from the others. Both sides need two at least."""
    assert 2 <= is_new.sum() <= len(is_new) - 2, "a side of fewer than two documents has no discrepancy"
    rng = np.random.default_rng(seed)
    between = kernel - np.diag(np.diag(kernel))
    found = float(_discrepancies(between, is_new[None].astype(float))[0])
    as_large = 1
    for start in range(0, permutations, AT_ONCE):
        size = min(AT_ONCE, permutations - start)
        labels = rng.permuted(np.tile(is_new.astype(float), (size, 1)), axis=1)
        as_large += int((_discrepancies(between, labels) >= found - 1e-12).sum())
    return Tested(found, as_large / (permutations + 1))


def _discrepancies(between: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One for each row of labels; between: the kernel with zeros where a document meets itself."""
    new, others = labels.sum(axis=1), (1 - labels).sum(axis=1)
    sums = labels @ between
    inside = (sums * labels).sum(axis=1)
    across = (sums * (1 - labels)).sum(axis=1)
    outside = between.sum() - inside - 2 * across
    return np.asarray(inside / (new * (new - 1)) + outside / (others * (others - 1)) - 2 * across / (new * others))
