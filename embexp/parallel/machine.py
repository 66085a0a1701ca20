"""What a process may use of the machine and how long it may live, and what torchrun told it when it started it.

Light: called by `cli` before torch is imported; by `workers`, `joining` and `follower` to share cores and GPUs out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from embexp.errors import UserError, counted

TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "GROUP_NAME",
        "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # fmt: skip
NAMED = ("GPU-", "MIG-")  # how CUDA_VISIBLE_DEVICES begins an entry that is no number
BETWEEN_LOOKS = 0.5  # seconds, at the process that this one must not outlive
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

MOST_THREADS = 8  # Python's lock is shared


@dataclass(frozen=True)
class Slot:
    """What a process may use of the machine: threads, and the GPUs that it sees (None: all there are)."""

    threads: int | None = None
    devices: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What says so to the libraries of a process, as far as they have not read it yet."""
        seen = {} if self.devices is None else {"CUDA_VISIBLE_DEVICES": self.devices}
        limits = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS") if self.threads is not None else ()
        return seen | dict.fromkeys(limits, str(self.threads))


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
        entries = (entry.strip() for entry in named.split(","))
        # CUDA stops at the first that is no GPU: -1, or what clusters write where there is none
        return [*takewhile(lambda entry: entry.isdecimal() or entry.startswith(NAMED), entries)]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return [str(place) for place, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


def usable_gpus() -> list[str]:
    """Those of `gpus` that torch can use: none where it was built without CUDA."""
    import torch

    return gpus() if torch.version.cuda is not None else []


def gpus_for(processes: int) -> list[str]:
    """A GPU for each process of a run; none where there is none. Raises UserError where there are too few."""
    devices = usable_gpus()
    if devices and processes > len(devices):
        are = "is" if len(devices) == 1 else "are"
        raise UserError(
            f"trainer.processes={processes}: there {are} {counted(len(devices), 'GPU')}, and each process needs its "
            f"own; set trainer.processes={len(devices)}, or CUDA_VISIBLE_DEVICES= (empty) to use the processor's cores"
        )
    return devices[:processes]


def threads_of(count: int, launched: Launched | None, *, now: int) -> int:
    """Threads of each process, of `now` that one has alone. torchrun sets one each, unless the user has set others."""
    if launched is None:
        return max(1, now // count)
    said = os.environ.get("OMP_NUM_THREADS", "1")
    return int(said) if said.isdecimal() and said != "1" else max(1, cores() // count)


def keep_to(slot: Slot) -> None:
    """Use no more of the machine than the slot, from now on; called before anything starts CUDA."""
    os.environ.update(slot.environment)
    if slot.threads is not None:
        import torch

        torch.set_num_threads(slot.threads)


@contextmanager
def kept_to(slot: Slot) -> Iterator[None]:
    """Use no more of the machine than the slot while this is open."""
    import torch

    before, threads = {name: os.environ.get(name) for name in slot.environment}, torch.get_num_threads()
    keep_to(slot)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def end_with(process: int) -> None:
    """Let this process end soon after another has, which it works for, however that ends."""

    def watch() -> None:
        while is_alive(process):
            time.sleep(BETWEEN_LOOKS)
        os._exit(1)  # nobody waits for what it does

    threading.Thread(target=watch, daemon=True, name="end-with").start()


def is_alive(process: int) -> bool:
    """Whether the process with this id is there and has not ended."""
    import psutil  # here, since `cli` needs nothing of it

    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
