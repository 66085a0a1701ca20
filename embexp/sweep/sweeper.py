"""Carries out a sweep: which trials, where they run, what becomes of each, and the winner's confirmation.

Hydra calls it through `hydra_plugins/embexp_sweeper.py`. Top to bottom: settings -> study -> trials -> winner ->
confirmation -> summary. `sweep.study` decides what is next, `workers` or `sweep.submitted` run it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import configure_log, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from embexp import launcher
from embexp import report as reports
from embexp.checks import plain
from embexp.components import build
from embexp.errors import UserError, described
from embexp.job import Job, explained
from embexp.sweep import space as spaces
from embexp.sweep import summary
from embexp.sweep.composing import Composer
from embexp.sweep.crew import Crew, LocalCrew
from embexp.sweep.reference import Address, TrialReference
from embexp.sweep.settings import Settings
from embexp.sweep.storage import patiently, said_first
from embexp.sweep.study import Study
from embexp.sweep.submitted import SubmittedCrew
from embexp.workers import in_own_process

log = logging.getLogger("embexp")

FEWEST_TO_JUDGE = 5  # ended trials, before too many failures stop a sweep
STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError, OSError)
POLL = 1.0  # seconds between looks at what other machines have done


def carry_out(arguments: Sequence[str], *, context: HydraContext, config: DictConfig) -> None:
    """Carry out the sweep that the config describes; leaves its exit code with the launcher's.

    arguments: the overrides of the command line, checked.
    """
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    try:
        launcher.exit_codes.append(Sweep(arguments, context=context, config=config).run())
    except UserError as error:
        log.error("%s", explained(error))
        launcher.exit_codes.append(1)
    except STORAGE_ERRORS as error:
        text = f"the study can't be read or written: {described(said_first(error))}"
        log.error("embexp: %s\nwhat has ended is kept. The same command goes on", " ".join(text.split()))
        launcher.exit_codes.append(1)
    except KeyboardInterrupt:
        log.error("\ninterrupted; what has ended is kept. The same command goes on")
        launcher.exit_codes.append(1)


class Sweep:
    """One sweep, from this process's side; others may be at work on the same study."""

    def __init__(self, arguments: Sequence[str], *, context: HydraContext, config: DictConfig) -> None:
        self._settings = settings = Settings.of(plain(config.sweep), plain(config.hydra.sweeper))
        overrides = OverridesParser.create().parse_overrides(list(arguments))
        self._space = spaces.parse(settings.params, settings.where, overrides, complete=True)
        fixed = [o.input_line or "" for o in overrides if not o.is_sweep_override()]
        self._folder = Path(str(config.hydra.sweep.dir)).absolute()
        self._address = Address(str(self._folder), settings.storage, settings.storage_env)
        self._composer = Composer(context, config, fixed)
        self._crew: Crew = _crew_for(config, settings.n_jobs)
        self._directions = [settings.objectives[name] for name in settings.objectives]

    def run(self) -> int:
        """Run what is missing of the sweep; returns the exit code."""
        self._folder.mkdir(parents=True, exist_ok=True)
        study = self._study(self._settings.name, self._settings.pruner)
        study.hold_to(self._contract(), complete=False)
        study.hold_to({**self._contract(), "data": self._data()})
        OmegaConf.save(self._composer.config, self._folder / "multirun.yaml")
        total = self._settings.n_trials
        ended = sum(trial.state.is_finished() for trial in study.trials())
        log.info("sweep %s: %d of %d trials have ended; study: %s", study.name, ended, total, self._address.setting)
        self._run_all(study, total, self._trial_job)
        best = summary.best_of(study.as_optuna)
        if best is None:
            raise UserError(f"no trial was completed.\n{summary.reasons(study.trials())}")
        confirmation = self._confirm(best)
        made = summary.Summary(
            study.as_optuna, tuple(self._settings.objectives), self._composer.plain()["metric"], confirmation,
            command=self._composer.command(self._chosen(best)), folder=self._folder,
        )  # fmt: skip
        made.write()
        log.info("\n%s\n\nsummary: %s", made.text(), self._folder / "summary.md")
        failed = confirmation is not None and any(t.state != TrialState.COMPLETE for t in confirmation.get_trials())
        return 1 if failed else 0

    def _study(self, name: str, pruner: Mapping[str, Any] | None) -> Study:
        node = self._settings.sampler
        return Study(
            self._address,
            name,
            directions=self._directions,
            sampler=lambda number: build({**node, "seed": self._settings.seed + number}, allowed=["optuna"]),
            pruner=build(pruner, allowed=["optuna"]) if pruner else optuna.pruners.NopPruner(),
            lease=self._settings.lease,
        )

    def _contract(self) -> dict[str, Mapping[str, Any]]:
        """What may not change while the study grows, but for the data."""
        searched = {parameter.key for parameter in self._space.parameters}
        return {
            "search space": self._space.described(),
            "objectives": dict(self._settings.objectives),
            "config": self._composer.leaves(without=searched),
        }

    def _data(self) -> dict[str, Any]:
        """The data by content, read in a process of its own; nothing where the data are searched."""
        if any(parameter.key.split(".")[0] in ("dataset", "limit") for parameter in self._space.parameters):
            return {}
        found: dict[str, Any] = in_own_process(_fingerprint, self._composer.plain())
        return found

    def _run_all(self, study: Study, total: int, job_of: Callable[[Study, optuna.Trial, str], Job]) -> None:
        """Run trials until `total` have ended, here or elsewhere."""
        told = {trial.number for trial in study.trials() if trial.state.is_finished()}
        try:
            while patiently(partial(self._step, study, total, job_of, told)):
                self._crew.wait(POLL)
        except BaseException as error:
            left = self._crew.stop(interrupted=isinstance(error, KeyboardInterrupt))
            with suppress(*STORAGE_ERRORS):  # then they are seen to be gone when the sweep goes on
                for number, owner in left:
                    study.release(number, owner)
            raise

    def _step(
        self, study: Study, total: int, job_of: Callable[[Study, optuna.Trial, str], Job], told: set[int]
    ) -> bool:
        """See to what has ended, start what has room; says whether there is more to come.

        told: the ended trials that the user knows of; those of this step are added. It may end half done, when the
        database goes away: a trial whose process was not seen to is then found to be left.
        """
        for number, owner, ended in self._crew.ended():
            self._settle(study, number, owner, ended)
        for number in study.run_again(self._crew.numbers()):
            log.info("#%d was left by a process that is gone, and runs again", number)
        for trial in study.trials():
            if trial.state.is_finished() and trial.number not in told:
                told.add(trial.number)
                label = self._composer.subdir(study.name, trial.number)
                best = summary.best_of(study.as_optuna) if "/" not in label else None
                log.info("%s", summary.line(trial, label, best))
        stopped = self._too_many_failed(study)
        while not stopped and self._crew.has_room():
            found = study.next(total, free=partial(self._refuse_taken, study))
            if found is None:
                break
            self._start(study, *found, job_of)
        if not self._crew.numbers() and (stopped or self._all_ended(study, total)):
            if stopped:
                raise UserError(stopped)
            return False
        self._crew.renew(study, lease=self._settings.lease)
        return True

    def _start(
        self, study: Study, trial: optuna.Trial, owner: str, job_of: Callable[[Study, optuna.Trial, str], Job]
    ) -> None:
        try:
            self._crew.start(job_of(study, trial, owner))
        except BaseException:  # the cluster took no job
            with suppress(*STORAGE_ERRORS):
                study.release(trial.number, owner)
            raise

    def _all_ended(self, study: Study, total: int) -> bool:
        trials = study.trials()
        return len(trials) >= total and all(trial.state.is_finished() for trial in trials)

    def _too_many_failed(self, study: Study) -> str | None:
        ended = [trial for trial in study.trials() if trial.state.is_finished()]
        failed = [trial for trial in ended if trial.state == TrialState.FAIL]
        if len(ended) < FEWEST_TO_JUDGE or len(failed) <= self._settings.max_failed * len(ended):
            return None
        return (
            f"{len(failed)} of {len(ended)} trials failed, more than hydra.sweeper.max_failed="
            f"{self._settings.max_failed} allows, so the sweep stops.\n{summary.reasons(ended)}\nMend the cause and "
            "set another sweep.name, or raise hydra.sweeper.max_failed to go on"
        )

    def _settle(self, study: Study, number: int, owner: str, ended: Any) -> None:
        """See to a trial whose process has ended without telling the study how."""
        folder = self._folder / self._composer.subdir(study.name, number)
        result = reports.read(folder)
        if result is not None and result["status"] in ("completed", "pruned"):
            study.release(number, owner)  # whoever takes it finds the result and tells it
        elif ended.out_of_memory:
            study.fail(number, owner, "the system ended it for want of memory (out of memory)")
        elif ended.from_outside:
            if study.release(number, owner, died=None if ended.interrupted else ended.words):
                log.info("#%d %s, and runs again", number, ended.words)
        else:
            study.fail(number, owner, f"its process {ended.words} and left no result")

    def _refuse_taken(self, study: Study, number: int) -> None:
        """Refuse a new trial whose folder holds something already: nothing is overwritten."""
        folder = self._folder / self._composer.subdir(study.name, number)
        if folder.exists() and any(folder.iterdir()):
            raise UserError(
                f"{folder} holds a run that the study {self._address.setting} does not know; set another sweep.name, "
                "or move the folder away"
            )

    def _trial_job(self, study: Study, trial: optuna.Trial, owner: str) -> Job:
        chosen = self._space.suggest(trial, self._composer.choices)
        return self._job(study, trial.number, owner, chosen, confirms=False)

    def _confirm(self, best: optuna.trial.FrozenTrial) -> optuna.Study | None:
        """Train the best once more with each of the confirming seeds, and score these on test."""
        seeds = [self._composer.seed + 1 + place for place in range(self._settings.confirm_seeds)]
        if not seeds:
            return None
        study = self._study(f"{self._settings.name}/confirm-{best.number}", None)
        study.enqueue([{"seed": seed} for seed in seeds])
        log.info("confirming #%d with %d other seeds, on test", best.number, len(seeds))
        chosen = self._chosen(best)

        def job_of(study: Study, trial: optuna.Trial, owner: str) -> Job:
            seed = trial.suggest_categorical("seed", seeds)
            return self._job(study, trial.number, owner, {**chosen, "seed": str(seed)}, confirms=True)

        self._run_all(study, len(seeds), job_of)
        return study.as_optuna

    def _chosen(self, trial: optuna.trial.FrozenTrial) -> dict[str, str]:
        return self._space.suggest(optuna.trial.FixedTrial(trial.params), self._composer.choices)

    def _job(self, study: Study, number: int, owner: str, chosen: Mapping[str, str], *, confirms: bool) -> Job:
        subdir = self._composer.subdir(study.name, number)
        log.info("#%s starts: %s", subdir, " ".join(f"{key}={summary.short(text)}" for key, text in chosen.items()))
        job = self._composer.job(number, chosen, subdir=subdir)
        objectives = tuple(self._settings.objectives)
        return self._composer.as_trial(
            job,
            TrialReference(
                address=self._address,
                study=study.name,
                number=number,
                owner=owner,
                objectives=objectives,
                reported=job.config["metric"] if objectives[0] == "metric" else objectives[0],
                looks=self._settings.looks,
                pruner=self._settings.pruner,
                lease=self._settings.lease,
                confirms=confirms,
            ),
        )


def _fingerprint(config: Mapping[str, Any]) -> dict[str, Any]:
    from embexp.run import data_of  # torch, transformers: seconds

    return data_of(config)


def _crew_for(config: DictConfig, places: int) -> Crew:
    """The crew for the launcher that is chosen. Raises UserError where it can't run trials."""
    node: Mapping[str, Any] = plain(config.hydra.launcher)
    target = str(node.get("_target_"))
    if target == "hydra_plugins.embexp_launcher.ProcessLauncher":
        return LocalCrew(places)
    if target.startswith("hydra_plugins.hydra_submitit_launcher."):
        return SubmittedCrew(node, places)
    raise UserError(f"a sweep runs with hydra/launcher=embexp, submitit_slurm or submitit_local; {target} is none")
