"""Builds each epoch's batches so that no row's positive or negative is relevant to another row's query.

In-batch losses take the other rows' passages as negatives. The library's own sampler compares strings only and drops
rows it can't place. Called by `fine_tuning`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, combinations, pairwise, product
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    GISTEmbedLoss,
    MultipleNegativesRankingLoss,
)

from embexp.rows.conflicts import Conflicts
from embexp.rows.shapes import Rows

OPEN_BATCHES = 64  # how many unfilled batches a row is tried in
LENGTH_JITTER = 0.15  # rows within about this share of each other's length meet in other batches each epoch


@dataclass(eq=False)
class _Batch:
    since: int  # the place of its first row
    rows: list[int] = field(default_factory=list)
    _shown: set[int] = field(default_factory=set)
    _relevant: set[int] = field(default_factory=set)
    _known: int = 0  # how many of the rows those are of

    def fits(self, row: int, conflicts: Conflicts) -> bool:
        for own in self.rows[self._known :]:
            self._shown.update(conflicts.shown.of_row(own))
            self._relevant.update(conflicts.relevant.of_row(own))
        self._known = len(self.rows)
        shown, relevant = conflicts.shown.of_row(row), conflicts.relevant.of_row(row)
        return self._relevant.isdisjoint(shown) and self._shown.isdisjoint(relevant)

    def give(self, row: int) -> None:
        self._known -= row in self.rows[: self._known]  # what it showed stays: too strict is safe
        self.rows.remove(row)


def plan(
    lengths: Sequence[int] | np.ndarray, conflicts: Conflicts, *, batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Every row exactly once, in batches of like length without conflicts, in random order.

    The plan depends on seed and epoch alone. Batches shrink where conflicts force it, but none has a single row unless
    all data is one row: with no other row in its batch it would train nothing. A row that can be placed in no other
    way shares a batch with a conflict, to be masked in the loss.
    """
    rng = np.random.default_rng([seed, epoch])
    order = np.argsort(np.asarray(lengths) * rng.uniform(1 - LENGTH_JITTER, 1 + LENGTH_JITTER, len(lengths)))
    batches = _filled(order, conflicts, batch_size=batch_size)
    _place_single_rows(batches, conflicts)
    batches = [batch for batch in batches if batch.rows]
    return [batches[place].rows for place in rng.permutation(len(batches))]


def _filled(order: np.ndarray, conflicts: Conflicts, *, batch_size: int) -> list[_Batch]:
    """Each row, in this order, in the first unfilled batch without a conflict."""
    done: list[_Batch] = []
    unfilled: list[_Batch] = []
    previous, rows = conflicts.previous(order), order.tolist()
    place = 0
    while place < len(rows):
        end = place + 1
        if len(unfilled) <= 1:  # as nearly always: then all rows up to the next conflict go into one batch
            batch = unfilled[0] if unfilled else _Batch(place)
            conflicting = np.flatnonzero(previous[place : place + batch_size - len(batch.rows)] >= batch.since)
            end = place + (int(conflicting[0]) if len(conflicting) else batch_size - len(batch.rows))
        if len(unfilled) > 1 or end == place:
            fitting = (batch for batch in unfilled if batch.fits(rows[place], conflicts))
            batch, end = next(fitting, None) or _Batch(place), place + 1
        batch.rows += rows[place:end]
        place = end
        if batch not in unfilled:
            unfilled.append(batch)
        if len(batch.rows) >= batch_size:
            unfilled.remove(batch)
            done.append(batch)
        elif len(unfilled) > OPEN_BATCHES:
            done.append(unfilled.pop(0))
    return done + unfilled


def _place_single_rows(batches: Sequence[_Batch], conflicts: Conflicts) -> None:
    """Give each batch of one a second row, or move its row, beside a conflict where no batch near it helps."""
    for place, single in enumerate(batches):
        if len(single.rows) != 1:  # as nearly always; or an earlier single row has joined it
            continue
        row = single.rows[0]
        near = [*batches[max(0, place - OPEN_BATCHES) : place], *batches[place + 1 : place + 1 + OPEN_BATCHES]]
        others = [batch for batch in near if batch.rows] or [one for one in batches if one.rows and one is not single]
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
            donor.give(gift)
            single.rows.append(gift)
        elif others:
            smallest = min(others, key=lambda batch: len(batch.rows))
            home = next((batch for batch in others if batch.fits(row, conflicts)), smallest)
            home.rows.append(row)
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
    """Yields the batches of `plan` for the epoch that the trainer sets; the same number in every epoch.

    All epochs are planned at once and kept as numbers of four bytes: a million rows take 4 MB an epoch.
    """

    def __init__(
        self,
        rows: Rows,
        conflicts: Conflicts,
        lengths: Sequence[int] | np.ndarray,
        *,
        batch_size: int,
        seed: int,
        epochs: int,
    ) -> None:
        super().__init__(range(len(rows)), batch_size=batch_size, drop_last=False, seed=seed)
        self._plan = partial(plan, lengths, conflicts, batch_size=batch_size, seed=seed)
        self.conflicts = conflicts
        plans = [_Epoch.of(self._plan(epoch=epoch)) for epoch in range(max(1, epochs))]
        # the trainer counts steps once, so every epoch must have as many batches as the one with the most
        self._count = max(map(len, plans))
        self._epochs = [
            one if len(one) == self._count else _Epoch.of(_divided(list(one), self._count, conflicts)) for one in plans
        ]
        self.masked_rows = max(conflicts.count(list(one)) for one in self._epochs)  # of the epoch with the most

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        if self.epoch < len(self._epochs):
            yield from self._epochs[self.epoch]
        else:
            yield from _divided(self._plan(epoch=self.epoch), self._count, self.conflicts)


@dataclass(frozen=True)
class _Epoch:
    """An epoch's batches one after the other, and where each ends."""

    rows: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, batches: Sequence[Sequence[int]]) -> _Epoch:
        return cls(np.fromiter(chain.from_iterable(batches), np.int32), np.cumsum([len(batch) for batch in batches]))

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[list[int]]:
        for start, end in pairwise([0, *self.ends.tolist()]):
            yield self.rows[start:end].tolist()


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
