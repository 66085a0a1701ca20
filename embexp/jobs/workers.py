"""Runs jobs in processes of their own, forked from one that has done the imports. Called by `launcher` and by sweeps.

A crash, a segmentation fault or a kill ends its job alone, and a job does not pay the seconds of importing torch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import psutil

from embexp.jobs.job import Job
from embexp.parallel.machine import Slot, cores, end_with, gpus, gpus_for, keep_to

PRELOADED = ["embexp.jobs.preloaded"]
SECONDS_TO_END = 30  # after Ctrl-C
UNKNOWN = 255  # what multiprocessing gives for an exit code that nobody was left to tell


@dataclass(frozen=True)
class Ended:
    """How a worker ended: its exit code, negative for the signal that ended it; what is known beside it."""

    code: int
    out_of_memory: bool = False


class Worker:
    """A job at work in a process of its own."""

    def __init__(self, job: Job, slot: Slot, *, quiet: bool) -> None:
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(PRELOADED)
        self._killed_before = _killed_for_memory()

        def started() -> Any:
            process = server.Process(target=_carry_out, args=(job, slot, quiet), name=f"job-{job.folder.name}")
            process.start()
            return process

        try:
            self._process = started()
        except (EOFError, ConnectionError):  # the process that forks was killed just now; the next call starts another
            self._process = started()
        self.sentinel = self._process.sentinel
        self.slot = slot

    def ended(self) -> Ended | None:
        """How it ended; None while it is at work."""
        code = self._process.exitcode
        if code is None:
            return None
        if code == UNKNOWN and psutil.pid_exists(self._process.pid):  # the process that forks was killed
            os.kill(self._process.pid, signal.SIGKILL)  # or it would go on beside whoever has its job next
            code = -signal.SIGKILL
        return Ended(code, out_of_memory=code < 0 and _killed_for_memory() > self._killed_before)

    def stop(self, *, interrupted: bool) -> None:
        """Kill it; after Ctrl-C, which the terminal has sent to it as well, only when it takes too long to end."""
        if interrupted:
            self._process.join(timeout=SECONDS_TO_END)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def wait_for_any(workers: Sequence[Worker], *, seconds: float) -> None:
    """Return when one of the workers has ended, or after some seconds."""
    wait([worker.sentinel for worker in workers], timeout=seconds)


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns, called in a process of its own. Raises what it raises.

    Raises ChildProcessError when the process ends without an answer.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    here, there = server.Pipe(duplex=False)
    process = server.Process(target=_answer, args=(there, function, arguments))
    process.start()
    there.close()
    try:
        answer = here.recv()
    except EOFError as error:
        process.join()
        raise ChildProcessError(f"the process ended with exit code {process.exitcode}") from error
    process.join()
    if isinstance(answer, Exception):
        raise answer
    return answer


def slots(number: int, *, processes: int = 1) -> list[Slot]:
    """That many slots, with the cores shared out among them and the GPUs in turn, one for each process of a job.

    processes: of each job. Raises UserError where a job has more of them than there are GPUs.
    """
    if processes > 1:
        gpus_for(processes)  # before the first job, which would refuse them too, as would all others
    threads, devices = max(1, cores() // number), gpus()
    each = min(processes, len(devices))
    turns = [[devices[(place * each + further) % len(devices)] for further in range(each)] for place in range(number)]
    return [Slot(threads, ",".join(turn) or None) for turn in turns]


def _carry_out(job: Job, slot: Slot, quiet: bool) -> None:
    _end_with_parent()
    keep_to(slot)
    if quiet:
        _into_log(job.folder / "embexp.log")
    job.run_elsewhere()


def _answer(answer: Any, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    _end_with_parent()
    try:
        answer.send(function(*arguments))
    except Exception as error:
        answer.send(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    end_with(parent.pid)  # not the system's parent, which is the process that forks


def _into_log(path: Path) -> None:
    """Send what is printed, by libraries and by a dying interpreter too, to the run's log."""
    with path.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())


def _killed_for_memory() -> int:
    """How many processes the system has killed for want of memory; 0 where it does not say."""
    with suppress(OSError, StopIteration):
        return int(next(_counter("oom_kill")))
    return 0


def _counter(name: str) -> Iterator[str]:
    for line in Path("/proc/vmstat").read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            yield value
