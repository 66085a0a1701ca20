"""The study that sweepers share: which trial is next, which is to run again, what may not change.

Every decision is made while the study's lock is held, so that any number of sweepers, on any number of machines, start
exactly as many trials as were asked for. Called by `sweep.sweeper`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from embexp.errors import UserError, listed
from embexp.sweep.lease import BEAT, OWNER, PROCESS, Watch, this_process
from embexp.sweep.reference import Address
from embexp.sweep.storage import alone, opened
from embexp.sweep.trial import REASON

CONTRACT = "contract"  # what may not change: an attribute of the study
DEATHS, DIED = "deaths", "died"  # attributes of a trial: how often its process was killed, and how it was the last time
MOST_DEATHS = 3  # then the trial itself is taken for the cause


class Study:
    """A study by its name, made where there is none."""

    def __init__(
        self,
        address: Address,
        name: str,
        *,
        directions: Sequence[Any],
        sampler: Callable[[int], BaseSampler],
        pruner: optuna.pruners.BasePruner,
        lease: float,
    ) -> None:
        """sampler: makes one for the trial with a number, so that what is tried does not depend on interruptions.
        lease: seconds without a beat after which a trial of another machine is run again."""
        self._address, self.name, self._sampler = address, name, sampler
        self._directions = list(directions)
        self._storage = opened(address)
        self._watch = Watch(lease)
        with self.alone():
            try:
                self._study = optuna.create_study(
                    study_name=name, storage=self._storage, directions=list(directions), pruner=pruner
                )
            except DuplicatedStudyError:
                self._study = optuna.load_study(study_name=name, storage=self._storage, pruner=pruner)
        self.as_optuna = self._study

    def hold_to(self, contract: Mapping[str, Mapping[str, Any]], *, complete: bool = True) -> None:
        """Keep what the study is about, or refuse to go on with what has changed since it was started.

        contract: kind (search space, objectives, config, data) -> name -> value, as JSON values. complete: whether it
        has all kinds; else it is only looked at.
        """
        with self.alone():
            before = self._study.user_attrs.get(CONTRACT)
            if before is None and complete:
                self._study.set_user_attr(CONTRACT, contract)
        if before is None:
            self._refuse_other_directions()
            return
        changed = [
            f"{kind}: {name} was {was.get(name, 'not there')!r}, now {now.get(name, 'not there')!r}"
            for kind in contract
            for was, now in [(before.get(kind, {}), contract[kind])]
            for name in {**was, **now}
            if was.get(name) != now.get(name)
        ]
        if changed:
            raise UserError(
                f"the sweep {self.name} was started otherwise. {listed(changed, most=8)}. Leave the change out, or "
                "set another sweep.name to start afresh"
            )

    def _refuse_other_directions(self) -> None:
        """For a study whose first sweeper ended before it knew what the study is about."""
        found = [direction.name.lower() for direction in self._study.directions]
        if found != self._directions:
            raise UserError(
                f"the study {self.name} is there already and asks for {listed(found)}, now {listed(self._directions)}; "
                "set another sweep.name"
            )

    @property
    def setting(self) -> str:
        """Where it is kept, as the user has said."""
        return self._address.setting

    def trials(self) -> list[FrozenTrial]:
        """All of them, by number."""
        return self._study.get_trials(deepcopy=False)

    def next(self, total: int, *, free: Callable[[int], None]) -> tuple[optuna.Trial, str] | None:
        """A trial to run, and the token of this attempt at it; None when none is waiting and there are `total`.

        free: raises UserError when the place of a new trial with this number is taken.
        """
        with self.alone():
            trials = self.trials()
            waiting = [trial.number for trial in trials if trial.state == TrialState.WAITING]
            if not waiting and len(trials) >= total:
                return None
            if not waiting:
                free(len(trials))
            self._study.sampler = self._sampler(min(waiting, default=len(trials)))
            trial = self._study.ask()
            owner = uuid.uuid4().hex
            trial.set_user_attr(OWNER, owner)
            trial.set_user_attr(PROCESS, this_process())
            return trial, owner

    def enqueue(self, params: Sequence[Mapping[str, Any]]) -> None:
        """Make these the trials, in this order; those that are there already stay."""
        with self.alone():
            for each in params[len(self.trials()) :]:
                self._study.enqueue_trial(dict(each))

    def run_again(self, mine: set[int]) -> list[int]:
        """Put back the trials that nobody is at work on any more; returns their numbers. mine: those that are."""
        over = [trial for trial in self._running() if trial.number not in mine and self._is_over(trial)]
        if not over:
            return []
        with self.alone():  # another sweeper may have seen the same
            again = [trial for trial in self._running() if trial.number in {t.number for t in over}]
            again = [trial for trial in again if self._is_over(trial)]
            for trial in again:
                self._set_state(trial, TrialState.WAITING)
            return [trial.number for trial in again]

    def release(self, number: int, owner: str, *, died: str | None = None) -> bool:
        """Put back a trial whose process has ended without a word, unless another has it; says whether it was.

        died: how it was killed. One that was killed often enough is failed: it may be the cause itself.
        """
        with self.alone():
            trial = self.trials()[number]
            if trial.state != TrialState.RUNNING or trial.user_attrs.get(OWNER) != owner:
                return False
            deaths = trial.user_attrs.get(DEATHS, 0) + (died is not None)
            self._storage.set_trial_user_attr(trial._trial_id, DEATHS, deaths)
            if died is not None and deaths >= MOST_DEATHS:
                self._fail(trial, f"{died}, {deaths} times; perhaps for want of memory")
                return False
            self._set_state(trial, TrialState.WAITING)
            return True

    def put_back(self, stopped: Sequence[tuple[int, str]]) -> None:
        """Put back all that this process has handed out, when it ends early; stopped: number and owner of those that
        others were at work on. One that was not started yet is none of these."""
        with self.alone():
            for trial in self._running():
                owner, process = trial.user_attrs.get(OWNER), trial.user_attrs.get(PROCESS)
                if (trial.number, owner) in stopped or process == this_process() or self._is_over(trial):
                    self._set_state(trial, TrialState.WAITING)

    def fail(self, number: int, owner: str, reason: str) -> None:
        """End a trial as failed, unless it has ended or another process has it."""
        with self.alone():
            trial = self.trials()[number]
            if trial.state == TrialState.RUNNING and trial.user_attrs.get(OWNER) == owner:
                self._fail(trial, reason)

    def renew(self, number: int, beat: float) -> None:
        """Renew the lease of a trial whose process has not started yet."""
        trial = self.trials()[number]
        if trial.state == TrialState.RUNNING and trial.user_attrs[PROCESS] == this_process():
            self._storage.set_trial_user_attr(trial._trial_id, BEAT, beat)

    def alone(self) -> AbstractContextManager[None]:
        """Hold the study's lock."""
        return alone(self._address, self._storage, self.name)

    def _running(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials() if trial.state == TrialState.RUNNING]

    def _is_over(self, trial: FrozenTrial) -> bool:
        return self._watch.is_over(trial.number, trial.user_attrs)

    def _fail(self, trial: FrozenTrial, reason: str) -> None:
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(trial._trial_id, REASON, reason)
        self._set_state(trial, TrialState.FAIL)

    def _set_state(self, trial: FrozenTrial, state: TrialState) -> None:
        with suppress(UpdateFinishedTrialError):  # its own process has just told how it ended
            self._storage.set_trial_state_values(trial._trial_id, state)
