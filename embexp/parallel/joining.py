"""Brings the processes of a run together and tells which one was lost. Called by `run`; starts `follower`.

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
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.distributed import FileStore  # type: ignore[attr-defined]

from embexp.errors import UserError
from embexp.parallel.machine import Launched, Slot, gpus_for, is_alive, kept_to, threads_of
from embexp.parallel.meeting import LOST, OPEN, OVER, failure, here, ready, store_of
from embexp.parallel.processes import Groups, LostError, Processes, connected_over

SECONDS_TO_END = 10.0
BETWEEN_LOOKS = 0.2  # seconds, at whether all are at work
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
    devices = gpus_for(count)
    threads = threads_of(count, launched, now=torch.get_num_threads())
    slots = [Slot(threads, device) for device in devices] or [Slot(threads)] * count
    with kept_to(slots[0]):
        others = _Started(slots) if launched is None else _Launched(launched)
        processes = Processes(0, count, lambda: others.connect(gpu=bool(devices)))
        try:
            others.start()
            yield processes
            others.end(processes)
        except BaseException as error:
            lost = others.why_lost(error) if isinstance(error, LostError) else None
            others.stop()
            if lost is not None:
                raise UserError(lost) from error
            raise
        finally:
            others.close()


class _Others(ABC):
    """The followers, from the side of process 0."""

    def __init__(self, store: Any, count: int) -> None:
        self._store, self._count = store, count
        self._over = threading.Event()

    @abstractmethod
    def start(self) -> None:
        """Start them, or what hears of their end."""

    def connect(self, *, gpu: bool) -> Groups:
        """Connect to all, once all are ready. Raises LostError when one has ended before."""
        while not all(self._store.check([ready(rank)]) for rank in range(1, self._count)):
            if self._ended():
                raise LostError("a process has ended before it could connect")
            time.sleep(0.05)
        self._store.set(OPEN, "")
        groups = connected_over(self._store, 0, self._count, gpu=gpu)
        if groups.gpu is not None:
            threading.Thread(target=self._watch, args=(groups.gpu,), daemon=True).start()
        return groups

    def _watch(self, gpu: Any) -> None:
        """Abort what waits on a GPU for a process that has ended, which NCCL would do for ever."""
        while not self._over.wait(BETWEEN_LOOKS):
            if self._any_gone():
                return gpu.abort()

    def why_lost(self, error: LostError) -> str:
        """What is to be said of the process that ended, once that shows."""
        until = time.monotonic() + SECONDS_TO_KNOW
        while (ended := self._ended()) is None and time.monotonic() < until:
            time.sleep(0.02)
        return ended or f"another of the {self._count} processes can't be reached ({error}); resume the run"

    def stop(self) -> None:
        """End them at once: what they were told to do has no end any more."""
        self._over.set()
        with suppress(RuntimeError):  # the store may have gone
            self._store.set(OVER, "")

    def end(self, processes: Processes) -> None:
        """Tell them to end, which they do by themselves."""
        self._over.set()  # first, since nobody is lost who ends now
        if processes.connected:
            processes.tell("end")
        self._store.set(OVER, "")

    @abstractmethod
    def close(self) -> None:
        """Leave nothing behind."""

    @abstractmethod
    def _ended(self) -> str | None:
        """What is to be said of a process that has ended; None while all are at work."""

    def _any_gone(self) -> bool:
        """Whether one has ended, also of another's end."""
        return self._ended() is not None

    def _said(self, rank: int) -> str | None:
        """What a follower has written down of its end."""
        with suppress(RuntimeError):
            if self._store.check([failure(rank)]):
                return f"process {rank} of {self._count}: {self._store.get(failure(rank)).decode()}"
        return None


class _Started(_Others):
    """Followers that this process starts and watches."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        """slots: what each process may use, by rank."""
        self._folder = Path(tempfile.mkdtemp(prefix="embexp-processes-"))  # nobody else may look into it
        super().__init__(FileStore(str(self._folder / "store"), len(slots)), len(slots))
        self._slots = slots
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start a process of each rank but 0."""
        whose = [str(self._count), str(os.getpid())]
        for rank in range(1, self._count):
            with (self._folder / f"errors{rank}").open("wb") as errors:
                self._children[rank] = subprocess.Popen(
                    # -P: nothing of the current folder's is imported that this process would not import
                    [sys.executable, "-P", "-m", "embexp.parallel.follower", self._folder, str(rank), *whose],
                    env=_environment(self._slots[rank]),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    process_group=0,  # Ctrl-C is for process 0, which ends them
                )

    def _ended(self) -> str | None:
        codes = {rank: code for rank, child in self._children.items() if (code := child.poll()) not in (None, LOST)}
        for rank, code in codes.items():
            return self._said(rank) or f"process {rank} of {self._count} ended with {_named(code)}{self._words(rank)}"
        return None

    def _any_gone(self) -> bool:
        return any(child.poll() is not None for child in self._children.values())

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

    def end(self, processes: Processes) -> None:
        """Wait for their end."""
        super().end(processes)
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
        self._before: Any = signal.SIG_DFL

    def start(self) -> None:
        """Hear when torchrun ends all."""
        self._before = signal.signal(signal.SIGTERM, self._told_to_end)

    def _told_to_end(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        until = time.monotonic() + SECONDS_TO_KNOW / 5
        while self._ended() is None:
            if time.monotonic() > until:  # nobody has ended: torchrun itself was told to
                raise KeyboardInterrupt
            time.sleep(0.02)
        raise LostError("torchrun ends this process")

    def close(self) -> None:
        """Nothing: torchrun ends what it has started."""

    def _ended(self) -> str | None:
        for rank in range(1, self._count):
            with suppress(RuntimeError):
                if said := self._said(rank):
                    return said
                if self._store.check([here(rank)]) and not is_alive(int(self._store.get(here(rank)))):
                    return f"process {rank} of {self._count} has ended; torchrun says below how"
        return None

    def stop(self) -> None:
        """Tell them, and let nothing disturb what is written now."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        super().stop()

    def end(self, processes: Processes) -> None:
        """Take signals as before."""
        super().end(processes)
        signal.signal(signal.SIGTERM, self._before)


def _environment(slot: Slot) -> dict[str, str]:
    """What a follower is started with: it finds what this process finds, and keeps to its slot."""
    path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    return {**os.environ, **slot.environment, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "true"}


def _named(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"{signal.Signals(-code).name}{WHY.get(signal.Signals(-code), '')}"
