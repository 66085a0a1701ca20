"""Brings the processes of a run together and tells which one was lost. Called by `run`, in the others by `follower`.

Process 0 starts its followers itself (trainer.processes), or torchrun has started all. They meet in a store: a file in
a folder of the run's own, or torchrun's server.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.distributed import FileStore  # type: ignore[attr-defined]

from embexp.errors import UserError
from embexp.parallel.machine import Launched, gpus, threads_of
from embexp.parallel.meeting import LOST, OPEN, OVER, failure, here, store_of
from embexp.parallel.processes import Groups, LostError, Processes, connected_over

SECONDS_TO_END = 10.0
SECONDS_TO_KNOW = 5.0  # until it shows which process has ended
WHY = {signal.SIGKILL: " (killed from outside, or by the system for want of memory)"}


@contextmanager
def joined(count: int, launched: Launched | None) -> Iterator[Processes | None]:
    """The processes of a run, from the side of process 0; None where it is alone. They are gone when this closes.

    launched: what torchrun said, where it has started them. Raises UserError for more processes than GPUs, and when one
    is lost, saying which and why.
    """
    if count == 1:
        yield None
        return
    devices = _devices(count)
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[0]  # read when CUDA starts, which it has not yet
    threads = torch.get_num_threads()
    torch.set_num_threads(threads_of(count, launched, now=threads))
    others = _Started(count, devices) if launched is None else _Launched(launched)
    processes = Processes(0, count, lambda: others.connect(gpu=bool(devices)))
    try:
        yield processes
        if processes.connected:
            processes.tell("end")
        others.end()
    except BaseException as error:
        lost = others.why_lost() if isinstance(error, LostError) else None
        others.stop()
        if lost is not None:
            raise UserError(lost) from error
        raise
    finally:
        others.close()
        torch.set_num_threads(threads)


class _Others:
    """The followers, from the side of process 0."""

    def __init__(self, store: Any, count: int) -> None:
        self._store, self._count = store, count

    def connect(self, *, gpu: bool) -> Groups:
        """Connect to all, once all are there. Raises LostError when one has ended before."""
        while not all(self._store.check([here(rank)]) for rank in range(1, self._count)):
            if self._ended():
                raise LostError("a process has ended before it could connect")
            time.sleep(0.05)
        self._store.set(OPEN, "")
        return connected_over(self._store, 0, self._count, gpu=gpu)

    def why_lost(self) -> str:
        """What is to be said of the process that ended, once that shows."""
        until = time.monotonic() + SECONDS_TO_KNOW
        while (ended := self._ended()) is None and time.monotonic() < until:
            time.sleep(0.02)
        return ended or f"another of the {self._count} processes can't be reached; resume the run"

    def stop(self) -> None:
        """End them at once: what they were told to do has no end any more."""
        with suppress(RuntimeError):  # the store may have gone
            self._store.set(OVER, "")

    def end(self) -> None:
        """Let them end by themselves, which they were told to."""
        self._store.set(OVER, "")

    def close(self) -> None:
        """Leave nothing behind."""

    def _ended(self) -> str | None:
        """What is to be said of a process that has ended; None while all are at work."""
        raise NotImplementedError

    def _said(self, rank: int) -> str | None:
        """What a follower has written down of its end."""
        with suppress(RuntimeError):
            if self._store.check([failure(rank)]):
                return f"process {rank} of {self._count}: {self._store.get(failure(rank)).decode()}"
        return None


class _Started(_Others):
    """Followers that this process starts and watches."""

    def __init__(self, count: int, devices: list[str]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="embexp-processes-"))  # nobody else may look into it
        super().__init__(FileStore(str(self._folder / "store"), count), count)
        self._children = {}
        whose = [str(count), str(os.getpid())]
        for rank in range(1, count):
            with (self._folder / f"errors{rank}").open("wb") as errors:
                self._children[rank] = subprocess.Popen(
                    [sys.executable, "-m", "embexp.parallel.follower", self._folder, str(rank), *whose],
                    env=_environment(torch.get_num_threads(), devices[rank] if devices else None),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    process_group=0,  # Ctrl-C is for process 0, which ends them
                )

    def connect(self, *, gpu: bool) -> Groups:
        """Connect to all; on GPUs a thread watches them, since NCCL waits for a dead process."""
        groups = super().connect(gpu=gpu)
        if groups.gpu is not None:
            threading.Thread(target=self._watch, args=(groups.gpu,), daemon=True).start()
        return groups

    def _watch(self, gpu: Any) -> None:
        while all(child.poll() is None for child in self._children.values()):
            time.sleep(0.2)
        if any(child.poll() for child in self._children.values()):
            gpu.abort()

    def _ended(self) -> str | None:
        codes = {rank: code for rank, child in self._children.items() if (code := child.poll()) not in (None, LOST)}
        for rank, code in codes.items():
            return self._said(rank) or f"process {rank} of {self._count} ended with {_named(code)}{self._words(rank)}"
        return None

    def _words(self, rank: int) -> str:
        """The last line that a follower has printed."""
        lines = (self._folder / f"errors{rank}").read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last}" if last else ""

    def stop(self) -> None:
        """Kill them; they own nothing."""
        super().stop()
        for child in self._children.values():
            child.kill()

    def end(self) -> None:
        """Wait for their end, which they were told to."""
        super().end()
        until = time.monotonic() + SECONDS_TO_END
        for child in self._children.values():
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, until - time.monotonic()))

    def close(self) -> None:
        """Leave neither a process nor a file."""
        for child in self._children.values():
            child.kill()
            child.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


class _Launched(_Others):
    """Followers that torchrun has started; it ends all with SIGTERM when one ends."""

    def __init__(self, launched: Launched) -> None:
        super().__init__(store_of(launched), launched.count)
        self._before = signal.signal(signal.SIGTERM, self._told_to_end)

    def _told_to_end(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        until = time.monotonic() + SECONDS_TO_KNOW / 5
        while self._ended() is None:
            if time.monotonic() > until:  # nobody has ended: torchrun itself was told to
                raise KeyboardInterrupt
            time.sleep(0.02)
        raise LostError("torchrun ends this process")

    def _ended(self) -> str | None:
        for rank in range(1, self._count):
            with suppress(RuntimeError):
                if said := self._said(rank):
                    return said
                if self._store.check([here(rank)]) and not _is_alive(int(self._store.get(here(rank)))):
                    return f"process {rank} of {self._count} has ended; torchrun says below how"
        return None

    def stop(self) -> None:
        """Tell them, and let nothing disturb what is written now."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        super().stop()

    def end(self) -> None:
        """Take signals as before."""
        super().end()
        signal.signal(signal.SIGTERM, self._before)


def _devices(count: int) -> list[str]:
    """A GPU for each process; none where there is none."""
    devices = gpus() if torch.version.cuda is not None else []
    if devices and count > len(devices):
        raise UserError(f"trainer.processes={count}: there are {len(devices)} GPUs, and each process needs its own")
    return devices[:count]


def _environment(threads: int, device: str | None) -> dict[str, str]:
    """What a follower is started with: it finds what this process finds, and keeps to its share."""
    own = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
    path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    seen = {"CUDA_VISIBLE_DEVICES": device} if device is not None else {}
    return {**os.environ, **own, **seen, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "true"}


def _named(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"{signal.Signals(-code).name}{WHY.get(signal.Signals(-code), '')}"


def _is_alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
