"""Runs the trials of a study until all have ended, here or elsewhere. Called by `sweep.sweeper`.

`sweep.study` decides which trial is next, `sweep.crew` runs it; here is what becomes of one whose process has ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from embexp.errors import UserError
from embexp.jobs.job import Job
from embexp.reporting import report as reports
from embexp.sweep import summary
from embexp.sweep.crew import Crew, End
from embexp.sweep.settings import Settings
from embexp.sweep.storage import patiently
from embexp.sweep.study import Study

log = logging.getLogger("embexp")

STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError, OSError)
FEWEST_TO_JUDGE = 5  # ended trials, before too many failures stop a sweep
POLL = 1.0  # seconds between looks at what other machines have done


@dataclass
class Runner:
    """folder: the sweep's. label_of: a trial's folder in it, by number. job_of: the job of a trial, and of an attempt
    at it by its token."""

    study: Study
    crew: Crew
    settings: Settings
    folder: Path
    label_of: Callable[[int], str]
    job_of: Callable[[optuna.Trial, str], Job]
    _told: set[int] = field(default_factory=set)  # the ended trials that the user knows of

    def run(self, total: int) -> None:
        """Run trials until `total` have ended. Raises UserError when too many failed, or one can't be run at all."""
        self._told = {trial.number for trial in self.study.trials() if trial.state.is_finished()}
        try:
            while patiently(partial(self._step, total)):
                self.crew.wait(POLL)
        except BaseException as error:
            left = self.crew.stop(interrupted=isinstance(error, KeyboardInterrupt))
            with suppress(*STORAGE_ERRORS):  # then they are seen to be gone when the sweep goes on
                self.study.put_back(left)
            raise

    def _step(self, total: int) -> bool:
        """See to what has ended, start what has room; says whether there is more to come.

        It may end half done, when the database goes away: a trial whose process was not seen to is then found to be
        left.
        """
        for number, owner, ended in self.crew.ended():
            self._settle(number, owner, ended)
        for number in self.study.run_again(self.crew.numbers()):
            log.info("#%s was left by a process that is gone, and runs again", self.label_of(number))
        self._tell()
        stopped = self._too_many_failed()
        while not stopped and self.crew.has_room():
            found = self.study.next(total, free=self._refuse_taken)
            if found is None:
                break
            self._start(*found)
        if not self.crew.numbers() and (stopped or self._all_ended(total)):
            if stopped:
                raise UserError(stopped)
            return False
        self.crew.renew(self.study, lease=self.settings.lease)
        return True

    def _tell(self) -> None:
        for trial in self.study.trials():
            if trial.state.is_finished() and trial.number not in self._told:
                self._told.add(trial.number)
                label = self.label_of(trial.number)
                best = summary.best_of(self.study.as_optuna) if "/" not in label else None  # no search, no best
                log.info("%s", summary.line(trial, label, best))

    def _start(self, trial: optuna.Trial, owner: str) -> None:
        try:
            self.crew.start(self.job_of(trial, owner))
        except BaseException:  # its folder holds another run, or the cluster took no job
            with suppress(*STORAGE_ERRORS):
                self.study.release(trial.number, owner)
            raise

    def _settle(self, number: int, owner: str, ended: End) -> None:
        """See to a trial whose process has ended without telling the study how."""
        label = self.label_of(number)
        result = reports.read(self.folder / label)
        if ended.disk_full:
            self.study.release(number, owner)
            raise UserError(f"the disk is full, or nearly: see {self.folder / label / 'embexp.log'}. Free some space")
        if result is not None and result["status"] in ("completed", "pruned"):
            self.study.release(number, owner)  # whoever takes it finds the result and tells it
        elif ended.out_of_memory:
            self.study.fail(number, owner, "the system ended it for want of memory (out of memory)")
        elif ended.from_outside:
            if self.study.release(number, owner, died=None if ended.interrupted else ended.words):
                log.info("#%s %s, and runs again", label, ended.words)
        else:
            self.study.fail(number, owner, f"its process {ended.words} and left no result")

    def _all_ended(self, total: int) -> bool:
        trials = self.study.trials()
        return len(trials) >= total and all(trial.state.is_finished() for trial in trials)

    def _too_many_failed(self) -> str | None:
        ended = [trial for trial in self.study.trials() if trial.state.is_finished()]
        failed = [trial for trial in ended if trial.state == TrialState.FAIL]
        if len(ended) < FEWEST_TO_JUDGE or len(failed) <= self.settings.max_failed * len(ended):
            return None
        return (
            f"{len(failed)} of {len(ended)} trials failed, more than hydra.sweeper.max_failed="
            f"{self.settings.max_failed} allows, so the sweep stops.\n{summary.reasons(ended)}\nMend the cause and "
            "set another sweep.name, or raise hydra.sweeper.max_failed to go on"
        )

    def _refuse_taken(self, number: int) -> None:
        """Refuse a new trial whose folder holds something already: nothing is overwritten."""
        folder = self.folder / self.label_of(number)
        if folder.exists() and any(folder.iterdir()):
            raise UserError(
                f"{folder} holds a run that the study {self.study.setting} does not know; set another sweep.name, "
                "or move the folder away"
            )
