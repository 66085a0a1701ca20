"""Which rows may not share a batch, since one shows a passage that is relevant to the other's query.

Called by `batches` to keep them apart and by `trainer` to mask those that could not be. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from embexp.data.retrieval_set import RetrievalSet
from embexp.rows.shapes import Rows


@dataclass(frozen=True)
class _Entries:
    """(row, passage) pairs by number, sorted by row; starts: (rows + 1) where each row's begin."""

    rows: np.ndarray
    passages: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray, *, rows: int, passages: int) -> _Entries:
        """From row * passages + passage, each once and sorted."""
        row, passage = np.divmod(keys, max(1, passages))
        return cls(row.astype(np.int32), passage.astype(np.int32), np.searchsorted(row, np.arange(rows + 1)))

    def of_row(self, row: int) -> list[int]:
        """Its passages."""
        return self.passages[self.starts[row] : self.starts[row + 1]].tolist()


@dataclass(frozen=True)
class Conflicts:
    """Which rows may not share a batch: one shows a passage that is relevant to the other's query.

    Only passages that can make a conflict are kept, so that data without any costs nothing. touched: shown or relevant.
    """

    shown: _Entries
    relevant: _Entries
    touched: _Entries

    @classmethod
    def of(cls, rows: Rows, retrieval_set: RetrievalSet) -> Conflicts:
        """Read them from the qrels, by passage id; rows with labels of their own have none."""
        if rows.labelled:
            return cls.between_ids([()] * len(rows), [()] * len(rows))
        relevant = {query: retrieval_set.relevant(query) for query in set(rows.query_ids)}
        return cls.between_ids(rows.passage_ids, [relevant[query] for query in rows.query_ids])

    @classmethod
    def between_ids(cls, shown: Sequence[Iterable[str]], relevant: Sequence[Iterable[str]]) -> Conflicts:
        """By the ids of the passages that each row shows, and that are relevant to its query."""
        places: dict[str, int] = {}
        numbers = [[places.setdefault(one, len(places)) for ids in side for one in ids] for side in (shown, relevant)]
        size = {"rows": len(shown), "passages": len(places)}
        keys = []
        for side, found in zip((shown, relevant), numbers, strict=True):
            rows = np.repeat(np.arange(len(side)), [len(tuple(ids)) for ids in side])
            keys.append(np.unique(rows * len(places) + np.array(found, np.int64)))
        union = np.union1d(*keys)
        counts = [np.bincount(part % max(1, len(places)), minlength=len(places)) for part in (*keys, union)]
        contested = (counts[0] > 0) & (counts[1] > 0) & (counts[2] > 1)
        kept = [part[contested[part % max(1, len(places))]] for part in (*keys, union)]
        return cls(*(_Entries.of(part, **size) for part in kept))

    def between(self, left: int, right: int) -> bool:
        """Whether two rows conflict."""
        return not (
            set(self.shown.of_row(left)).isdisjoint(self.relevant.of_row(right))
            and set(self.shown.of_row(right)).isdisjoint(self.relevant.of_row(left))
        )

    def mask(self, rows: Sequence[int]) -> torch.Tensor | None:
        """(rows, rows) bool, true where two different rows of a batch conflict; None where none do."""
        shown = [set(self.shown.of_row(row)) for row in rows]
        asked = [[a for a in range(len(rows)) if not shown[a].isdisjoint(self.relevant.of_row(row))] for row in rows]
        pairs = [(a, b) for b, others in enumerate(asked) for a in others if a != b]
        if not pairs:
            return None
        mask = torch.zeros(len(rows), len(rows), dtype=torch.bool)
        for a, b in pairs:
            mask[a, b] = mask[b, a] = True
        return mask

    def count(self, batches: Sequence[Sequence[int]]) -> int:
        """How many rows share a batch with a conflicting row."""
        if not len(self.touched.rows):
            return 0
        batch = np.empty(len(self.shown.starts) - 1, np.int64)
        batch[np.concatenate(batches)] = np.repeat(np.arange(len(batches)), [len(rows) for rows in batches])
        passages = int(self.touched.passages.max()) + 1
        keys, rows = {}, {}
        for name, side in (("shown", self.shown), ("relevant", self.relevant)):
            keys[name] = batch[side.rows] * passages + side.passages
            rows[name] = side.rows.astype(np.int64) * passages + side.passages
        conflicting = []
        for own, other in (("shown", "relevant"), ("relevant", "shown")):
            found, times = np.unique(keys[other], return_counts=True)
            place = np.minimum(np.searchsorted(found, keys[own]), len(found) - 1)
            others = np.where(found[place] == keys[own], times[place], 0) - np.isin(rows[own], rows[other])
            conflicting.append(rows[own][others > 0] // passages)
        return len(np.unique(np.concatenate(conflicting)))

    def previous(self, order: np.ndarray) -> np.ndarray:
        """For each place of an order of all rows the last place before it of a row that it may conflict with, or -1."""
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        touched = self.touched
        keys = np.sort(touched.passages.astype(np.int64) * len(order) + place[touched.rows])
        passages, places = np.divmod(keys, max(1, len(order)))
        same = np.flatnonzero(passages[1:] == passages[:-1]) + 1
        found = np.full(len(order), -1, np.int64)
        np.maximum.at(found, places[same], places[same - 1])
        return found
