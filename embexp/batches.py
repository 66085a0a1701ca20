"""Builds each epoch's batches so that no row's positive or negative is relevant to another row's query.

In-batch losses take the other rows' passages as negatives. The library's own sampler compares strings only and drops
rows it can't place. Called by `training`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, product
from typing import Any

import torch
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    GISTEmbedLoss,
    MultipleNegativesRankingLoss,
)

from embexp.retrieval_set import RetrievalSet
from embexp.shapes import Rows

OPEN_BATCHES = 64  # how many unfilled batches a row is tried in
LENGTH_JITTER = 0.15  # rows within about this share of each other's length meet in other batches each epoch


@dataclass(frozen=True)
class Conflicts:
    """Which rows may not share a batch: one shows a passage that is relevant to the other's query."""

    shown: Sequence[frozenset[str]]
    relevant: Sequence[frozenset[str]]

    @classmethod
    def of(cls, rows: Rows, retrieval_set: RetrievalSet) -> Conflicts:
        """Read them from the qrels, by passage id; rows with labels of their own have none."""
        if rows.labelled:
            return cls([frozenset()] * len(rows), [frozenset()] * len(rows))
        relevant = {query: frozenset(retrieval_set.relevant(query)) for query in set(rows.query_ids)}
        return cls([frozenset(ids) for ids in rows.passage_ids], [relevant[query] for query in rows.query_ids])

    def between(self, left: int, right: int) -> bool:
        """Whether two rows conflict."""
        return not (
            self.shown[left].isdisjoint(self.relevant[right]) and self.shown[right].isdisjoint(self.relevant[left])
        )

    def mask(self, rows: Sequence[int]) -> torch.Tensor | None:
        """(rows, rows) bool, true where two different rows of a batch conflict; None where none do."""
        pairs = [(a, b) for a in range(len(rows)) for b in range(a) if self.between(rows[a], rows[b])]
        if not pairs:
            return None
        mask = torch.zeros(len(rows), len(rows), dtype=torch.bool)
        for a, b in pairs:
            mask[a, b] = mask[b, a] = True
        return mask

    def count(self, batches: Sequence[Sequence[int]]) -> int:
        """How many rows share a batch with a conflicting row."""
        conflicting = 0
        for rows in batches:
            showing: dict[str, set[int]] = {}
            for row in rows:
                for passage in self.shown[row]:
                    showing.setdefault(passage, set()).add(row)
            found: set[int] = set()
            for row in rows:
                others = {other for passage in self.relevant[row] for other in showing.get(passage, ())} - {row}
                found |= others | {row} if others else others
            conflicting += len(found)
        return conflicting


@dataclass
class _Batch:
    rows: list[int] = field(default_factory=list)
    shown: set[str] = field(default_factory=set)
    relevant: set[str] = field(default_factory=set)

    def fits(self, row: int, conflicts: Conflicts) -> bool:
        return self.relevant.isdisjoint(conflicts.shown[row]) and self.shown.isdisjoint(conflicts.relevant[row])

    def add(self, row: int, conflicts: Conflicts) -> None:
        self.rows.append(row)
        self.shown |= conflicts.shown[row]
        self.relevant |= conflicts.relevant[row]


