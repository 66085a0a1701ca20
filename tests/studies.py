"""A study in a folder, asked and marked as sweepers and trials do it; and processes that start at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState

from embexp.sweep.reference import Address
from embexp.sweep.study import Study

FORK = multiprocessing.get_context("fork")  # of a process that has torch or is at work in threads: only to end soon


def _at_random(number: int) -> BaseSampler:
    return RandomSampler(seed=number)


def study_in(
    folder: Path,
    *,
    name: str = "test",
    directions: tuple[str, ...] = ("maximize",),
    sampler: Callable[[int], BaseSampler] = _at_random,
    pruner: optuna.pruners.BasePruner | None = None,
    lease: float = 60.0,
) -> Study:
    pruner = pruner or optuna.pruners.NopPruner()
    return Study(Address(str(folder)), name, directions=directions, sampler=sampler, pruner=pruner, lease=lease)


def asked(study: Study, total: int = 10) -> tuple[optuna.Trial, str] | None:
    """A trial to run and its owner; None when there are `total`."""
    return study.next(total, free=lambda number: None)


def mark(study: Study, number: int, key: str, value: Any) -> None:
    """Set an attribute of a trial, as another process would."""
    study._storage.set_trial_user_attr(study.trials()[number]._trial_id, key, value)


def states(study: Study) -> list[TrialState]:
    return [trial.state for trial in study.trials()]
