"""Who carries the trials out: processes on this machine, or jobs of a cluster. Called by `sweep.sweeper`."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from typing import Protocol

from embexp.jobs.job import DISK_FULL, INTERRUPTED, Job
from embexp.jobs.workers import Ended, Worker, slots, wait_for_any
from embexp.sweep.study import Study

FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


@dataclass(frozen=True)
class End:
    """How a trial's process ended: in words, and whether something outside the trial ended it.

    interrupted: it ended by itself, since it could not go on now (Ctrl-C, or its folder is still in use).
    """

    words: str
    from_outside: bool
    interrupted: bool = False
    out_of_memory: bool = False
    disk_full: bool = False


class Crew(Protocol):
    """Runs jobs, some at a time."""

    def has_room(self) -> bool:
        """Whether another job can start."""

    def start(self, job: Job) -> None:
        """Start a trial's job."""

    def numbers(self) -> set[int]:
        """The trials at work."""

    def ended(self) -> list[tuple[int, str, End]]:
        """Number, owner and end of those that have ended since the last call."""

    def renew(self, study: Study, *, lease: float) -> None:
        """Renew the leases, of some seconds, of trials that can't do it themselves yet."""

    def wait(self, seconds: float) -> None:
        """Return when a job may have ended, or after some seconds."""

    def stop(self, *, interrupted: bool) -> list[tuple[int, str]]:
        """End all jobs, after Ctrl-C or another end of the sweep; returns number and owner of each."""


class LocalCrew:
    """A process for each trial, which may have further ones of its own, in one of some slots."""

    def __init__(self, places: int, *, processes: int) -> None:
        """processes: of each trial. Raises UserError where there are fewer GPUs than these."""
        self._free = slots(places, processes=processes)
        self._at_work: dict[str, tuple[Worker, int]] = {}  # by owner: one trial may be given out again meanwhile

    def has_room(self) -> bool:
        """Whether a slot is free."""
        return bool(self._free)

    def start(self, job: Job) -> None:
        """Start the job in a free slot."""
        assert job.trial is not None
        self._at_work[job.trial.owner] = (Worker(job, self._free.pop(0), quiet=True), job.trial.number)

    def numbers(self) -> set[int]:
        """The trials at work."""
        return {number for _, number in self._at_work.values()}

    def ended(self) -> list[tuple[int, str, End]]:
        """Number, owner and end of those that have ended since the last call."""
        found = []
        for owner, (worker, number) in list(self._at_work.items()):
            if (end := worker.ended()) is not None:
                del self._at_work[owner]
                self._free.append(worker.slot)
                found.append((number, owner, end_of(end)))
        return found

    def renew(self, study: Study, *, lease: float) -> None:
        """Nothing: a process renews its own from the start."""

    def wait(self, seconds: float) -> None:
        """Return when a process has ended, or after some seconds."""
        if self._at_work:
            wait_for_any([worker for worker, _ in self._at_work.values()], seconds=seconds)
        else:
            time.sleep(seconds)

    def stop(self, *, interrupted: bool) -> list[tuple[int, str]]:
        """End all processes."""
        stopped = []
        for owner, (worker, number) in self._at_work.items():
            worker.stop(interrupted=interrupted)
            stopped.append((number, owner))
        self._at_work.clear()
        return stopped


def end_with(code: int) -> End:
    """The end of a trial's process that ended by itself."""
    interrupted = code == INTERRUPTED
    words = "was interrupted, or its folder was in use" if interrupted else f"ended with exit code {code}"
    return End(words, from_outside=interrupted, interrupted=interrupted, disk_full=code == DISK_FULL)


def end_of(ended: Ended) -> End:
    """The end of a worker."""
    if ended.code >= 0:
        return end_with(ended.code)
    name = signal.Signals(-ended.code).name
    return End(f"was killed by {name}", from_outside=-ended.code in FROM_OUTSIDE, out_of_memory=ended.out_of_memory)