def plan(lengths: Sequence[int], conflicts: Conflicts, *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Every row exactly once, in batches of like length without conflicts, in random order.

    The plan depends on seed and epoch alone. Batches shrink where conflicts force it, but none has a single row unless
    all data is one row: with no other row in its batch it would train nothing. A row that can be placed in no other
    way shares a batch with a conflict, to be masked in the loss.
    """
    rng = random.Random(f"{seed}:{epoch}")
    key = {row: length * rng.uniform(1 - LENGTH_JITTER, 1 + LENGTH_JITTER) for row, length in enumerate(lengths)}
    done: list[_Batch] = []
    unfilled: list[_Batch] = []
    for row in sorted(key, key=key.__getitem__):
        batch = next((batch for batch in unfilled if batch.fits(row, conflicts)), None)
        if batch is None:
            batch = _Batch()
            unfilled.append(batch)
        batch.add(row, conflicts)
        if len(batch.rows) >= batch_size:
            unfilled.remove(batch)
            done.append(batch)
        elif len(unfilled) > OPEN_BATCHES:
            done.append(unfilled.pop(0))
    batches = done + unfilled
    _place_single_rows(batches, conflicts)
    batches = [batch for batch in batches if batch.rows]
    rng.shuffle(batches)
    return [batch.rows for batch in batches]


def _place_single_rows(batches: list[_Batch], conflicts: Conflicts) -> None:
    """Give each batch of one a second row, or move its row, beside a conflict where there is no other way."""
    for single in [batch for batch in batches if len(batch.rows) == 1]:
        if len(single.rows) != 1:  # an earlier single row has joined it
            continue
        row = single.rows[0]
        others = [batch for batch in batches if batch is not single and batch.rows]
        donor, gift = next(
            (
                (batch, other)
                for batch in others
                if len(batch.rows) > 2
                for other in batch.rows
                if not conflicts.between(row, other)
            ),
            (None, -1),
        )
        if donor is not None:
            donor.rows.remove(gift)  # its shown and relevant stay: too strict is safe
            single.add(gift, conflicts)
        elif others:
            smallest = min(others, key=lambda batch: len(batch.rows))
            home = next((batch for batch in others if batch.fits(row, conflicts)), smallest)
            home.add(row, conflicts)
            single.rows.clear()


def _divided(batches: Sequence[Sequence[int]], count: int, conflicts: Conflicts) -> list[list[int]]:
    """The batches cut up into `count`, none of a single row; count is at most half the number of rows."""
    divided = [list(batch) for batch in batches]
    while len(divided) < count:
        largest = max(divided, key=len)
        if len(largest) >= 4:
            divided.append([largest.pop() for _ in range(len(largest) // 2)])
            continue
        threes = [batch for batch in divided if len(batch) == 3]  # two at least, by the docstring
        places = ((left, a, right, b) for left, right in combinations(threes, 2) for a, b in product(left, right))
        any_place = (threes[0], threes[0][0], threes[1], threes[1][0])
        left, a, right, b = next((place for place in places if not conflicts.between(place[1], place[3])), any_place)
        left.remove(a)
        right.remove(b)
        divided.append([a, b])
    return divided


class ConflictFreeBatchSampler(DefaultBatchSampler):
    """Yields the batches of `plan` for the epoch that the trainer sets; the same number in every epoch."""

    def __init__(
        self, rows: Rows, conflicts: Conflicts, lengths: Sequence[int], *, batch_size: int, seed: int, epochs: int
    ) -> None:
        super().__init__(range(len(rows)), batch_size=batch_size, drop_last=False, seed=seed)
        self._plan = partial(plan, lengths, conflicts, batch_size=batch_size, seed=seed)
        self._conflicts = conflicts
        plans = [self._plan(epoch=epoch) for epoch in range(max(1, epochs))]
        # the trainer counts steps once, so every epoch must have as many batches as the one with the most
        self._count = max(map(len, plans))
        self._epochs = [_divided(batches, self._count, conflicts) for batches in plans]
        self.masked_rows = max(map(conflicts.count, self._epochs))  # of the epoch with the most

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        if self.epoch < len(self._epochs):
            batches = self._epochs[self.epoch]
        else:
            batches = _divided(self._plan(epoch=self.epoch), self._count, self._conflicts)
        yield from (list(batch) for batch in batches)


# losses whose similarity function scores every query against every passage of the batch, as logits: minus infinity
# takes a candidate out. Others compare a row with itself alone, or sum what the function gives.
COMPARE_ROWS = (MultipleNegativesRankingLoss, CachedMultipleNegativesRankingLoss, GISTEmbedLoss)


class MaskedSimilarity(torch.nn.Module):
    """A loss's similarity function that gives conflicting rows of the current batch no weight.

    Set `mask` (rows, rows) before the loss runs. Rows and columns of a score matrix are the batch's rows once or
    several times over (positives, then negatives), so the mask is repeated to its shape.
    """

    def __init__(self, similarity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._similarity = similarity
        self.mask: torch.Tensor | None = None

    @classmethod
    def put_into(cls, loss: torch.nn.Module) -> list[MaskedSimilarity]:
        """Replace the similarity function of a loss that compares rows, wherever another loss wraps it.

        Returns what was put in; nothing where no other row is compared, so that a conflict does no harm.
        """
        masks = []
        for module in list(loss.modules()):
            if not isinstance(module, COMPARE_ROWS) or isinstance(module.similarity_fct, cls):
                continue
            masks.append(cls(module.similarity_fct))
            module.similarity_fct = masks[-1]
            if isinstance(module, CachedMultipleNegativesRankingLoss):
                module.calculate_loss = _whole_batch(module, module.calculate_loss, masks[-1])
        return masks

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Scores (left rows, right rows), minus infinity where masked."""
        scores = self._similarity(left, right)
        if self.mask is None or scores.dim() == 1:  # one score per row: no other row is a candidate
            return scores
        rows = len(self.mask)
        if scores.shape[0] % rows or scores.shape[1] % rows:
            raise RuntimeError(f"can't mask scores of shape {tuple(scores.shape)} in a batch of {rows} rows")
        times = scores.shape[0] // rows, scores.shape[1] // rows
        return scores.masked_fill(self.mask.to(scores.device).repeat(times), float("-inf"))


def _whole_batch(
    loss: CachedMultipleNegativesRankingLoss, calculate: Callable[..., torch.Tensor], masked: MaskedSimilarity
) -> Callable[..., torch.Tensor]:
    """A cached loss's calculation that, where there is a mask, scores all rows at once instead of in parts.

    What the cache saves are the activations of the model; the scores of a batch are small beside them.
    """

    def calculated(embeddings: list[list[torch.Tensor]], *args: Any, **kwargs: Any) -> torch.Tensor:
        part = loss.mini_batch_size
        loss.mini_batch_size = part if masked.mask is None else len(masked.mask)
        try:
            return calculate(embeddings, *args, **kwargs)
        finally:
            loss.mini_batch_size = part

    return calculated
