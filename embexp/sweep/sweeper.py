"""Carries out a sweep, top to bottom: settings -> study -> trials -> winner -> confirmation -> summary.

Hydra calls it through `hydra_plugins/embexp_sweeper.py`. The trials are `sweep.running`'s.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import configure_log, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from optuna.trial import TrialState

from embexp import exit_codes
from embexp.config.checks import plain
from embexp.config.components import build
from embexp.errors import UserError, described, explained
from embexp.jobs.job import Job
from embexp.jobs.workers import in_own_process
from embexp.sweep import space as spaces, summary
from embexp.sweep.composing import Composer
from embexp.sweep.crew import Crew, LocalCrew
from embexp.sweep.reference import Address, TrialReference
from embexp.sweep.running import STORAGE_ERRORS, Runner
from embexp.sweep.settings import Settings
from embexp.sweep.storage import said_first
from embexp.sweep.study import Study
from embexp.sweep.submitted import SubmittedCrew
from embexp.tracking import to_upload

log = logging.getLogger("embexp")

MOST_SEED = 2**62  # a confirming trial's seed is given: its distribution only has to hold it


def carry_out(arguments: Sequence[str], *, context: HydraContext, config: DictConfig) -> None:
    """Carry out the sweep that the config describes; leaves its exit code in `exit_codes`.

    arguments: the overrides of the command line, checked.
    """
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    try:
        exit_codes.of_jobs.append(Sweep(arguments, context=context, config=config).run())
    except UserError as error:
        log.error("%s", explained(error))
        exit_codes.of_jobs.append(1)
    except STORAGE_ERRORS as error:
        text = f"the sweep can't go on: {described(said_first(error))}"
        log.error("embexp: %s\nwhat has ended is kept. The same command goes on", " ".join(text.split()))
        exit_codes.of_jobs.append(1)
    except KeyboardInterrupt:
        log.error("\ninterrupted; what has ended is kept. The same command goes on")
        exit_codes.of_jobs.append(1)


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
        log.info("sweep %s: loading libraries and data ...", study.name)
        contract = self._contract()
        study.hold_to(contract, complete=False)  # before the data are read
        study.hold_to({**contract, "data": self._data()})
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
            study.as_optuna, tuple(self._settings.objectives), self._composer.plain({})["metric"], confirmation,
            command=self._composer.command(self._chosen(best)), folder=self._folder,
        )  # fmt: skip
        log.info("\n%s\n\nsummary: %s", made.text(), self._folder / "summary.md")
        with study.alone():  # another sweeper may write it too
            made.write()
        if any(to_upload(path.parent) for path in self._folder.rglob(".running.lock")):
            folder = shlex.quote(str(self._folder))
            log.info("to upload the runs kept offline: wandb sync %s/{,confirm-*/}*/wandb/offline-run-*", folder)
        failed = confirmation is not None and any(t.state != TrialState.COMPLETE for t in confirmation.get_trials())
        return 1 if failed else 0

    def _study(self, name: str, pruner: Mapping[str, Any] | None) -> Study:
        node = self._settings.sampler
        return Study(
            self._address,
            name,
            directions=self._directions,
            sampler=lambda number: build({**node, "seed": seed_of(self._settings.seed, number)}, allowed=["optuna"]),
            pruner=build(pruner, allowed=["optuna"]) if pruner else optuna.pruners.NopPruner(),
            lease=self._settings.lease,
        )

    def _contract(self) -> dict[str, Mapping[str, Any]]:
        """What may not change while the study grows, but for the data."""
        return {
            "search space": self._space.described(),
            "objectives": dict(self._settings.objectives),
            "config": self._composer.leaves(self._space),
        }

    def _data(self) -> dict[str, Any]:
        """Data and base model by content, read in a process of its own; nothing of what is searched."""
        searched = {parameter.key.split(".")[0] for parameter in self._space.parameters}
        if searched & {"dataset", "limit", "experiment"}:
            return {}
        try:
            found: dict[str, Any] = in_own_process(
                _fingerprint, self._composer.plain(self._space.fixed), "model" not in searched
            )
        except ChildProcessError as error:
            raise UserError(f"the data can't be read: {error}") from error
        return found

    def _run_all(self, study: Study, total: int, job_of: Callable[[Study, optuna.Trial, str], Job]) -> None:
        label_of = partial(self._composer.subdir, study.name)
        Runner(study, self._crew, self._settings, self._folder, label_of, partial(job_of, study)).run(total)

    def _trial_job(self, study: Study, trial: optuna.Trial, owner: str) -> Job:
        chosen = self._space.suggest(trial)
        return self._job(study, trial.number, owner, chosen, confirms=False)

    def _confirm(self, best: optuna.trial.FrozenTrial) -> optuna.Study | None:
        """Train the best once more with each of the confirming seeds, and score these on test."""
        seeds = [self._composer.seed + 1 + place for place in range(self._settings.confirm_seeds)]
        if not seeds:
            return None
        study = self._study(f"{self._settings.name}/confirm-{best.number}", None)
        study.enqueue([{"seed": seed} for seed in seeds])
        if any(not trial.state.is_finished() for trial in study.trials()):
            log.info("confirming #%d with other seeds, on test", best.number)
        chosen = self._chosen(best)

        def job_of(study: Study, trial: optuna.Trial, owner: str) -> Job:
            seed = trial.suggest_int("seed", 0, MOST_SEED)
            return self._job(study, trial.number, owner, {**chosen, "seed": str(seed)}, confirms=True)

        self._run_all(study, len(seeds), job_of)
        return study.as_optuna

    def _chosen(self, trial: optuna.trial.FrozenTrial) -> dict[str, str]:
        return self._space.suggest(optuna.trial.FixedTrial(trial.params))

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


def seed_of(seed: int, number: int) -> int:
    """The sampler's for a trial: neighbouring seeds or numbers share nothing."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _fingerprint(config: Mapping[str, Any], of_the_model: bool) -> dict[str, Any]:
    from embexp.run import digests_of  # torch, transformers: seconds

    found = digests_of(config)
    return found if of_the_model else {key: value for key, value in found.items() if key != "base model"}


def _crew_for(config: DictConfig, places: int) -> Crew:
    """The crew for the launcher that is chosen. Raises UserError where it can't run trials."""
    node: Mapping[str, Any] = plain(config.hydra.launcher)
    target = str(node.get("_target_"))
    if target == "hydra_plugins.embexp_launcher.ProcessLauncher":
        return LocalCrew(places, processes=config.trainer.processes)
    if target.startswith("hydra_plugins.hydra_submitit_launcher."):
        return SubmittedCrew(node, places)
    raise UserError(f"a sweep runs with hydra/launcher=embexp, submitit_slurm or submitit_local; {target} is none")
