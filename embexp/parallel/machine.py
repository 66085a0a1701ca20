"""What this process may use of the machine, and what torchrun told it when it started it.

Light: called by `cli` before torch is imported; by `workers` and `joining` to share cores and GPUs out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from embexp.errors import UserError

TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "GROUP_NAME",
        "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # fmt: skip
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

MOST_THREADS = 8  # Python's lock is shared


@dataclass(frozen=True)
class Launched:
    """What torchrun said: which of how many processes this is, where its store listens, how often it started anew."""

    rank: int
    count: int
    address: str
    port: int
    attempt: int


def launched(environment: MutableMapping[str, str] = os.environ) -> Launched | None:
    """What torchrun said, taken out of the environment: a library that saw it would split the batches once more.

    None without it, or where it starts one process. Raises UserError for processes on several machines, and for those
    that something else has started.
    """
    told = {name: environment.pop(name) for name in [*environment] if name in TOLD or name.startswith("TORCHELASTIC_")}
    if not all(name in told for name in NEEDED) or told["WORLD_SIZE"] == "1":
        return None
    if told.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise UserError(
            f"RANK and WORLD_SIZE={told['WORLD_SIZE']} are set, and not by torchrun; start the run with torchrun, or "
            "unset them and set trainer.processes"
        )
    if told.get("LOCAL_WORLD_SIZE", told["WORLD_SIZE"]) != told["WORLD_SIZE"]:
        raise UserError(
            f"torchrun starts {told['WORLD_SIZE']} processes on several machines; a run's processes share one machine "
            "(torchrun --nproc-per-node=2). A sweep spreads its trials over many"
        )
    return Launched(
        rank=int(told["RANK"]),
        count=int(told["WORLD_SIZE"]),
        address=told["MASTER_ADDR"],
        port=int(told["MASTER_PORT"]),
        attempt=int(told.get("TORCHELASTIC_RESTART_COUNT", 0)),
    )


def agreed(config: Mapping[str, Any], launched: Launched | None) -> Mapping[str, Any]:
    """The config with the number of processes that torchrun has started. Raises UserError when it asks for another."""
    trainer = config["trainer"]
    if launched is None or trainer is None:
        return config
    if trainer["processes"] not in (1, launched.count):
        raise UserError(
            f"trainer.processes={trainer['processes']}, and torchrun has started {launched.count}; leave one of them "
            "out (trainer.processes starts them without torchrun)"
        )
    return {**config, "trainer": {**trainer, "processes": launched.count}}


def number_of(config: Mapping[str, Any], launched: Launched | None) -> int:
    """How many processes carry the run out."""
    if launched is not None:
        return launched.count
    return config["trainer"]["processes"] if config["trainer"] is not None else 1


def cores() -> int:
    """How many this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """How many threads work is shared out among where torch, which knows, is not at hand: as OMP_NUM_THREADS says."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) else min(cores(), MOST_THREADS)


def gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them, found out without starting CUDA."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device for device in named.split(",") if device]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return [str(place) for place, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


def threads_of(count: int, launched: Launched | None, *, now: int) -> int:
    """Threads of each process, of `now` that one has alone. torchrun sets one each, unless the user has set others."""
    if launched is None:
        return max(1, now // count)
    said = os.environ.get("OMP_NUM_THREADS", "1")
    return int(said) if said.isdecimal() and said != "1" else max(1, cores() // count)
