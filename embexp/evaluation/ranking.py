"""The first passages of each query, kept while scores come by.

Called by `evaluation.search` and `rough`; knows no model. The order is total: by score, among equal scores passages
that are not relevant come first, then by id. A tie never flatters, and how the scores were cut into blocks changes
nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from embexp.data.retrieval_set import Qrels, RetrievalSet

GROUP = 32  # scores of which the largest is looked at first, and most often no other
CANDIDATES_AT_ONCE = 16_000_000
MOST_PASSAGES = 2**31 - 1  # a passage's place has this many bits beside its score's
NOT_RELEVANT = 2**31
NOBODY = -(2**63)  # less than the number of any passage
NEVER = float("-inf")  # the score of a passage that is not to be ranked


@dataclass(frozen=True, eq=False)
class Ranking(Mapping[str, list[tuple[str, float]]]):
    """Query id -> (passage id, score) of its first passages, best first.

    | field       | holds                                                                                  |
    |-------------|----------------------------------------------------------------------------------------|
    | query_ids   | a row for each                                                                         |
    | passage_ids | the corpus, in its order                                                               |
    | places      | (queries, top): where in passage_ids the passage is, -1 after the last one ranked      |
    | scores      | (queries, top) float32, -inf after the last one ranked                                 |
    | lowest      | (queries,) float32: the score of the lowest-scored relevant passage in the corpus, be  |
    |             | it among the first or not; inf without one                                             |
    """

    query_ids: Sequence[str]
    passage_ids: Sequence[str]
    places: np.ndarray
    scores: np.ndarray
    lowest: np.ndarray

    @cached_property
    def _row(self) -> dict[str, int]:
        return {query: row for row, query in enumerate(self.query_ids)}

    def __getitem__(self, query: str) -> list[tuple[str, float]]:
        row = self._row[query]
        hits = zip(self.places[row].tolist(), self.scores[row].tolist(), strict=True)
        return [(self.passage_ids[place], score) for place, score in hits if place >= 0]

    def places_of(self, query_ids: Sequence[str]) -> np.ndarray:
        """Rows of `places` for these queries; -1 throughout for one that the ranking lacks."""
        if list(query_ids) == list(self.query_ids):
            return self.places
        none = np.full((1, self.places.shape[1]), -1)
        rows = [self._row.get(query, len(self.query_ids)) for query in query_ids]
        return np.concatenate([self.places, none])[rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self.query_ids)

    def __len__(self) -> int:
        return len(self.query_ids)


class Relevant:
    """Grades of queries' relevant passages, to be looked up by place: as sorted numbers, row * passages + place."""

    def __init__(
        self, qrels: Qrels, query_ids: Sequence[str], passage_ids: Sequence[str], *, device: str | torch.device = "cpu"
    ) -> None:
        """Those with a grade above 0 whose passage is there."""
        place, self._passages = {passage: place for place, passage in enumerate(passage_ids)}, len(passage_ids)
        found = [
            (row * self._passages + place[passage], grade)
            for row, query in enumerate(query_ids)
            for passage, grade in qrels.get(query, {}).items()
            if grade > 0 and passage in place
        ]
        found.append((2**63 - 1, 0))  # so that whatever is looked for has a place before it
        numbers, grades = torch.tensor(sorted(found), device=device).unbind(1)
        self._numbers, self._grades = numbers.contiguous(), grades.contiguous()

    def grades(self, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Of the passages at these places for the queries at these rows, of one shape or broadcast; 0 if not relevant.

        A place of -1 is that of no passage.
        """
        asked = torch.where(places < 0, -1, rows * self._passages + places)
        at = torch.searchsorted(self._numbers, asked)
        return torch.where(self._numbers[at] == asked, self._grades[at], 0)

    def inside(self, rows: range, places: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and places of the relevant ones in this part of the matrix of queries and passages."""
        ends = torch.tensor([rows.start, rows.stop], device=self._numbers.device) * self._passages
        first, last = torch.searchsorted(self._numbers, ends).tolist()
        numbers = self._numbers[first:last]
        row, place = numbers // self._passages, numbers % self._passages
        here = (place >= places.start) & (place < places.stop)
        return row[here], place[here]

    def among(self, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """The positions of the relevant ones in a list of pairs that is sorted by row, then place.

        Looks up the few that are relevant in the list, not the list in them.
        """
        asked = rows * self._passages + places
        if not len(asked):
            return asked
        first, last = torch.searchsorted(self._numbers, asked[[0, -1]]).tolist()
        sought = self._numbers[first : last + 1]
        at = torch.searchsorted(asked, sought).clamp(max=len(asked) - 1)
        return at[asked[at] == sought]


class First:
    """The first `top` passages of every query among those whose scores were added so far.

    Each is kept as one whole number whose order is the ranking's: the score's bits, then whether it is not relevant,
    then its place by id. Memory is that of (queries, top) such numbers, however many passages come by.
    """

    def __init__(
        self,
        retrieval_set: RetrievalSet,
        *,
        top: int,
        device: str | torch.device = "cpu",
        without: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        """device: where the scores are. without: query id -> passages that are not ranked for it."""
        self._ids, self._queries = list(retrieval_set.corpus), list(retrieval_set.queries)
        assert len(self._ids) < MOST_PASSAGES, "a place has 31 bits"
        self.top = min(top, len(self._ids))
        by_id = sorted(range(len(self._ids)), key=self._ids.__getitem__)
        self._place_by_id = torch.tensor(by_id, device=device)
        self._id_rank = torch.empty_like(self._place_by_id)
        self._id_rank[self._place_by_id] = torch.arange(len(by_id), device=device)
        self._relevant = Relevant(retrieval_set.qrels, self._queries, self._ids, device=device)
        left_out = {query: dict.fromkeys(passages, 1) for query, passages in (without or {}).items()}
        self._left_out = Relevant(left_out, self._queries, self._ids, device=device)
        self._lowest = torch.full((len(self._queries),), torch.inf, device=device)
        self._best = torch.full((len(self._queries), self.top), NOBODY, device=device)

    def add(self, scores: torch.Tensor, *, row: int, place: int) -> None:
        """scores: (some queries, some passages) float32, the first of them at `row` and `place`; none is NaN.

        What is left out of the ranking is NEVER in them afterwards.
        """
        if not len(scores):
            return
        down, across = range(row, row + len(scores)), range(place, place + scores.shape[1])
        rows, places = self._relevant.inside(down, across)
        lowest = scores[rows - row, places - place]
        self._lowest.scatter_reduce_(0, rows, torch.where(lowest > NEVER, lowest, torch.inf), "amin")
        rows, places = self._left_out.inside(down, across)
        scores[rows - row, places - place] = NEVER
        if missing := -scores.shape[1] % GROUP:
            scores = torch.nn.functional.pad(scores, (0, missing), value=NEVER)
        best = self._best[row : row + len(scores)]
        heads = scores.view(-1, GROUP).amax(dim=1).view(len(scores), -1)
        limits = self._limits(scores, heads, best)
        groups = torch.nonzero((heads >= limits[:, None]).view(-1)).flatten()
        rows = groups // heads.shape[1]
        most = int(torch.bincount(rows, minlength=1).max()) * GROUP
        if len(scores) > 1 and len(scores) * most > CANDIDATES_AT_ONCE:  # most scores of some row are equal
            half = len(scores) // 2
            self.add(scores[:half], row=row, place=place)
            self.add(scores[half:], row=row + half, place=place)
            return
        values = scores.view(-1, GROUP)[groups]
        group, member = torch.nonzero(values >= limits[rows, None], as_tuple=True)
        rows, columns = rows[group], groups[group] % heads.shape[1] * GROUP + member
        numbers = self.numbers(values[group, member], rows + row, columns + place)
        self._best[row : row + len(scores)] = _side_by_side(best, rows, numbers).topk(self.top, dim=1).values

    def part(self, rows: range) -> Part:
        """These queries, for scores of single pairs."""
        return Part(self, rows, self._relevant, self._left_out, self._best[rows.start : rows.stop], self._lowest)

    def ranking(self) -> Ranking:
        """Of what was added."""
        ranked = self._best > NOBODY
        rank = torch.where(ranked, MOST_PASSAGES - (self._best & MOST_PASSAGES), 0)
        places = torch.where(ranked, self._place_by_id[rank], -1)
        scores = torch.where(ranked, _score(self._best >> 32), NEVER)
        return Ranking(self._queries, self._ids, places.cpu().numpy(), scores.cpu().numpy(), self._lowest.cpu().numpy())

    def _limits(self, scores: torch.Tensor, heads: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
        """For each row a score that at least `top` passages reach, here or before, or all that may be ranked do."""
        limits = torch.where(best[:, -1] > NOBODY, _score(best[:, -1] >> 32), NEVER)
        if bool((limits == NEVER).any()):
            # the top-th of the groups' maxima is reached by as many scores or few more, and is found sooner
            enough = heads if heads.shape[1] >= 4 * self.top else scores
            own = enough.topk(min(self.top, enough.shape[1]), dim=1, sorted=True).values[:, -1]
            limits = torch.maximum(limits, own)
        return limits.clamp(min=torch.finfo(torch.float32).min)

    def numbers(self, scores: torch.Tensor, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Of passages with these scores; pairs are sorted by row, then place."""
        numbers = (_ordered(scores) << 32) + (NOT_RELEVANT + MOST_PASSAGES) - self._id_rank[places]
        numbers[self._relevant.among(rows, places)] -= NOT_RELEVANT
        return numbers


class Part:
    """Some queries of a First, to which the scores of single pairs are added; they count once it is settled.

    | field  | holds                                                                      |
    |--------|----------------------------------------------------------------------------|
    | full   | whether every query has `top` passages                                     |
    | limits | (queries,) float32: the score of the last one; a lower one is of no use    |
    """

    def __init__(
        self,
        first: First,
        rows: range,
        relevant: Relevant,
        left_out: Relevant,
        best: torch.Tensor,
        lowest: torch.Tensor,
    ) -> None:
        """best, lowest: the First's own, in which is written."""
        self._first, self._rows, self._relevant, self._left_out = first, rows, relevant, left_out
        self._best, self._lowest = best, lowest
        self.top = first.top
        self._waiting = best.new_full((len(rows), 5 * self.top), NOBODY)  # seldom too narrow
        self._filled = best.new_full((len(rows),), 0)
        self._limit()

    def relevant(self, places: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows, counted from the part's first, and places of the relevant pairs there."""
        rows, found = self._relevant.inside(self._rows, places)
        return rows - self._rows.start, found

    def left_out(self, places: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows, from the part's first, and columns, from the first place, of pairs there that are not ranked."""
        rows, found = self._left_out.inside(self._rows, places)
        return rows - self._rows.start, found - places.start

    def relevant_score(self, rows: torch.Tensor, scores: torch.Tensor) -> None:
        """What relevant pairs score, be they among the first or not."""
        self._lowest.scatter_reduce_(0, rows + self._rows.start, scores, "amin")

    def add(self, scores: torch.Tensor, rows: torch.Tensor, places: torch.Tensor) -> None:
        """Pairs not added before, sorted by row, counted from the part's first, then place."""
        good = scores >= self.limits.index_select(0, rows)
        good[self._left_out.among(rows + self._rows.start, places)] = False
        kept = torch.nonzero(good).flatten()
        if not len(kept):
            return
        scores, rows, places = (values.index_select(0, kept) for values in (scores, rows, places))
        count = torch.bincount(rows, minlength=len(self._rows))
        if int((self._filled + count).max()) > self._waiting.shape[1]:
            self.settle()
        if (missing := int(count.max()) - self._waiting.shape[1]) > 0:
            self._waiting = torch.nn.functional.pad(self._waiting, (0, missing), value=NOBODY)
        column = torch.arange(len(rows), device=rows.device) + (self._filled - (count.cumsum(0) - count))[rows]
        self._waiting[rows, column] = self._first.numbers(scores, rows + self._rows.start, places)
        self._filled += count

    def settle(self) -> None:
        """Rank what was added, and raise the limits."""
        used = self._waiting[:, : int(self._filled.max())]
        self._best.copy_(torch.cat([self._best, used], dim=1).topk(self.top, dim=1).values)
        used.fill_(NOBODY)
        self._filled.zero_()
        self._limit()

    def _limit(self) -> None:
        last = self._best[:, -1]
        self.full = bool((last > NOBODY).all())
        self.limits = torch.where(last > NOBODY, _score(last >> 32), NEVER)


def _side_by_side(best: torch.Tensor, rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """`best` and right of it the numbers of each row, in a matrix as wide as the longest of them."""
    count = torch.bincount(rows, minlength=len(best))
    column = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[rows]
    found = best.new_full((len(best), best.shape[1] + int(count.max())), NOBODY)
    found[:, : best.shape[1]] = best
    found[rows, best.shape[1] + column] = numbers
    return found


def _ordered(scores: torch.Tensor) -> torch.Tensor:
    """Whole numbers in the scores' order: the bits of a float32, those of negative ones turned round."""
    bits = (scores + 0.0).view(torch.int32).to(torch.int64)  # + 0.0 makes -0.0 the same as 0.0
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _score(ordered: torch.Tensor) -> torch.Tensor:
    return torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(torch.int32).view(torch.float32)
