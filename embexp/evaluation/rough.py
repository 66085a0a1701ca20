"""Exact search that rules most pairs out by a product of bytes.

Called by `evaluation.search`; what is left goes to `ranking`. Rows are rounded to whole numbers from -127 to 127
times a scale. With q = q' + d and p = p' + e, rounded and remainder,

    q.p = q'.p' + d.p + q'.e  <=  q'.p' + |d| |p| + |q'| |e|

by the inequality of Cauchy and Schwarz. A pair whose bound lies below a score that `top` passages reach is not among
the first. All others are scored in float32 and in one order of summation, so that equal passages score alike. What
float32 may lose of a product of n dimensions, n 2^-24 |q| |p| (Higham, Accuracy and Stability of Numerical Algorithms,
2002, section 3.1), is added to the bound several times over.
"""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass

import torch

from embexp.evaluation.ranking import GROUP, NEVER, First, Part

PASSAGES_AT_ONCE = 2048  # 1024 x 2048 products: large enough to multiply fast, small enough for a core's cache
QUERIES_AT_ONCE = 1024
FIRST_PASSAGES = 128  # for each of `top` so many passages are searched in float32 first, for a limit to rule out by
STEP = 1.6  # limits are taken anew when so many times as many passages were seen
FEWEST = 50_000  # passages; with fewer the start in float32 is a large part of the work
MOST = 128  # `top`; more would make that start as wide as a whole block of passages
SHIFT = GROUP.bit_length() - 1  # a number >> this is its group
SMALLEST = 1e-12  # a scale; that of rows of zeros
TINY = 1e-15  # what a norm in float32 may lack because squares below 1e-45 are 0

# each run of a command would show it once; the product of chosen pairs is all that is used of sparse tensors
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)


def pays(passages: int, *, top: int, device: str | torch.device) -> bool:
    """Whether this is faster than products in float32.

    Only on a processor with AVX-512 VNNI, which multiplies bytes four times as fast as float32; others may have no fast
    product of bytes at all, and those before VNNI saturate in it.
    """
    fast = torch.device(device).type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_vnni"))
    return fast and passages >= FEWEST and top <= MOST


@dataclass(frozen=True)
class Rounded:
    """Rows in groups: their numbers, (rows, dimensions) int8, and for each group, (groups,) float32:

    | field  | holds                                                                |
    |--------|----------------------------------------------------------------------|
    | scale  | what the numbers are multiplied with                                 |
    | length | at least the longest row's norm                                      |
    | error  | at least the longest remainder's norm, with float32's errors         |
    | whole  | at least the longest row's norm before the middle was taken from it  |
    """

    numbers: torch.Tensor
    scale: torch.Tensor
    length: torch.Tensor
    error: torch.Tensor
    whole: torch.Tensor


def rounded(rows: torch.Tensor, *, group: int, middle: torch.Tensor | None = None) -> Rounded:
    """Rows, (some, dimensions) float32, so many to a group; the last group is filled up with rows of zeros.

    middle: a row to take from each first. q.p = q.(p - m) + q.m, and what all passages share needs no bits.
    """
    dimensions, shared = rows.shape[1], 0.0
    if middle is not None:
        rows, shared = rows - middle, float(torch.linalg.vector_norm(middle))
    missing = -len(rows) % group
    groups = (torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows).reshape(-1, group * dimensions)
    scale = torch.maximum(groups.amax(dim=1), -groups.amin(dim=1)).div_(127).clamp_(min=SMALLEST)
    numbers = (groups / scale[:, None]).round_()

    def longest(part: torch.Tensor) -> torch.Tensor:
        return torch.linalg.vector_norm(part.view(-1, group, dimensions), dim=2).amax(dim=1) + TINY

    length = longest(groups)
    whole = length + shared
    remainder = longest(torch.addcmul(groups, numbers, scale[:, None], value=-1))
    error = remainder + (dimensions + 16) * 2.0**-23 * whole
    return Rounded(numbers.to(torch.int8).view(-1, dimensions), scale, length, error, whole)


def least_products(limits: torch.Tensor, queries: Rounded, groups: Rounded) -> torch.Tensor:
    """(queries, groups) int32: what a product of numbers must reach lest the bound lie below the query's limit.

    limits: (queries,) float32. Each query is a group of its own.
    """
    of_queries = torch.stack([limits, -queries.error, -(queries.length + queries.error)], dim=1)
    of_groups = torch.stack([torch.ones_like(groups.scale), groups.length, groups.error])
    least = (of_queries / queries.scale[:, None]) @ (of_groups / groups.scale)
    return least.clamp_(-(2.0**30), 2.0**30).floor_().to(torch.int32)


