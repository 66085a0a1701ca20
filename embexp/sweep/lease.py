"""Who is at work on a trial, and whether they still are. Called by `sweep.trial` and `sweep.study`.

Whoever works on a trial renews its `beat`. On the same machine a process that is gone is seen at once; on another one
its beats stop, which an observer notices by its own clock, so that clocks need not agree.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

OWNER, PROCESS, BEAT = "owner", "process", "beat"  # attributes of a trial
CLOCK_ERROR = 0.5  # in what a process's start is given in: less than a tick, or than a second
RENEWALS = 4  # within a lease


def this_process() -> dict[str, Any]:
    """What tells this process from all others: machine, process id and start time."""
    return {"machine": _machine(), "pid": os.getpid(), "started": started_at(os.getpid())}


def is_gone(process: Mapping[str, Any] | None) -> bool:
    """Whether a process is known to have ended; one of another machine never is."""
    if process is None or process["machine"] != _machine():
        return False
    started = started_at(process["pid"])
    return started is None or abs(started - process["started"]) > CLOCK_ERROR


class Watch:
    """Notices beats that have stopped for `seconds` of this process's time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: dict[int, tuple[Any, float, float]] = {}  # what, for how long, when last

    def is_over(self, number: int, attributes: Mapping[str, Any]) -> bool:
        """Whether the lease of the trial with this number is over: its process is gone, or has stopped to beat."""
        if OWNER not in attributes or is_gone(attributes.get(PROCESS)):
            return True  # without an owner: killed while it was handed out, which is done under the study's lock
        sign = (attributes[OWNER], attributes.get(BEAT))
        now = time.monotonic()
        last, lasted, looked = self._seen.get(number, (None, 0.0, now))
        # a long time without a look says little: the database may have been away, for the trial's process too
        lasted = lasted + min(now - looked, self._seconds / RENEWALS) if sign == last else 0.0
        self._seen[number] = (sign, lasted, now)
        return lasted > self._seconds


@contextmanager
def renewed(beat: Callable[[], None], *, seconds: float) -> Iterator[None]:
    """Call `beat` every part of `seconds` in a thread of its own."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(seconds / RENEWALS):
            beat()

    thread = threading.Thread(target=renew, daemon=True, name="lease")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def started_at(pid: int) -> float | None:
    """When a process was started, by a clock that nobody sets where there is one; None for one that has ended."""
    if sys.platform == "linux":  # ticks since the machine was started: psutil adds the wall clock to these
        try:
            state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if state == "Z" else float(fields[18])
    try:
        return None if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE else psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def _machine() -> str:
    """This machine since it was started, seen from this container."""
    parts = [platform.node()]
    with suppress(OSError):  # not Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)
