"""Who carries the trials out: processes on this machine, or jobs of a cluster. Called by `sweep.sweeper`."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig

from embexp.checks import plain
from embexp.errors import UserError
from embexp.job import INTERRUPTED, Job
from embexp.sweep.study import Study
from embexp.workers import Ended, Worker, slots, wait_for_any

FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


@dataclass(frozen=True)
class End:
    """How a trial's process ended: in words, and whether something outside the trial ended it."""

    words: str
    from_outside: bool
    out_of_memory: bool = False


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

    def renew(self, study: Study) -> None:
        """Renew the leases of trials that can't do it themselves yet."""

    def wait(self, seconds: float) -> None:
        """Return when a job may have ended, or after some seconds."""

    def stop(self) -> list[tuple[int, str]]:
        """End all jobs; returns number and owner of those that were at work."""


class LocalCrew:
    """A process for each trial, in one of some slots."""

    def __init__(self, places: int) -> None:
        self._free = slots(places)
        self._at_work: dict[int, tuple[Worker, str]] = {}

    def has_room(self) -> bool:
        """Whether a slot is free."""
        return bool(self._free)

    def start(self, job: Job) -> None:
        """Start the job in a free slot."""
        assert job.trial is not None
        self._at_work[job.trial.number] = (Worker(job, self._free.pop(0), quiet=True), job.trial.owner)

    def numbers(self) -> set[int]:
        """The trials at work."""
        return set(self._at_work)

    def ended(self) -> list[tuple[int, str, End]]:
        """Number, owner and end of those that have ended since the last call."""
        found = []
        for number, (worker, owner) in list(self._at_work.items()):
            if (end := worker.ended()) is not None:
                del self._at_work[number]
                self._free.append(worker.slot)
                found.append((number, owner, end_of(end)))
        return found

    def renew(self, study: Study) -> None:
        """Nothing: a process renews its own from the start."""

    def wait(self, seconds: float) -> None:
        """Return when a process has ended, or after some seconds."""
        if self._at_work:
            wait_for_any([worker for worker, _ in self._at_work.values()], seconds=seconds)
        else:
            time.sleep(seconds)

    def stop(self) -> list[tuple[int, str]]:
        """End all processes."""
        stopped = []
        for number, (worker, owner) in self._at_work.items():
            worker.stop()
            stopped.append((number, owner))
        self._at_work.clear()
        return stopped


def end_of(ended: Ended) -> End:
    """An exit code in words."""
    if ended.code >= 0:
        words = "was interrupted" if ended.code == INTERRUPTED else f"ended with exit code {ended.code}"
        return End(words, from_outside=ended.code == INTERRUPTED)
    name = signal.Signals(-ended.code).name
    return End(f"was killed by {name}", from_outside=-ended.code in FROM_OUTSIDE, out_of_memory=ended.out_of_memory)


def crew_for(config: DictConfig, places: int, folder: Path) -> Crew:
    """The crew for the launcher that is chosen. Raises UserError where it can't run trials."""
    node: Mapping[str, Any] = plain(config.hydra.launcher)
    target = str(node.get("_target_"))
    if target == "hydra_plugins.embexp_launcher.ProcessLauncher":
        return LocalCrew(places)
    if target.startswith("hydra_plugins.hydra_submitit_launcher."):
        from embexp.sweep.submitted import SubmittedCrew

        return SubmittedCrew(node, places, folder)
    raise UserError(f"a sweep runs with hydra/launcher=embexp, submitit_slurm or submitit_local; {target} is none")