def exact(queries: torch.Tensor, passages: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The float32 products of these pairs, sorted by row; each is summed in the same order, wherever it stands."""
    starts = torch.zeros(len(queries) + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(rows, minlength=len(queries)), 0, out=starts[1:])
    shape, unused = (len(queries), len(passages)), torch.zeros(len(columns))
    pairs = torch.sparse_csr_tensor(starts, columns, unused, shape, check_invariants=False)
    return torch.sparse.sampled_addmm(pairs, queries, passages.T, beta=0.0).values()


def add(first: First, queries: torch.Tensor, passages: torch.Tensor, *, place: int) -> None:
    """Add the scores of all queries and of some passages, (some, dimensions) float32, the first of them at `place`."""
    start = PASSAGES_AT_ONCE * math.ceil(FIRST_PASSAGES * first.top / PASSAGES_AT_ONCE) if place == 0 else 0
    cuts = [0, *range(start or PASSAGES_AT_ONCE, len(passages), PASSAGES_AT_ONCE), len(passages)]
    parts = [passages[begin:end] for begin, end in itertools.pairwise(cuts)]
    middle = passages.mean(dim=0)
    tiles = [(tile, rounded(tile, group=GROUP, middle=middle)) for tile in parts]
    room = torch.empty(QUERIES_AT_ONCE * PASSAGES_AT_ONCE, dtype=torch.int32)
    for row in range(0, len(queries), QUERIES_AT_ONCE):
        some = queries[row : row + QUERIES_AT_ONCE]
        part = first.part(range(row, row + len(some)))
        rows, places = part.relevant(range(place, place + len(passages)))
        part.relevant_score(rows, exact(some, passages, rows, places - place))
        _add_tiles(part, some, tiles, some @ middle, place, room)


def _add_tiles(
    part: Part,
    queries: torch.Tensor,
    tiles: list[tuple[torch.Tensor, Rounded]],
    moved: torch.Tensor,
    place: int,
    room: torch.Tensor,
) -> None:
    numbers = rounded(queries, group=1)
    settled = place
    for tile, groups in tiles:
        if part.full:
            rows, columns = _by_bytes(numbers, groups, part.limits - moved, room)
            if len(groups.numbers) > len(tile):
                there = columns < len(tile)
                rows, columns = rows[there], columns[there]
        else:
            unranked = part.left_out(range(place, place + len(tile)))
            rows, columns = _by_floats(queries, tile, numbers, groups, part.top, without=unranked)
        part.add(exact(queries, tile, rows, columns), rows, columns + place)
        place += len(tile)
        if place >= STEP * settled:
            part.settle()
            settled = place
    part.settle()


def _by_floats(
    queries: torch.Tensor,
    passages: torch.Tensor,
    numbers: Rounded,
    groups: Rounded,
    top: int,
    *,
    without: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the pairs that may be among their query's first `top` in these passages.

    without: rows and columns of pairs that are not ranked, and so say nothing of what others must reach.
    """
    products = torch.nn.functional.pad(queries @ passages.T, (0, -len(passages) % GROUP), value=NEVER)
    products[without] = NEVER
    heads = _heads(products)
    limits = heads.new_full((len(heads),), NEVER)
    if heads.shape[1] >= top:  # the top-th of the groups' maxima is reached by as many scores
        slack = 4 * (queries.shape[1] + 16) * 2.0**-24 * numbers.length * groups.whole.max()
        limits = heads.topk(top, dim=1).values[:, -1] - slack
    limits = limits.clamp(min=torch.finfo(torch.float32).min)
    return _reaching(products, heads, limits[:, None].expand_as(heads))


def _by_bytes(
    queries: Rounded, groups: Rounded, limits: torch.Tensor, room: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the pairs whose bound reaches their query's limit."""
    shape = len(queries.numbers), len(groups.numbers)
    products = room[: shape[0] * shape[1]].view(shape)
    torch._int_mm(queries.numbers, groups.numbers.T, out=products)
    return _reaching(products, _heads(products), least_products(limits, queries, groups))


def _heads(products: torch.Tensor) -> torch.Tensor:
    return products.view(-1, GROUP).amax(dim=1).view(len(products), -1)


def _reaching(products: torch.Tensor, heads: torch.Tensor, least: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns, sorted, of the products that reach what their group must; most groups' largest does not."""
    groups = torch.nonzero((heads >= least).view(-1)).flatten()
    members = products.view(-1, GROUP).index_select(0, groups)
    reached = members >= least.reshape(-1).index_select(0, groups)[:, None]
    found = torch.nonzero(reached.view(-1)).flatten()
    rows = groups // heads.shape[1]
    columns = (groups - rows * heads.shape[1]) * GROUP
    group = found >> SHIFT  # whole divisions of long lists are slow
    return rows.index_select(0, group), columns.index_select(0, group) + (found & (GROUP - 1))
