"""What the processes of one run pass to each other: orders, embeddings, gradients.

Process 0 runs the experiment and gives the orders; the others, its followers, carry them out. Libraries see none of
this: torch's default group stays unset, so that each process's trainer believes that it is alone. Used by `embedding`,
`shares`, `preparing`, `tuning` and `fine_tuning`; how the processes come together is told in `joining`.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from embexp.errors import is_out_of_memory

EVER = timedelta(days=365)  # followers wait while process 0 reads data or searches; a lost process is noticed otherwise
BUCKET = 2**23  # elements that are summed at once, while the next ones are still copied

Order = tuple[str, dict[str, Any]]  # its name and its arguments


class LostError(Exception):
    """Another process of the run can't be reached any more. `joining` says which, and why."""


@dataclass(frozen=True)
class Groups:
    """The connections to all processes: gloo for what is in memory, NCCL for what is on a GPU."""

    memory: Any
    gpu: Any | None = None


class Processes:
    """The processes of a run as one of them sees them: its rank, their count, and what they do together.

    What one does, all do, in the same order. Everything raises LostError when another process has gone.
    """

    def __init__(self, rank: int, count: int, connect: Callable[[], Groups]) -> None:
        """connect: called once, when the first thing is passed; waits until all processes are there."""
        self.rank, self.count = rank, count
        self._connect = connect

    @property
    def leads(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    @cached_property
    def _groups(self) -> Groups:
        return self._connect()

    @property
    def connected(self) -> bool:
        """Whether anything was passed yet."""
        return "_groups" in vars(self)

    def tell(self, order: str, **arguments: Any) -> None:
        """Give the followers an order."""
        assert self.leads
        written = io.BytesIO()  # whose bytes are sent from where they are: an order may hold all rows of a training
        pickle.dump((order, arguments), written)  # among the processes of one run, which all are this program
        content = torch.frombuffer(written.getbuffer(), dtype=torch.uint8)
        self._from_first(torch.tensor([len(content)]))
        self._from_first(content)

    def heard(self) -> Order:
        """Wait for the next order of process 0."""
        length = torch.zeros(1, dtype=torch.int64)
        self._from_first(length)
        content = torch.empty(int(length), dtype=torch.uint8)
        self._from_first(content)
        order: Order = pickle.loads(content.numpy().data)
        return order

    def gathered(self, rows: torch.Tensor, numbers: Sequence[int]) -> list[torch.Tensor]:
        """The rows (n, ...) of every process, by rank; numbers: how many each has, which all know. No gradients."""
        padded = rows.new_zeros(max(numbers), *rows.shape[1:])
        padded[: len(rows)] = rows
        group, padded = self._group_of(padded)
        parts = [torch.empty_like(padded) for _ in numbers]
        with connection():
            group.allgather([parts], [padded]).wait()
        return [part[:number].to(rows.device) for part, number in zip(parts, numbers, strict=True)]

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put into each tensor the sum over all processes, the same bits everywhere."""
        waiting = []
        for bucket in _buckets(tensors):
            group, flat = self._group_of(torch.cat([tensor.reshape(-1) for tensor in bucket]))
            with connection():
                waiting.append((bucket, flat, group.allreduce([flat])))
        for bucket, flat, work in waiting:
            with connection():
                work.wait()
            for tensor, total in zip(bucket, torch.split(flat, [each.numel() for each in bucket]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def copy_from_first(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put into each tensor what process 0 has in it."""
        for tensor in tensors:
            group, passed = self._group_of(tensor.reshape(-1).contiguous().view(torch.uint8))
            with connection():
                group.broadcast([passed]).wait()
            tensor.copy_(passed.view(tensor.dtype).view_as(tensor))

    def _from_first(self, tensor: torch.Tensor) -> None:
        with connection():
            self._groups.memory.broadcast([tensor]).wait()

    def _group_of(self, tensor: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """The group that passes a tensor, and the tensor where that group needs it."""
        if tensor.device.type == "cuda" and self._groups.gpu is not None:
            return self._groups.gpu, tensor
        return self._groups.memory, tensor.cpu()


def connected_over(store: Any, rank: int, count: int, *, gpu: bool) -> Groups:
    """Connect to the other processes, all on this machine, which meet in a store of torch's."""
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    options._timeout = EVER
    with connection():
        memory = dist.ProcessGroupGloo(PrefixStore("memory", store), rank, count, options)
        if not gpu:
            return Groups(memory)
        nccl = dist.ProcessGroupNCCL(PrefixStore("gpu", store), rank, count, dist.ProcessGroupNCCL.Options())
    return Groups(memory, nccl)


@contextmanager
def connection() -> Iterator[None]:
    """Raises LostError where a connection breaks; what has no memory left says so itself."""
    try:
        yield
    except RuntimeError as error:  # what torch raises when a connection breaks, and also where memory is refused
        if is_out_of_memory(error):
            raise
        raise LostError(str(error)) from error


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The tensors in their order, in lists of one type with about BUCKET elements each."""
    bucket: list[torch.Tensor] = []
    for tensor in tensors:
        if bucket and (sum(map(torch.numel, bucket)) >= BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
