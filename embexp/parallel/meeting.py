"""Where the processes of a run meet: a store of torch's in which each says that it is there, and why it ended.

Called by `joining` in process 0, by `follower` in the others, which connect once process 0 wants them, and by `cli`.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

import torch
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from embexp.errors import described
from embexp.parallel.machine import Launched
from embexp.parallel.processes import Processes, connected_over, connection

OPEN, OVER = "open", "over"  # keys of the store: connect now; there is nothing to do any more
LOST = 76  # exit code of a follower that has lost the others


def enter(launched: Launched) -> None:
    """Say that this follower of torchrun's is there, so that process 0 sees its end however early it is."""
    store_of(launched).set(here(launched.rank), str(os.getpid()))


def as_follower(store: Any, rank: int, count: int) -> Processes | None:
    """This process as one of a run's, once process 0 wants it; None when it never does."""
    with connection():
        store.set(ready(rank), "")
        while not store.check([OPEN]):
            if store.check([OVER]):
                return None
            time.sleep(0.05)
    gpu = torch.version.cuda is not None and torch.cuda.is_available()
    groups = connected_over(store, rank, count, gpu=gpu)
    return Processes(rank, count, lambda: groups)


def write_down(store: Any, rank: int, error: Exception) -> None:
    """Leave the reason of a follower's end for process 0."""
    with suppress(RuntimeError):
        store.set(failure(rank), described(error))


def store_of(launched: Launched) -> Any:
    """The store that torchrun's processes meet in."""
    server = TCPStore(launched.address, launched.port, is_master=False, wait_for_workers=False)
    return PrefixStore(f"embexp{launched.attempt}", server)


def release(launched: Launched) -> None:
    """Let the followers of torchrun end, also those that were never wanted."""
    with suppress(RuntimeError):
        store_of(launched).set(OVER, "")


def here(rank: int) -> str:
    """The key that holds the process id of a follower of torchrun's, once it is there."""
    return f"here/{rank}"


def ready(rank: int) -> str:
    """The key that says that a follower can connect."""
    return f"ready/{rank}"


def failure(rank: int) -> str:
    """The key that holds why a follower has ended."""
    return f"error/{rank}"
