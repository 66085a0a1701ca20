"""Composes a trial's config and job, and the command that trains the same again. Called by `sweep.sweeper`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from embexp.checks import plain
from embexp.config import EXPERIMENT
from embexp.job import Job
from embexp.resume import leaves
from embexp.sweep.reference import TrialReference

MAY_DIFFER = ("debug", "cache", "cache_size_gb", "keep_checkpoints", "logger", "sweep")  # while a study grows
LAUNCHED = ("hydra/", "sweep", "sampler", "pruner")  # groups of the search, not of a run


class Composer:
    """fixed: the overrides of the command line that every trial has."""

    def __init__(self, context: HydraContext, config: DictConfig, fixed: Sequence[str]) -> None:
        self.config = config
        self._context, self._fixed = context, list(fixed)
        self.choices = {str(group): str(choice) for group, choice in config.hydra.runtime.choices.items()}

    @property
    def seed(self) -> int:
        """The config's, where a trial has no other."""
        return int(self.config.seed)

    def plain(self) -> dict[str, Any]:
        """The config that the trials have in common, as plain values."""
        return plain(OmegaConf.masked_copy(self.config, [key for key in self.config if key != "hydra"]))  # type: ignore[misc]

    def leaves(self, *, without: set[str]) -> dict[str, Any]:
        """Its values by dotted key, without what is searched and what may differ."""
        found = {**dict(leaves(self.plain())), "sweep.looks": self.config.sweep.looks}
        return {
            key: value
            for key, value in found.items()
            if key == "sweep.looks"
            or not (
                key.split(".")[0] in MAY_DIFFER or any(key == each or key.startswith(f"{each}.") for each in without)
            )
        }

    def subdir(self, study: str, number: int) -> str:
        """A trial's folder in the sweep's."""
        confirmed = study.rpartition("/")[2] if "/" in study else ""
        return f"{confirmed}/seed-{self.seed + 1 + number}" if confirmed else str(number)

    def job(self, number: int, chosen: Mapping[str, str], *, subdir: str) -> Job:
        """The job of a trial: Hydra composes its config and makes its folder, and that is all it does here."""
        overrides = [*self._fixed, *_overrides(chosen), f"hydra.sweep.subdir={subdir}"]
        config = self._context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        returned = run_job(
            hydra_context=self._context,
            task_function=Job.current,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            configure_logging=False,
        )
        return returned.return_value

    def as_trial(self, job: Job, reference: TrialReference) -> Job:
        """The job as a trial's: in the sweep's group, its words in its log alone."""
        root = {**job.logging["root"], "handlers": ["file"]}
        group = reference.study.partition("/")[0]  # the same on every machine
        return replace(job, group=group, trial=reference, logging={**job.logging, "root": root})

    def command(self, chosen: Mapping[str, str]) -> str:
        """The command that trains with these choices outside a sweep."""
        loader = self._context.config_loader
        config = loader.load_sweep_config(self.config, [*self._fixed, *_overrides(chosen)])
        groups = [
            f"{group}={choice}"
            for group, choice in config.hydra.runtime.choices.items()
            if not str(group).startswith(LAUNCHED) and choice is not None and group in EXPERIMENT.choices
        ]
        default = loader.load_configuration("config", [], run_mode=RunMode.RUN)
        usual = {f"{group}={choice}" for group, choice in default.hydra.runtime.choices.items()}
        groups = [group for group in groups if group not in usual]
        plainly = loader.load_configuration("config", groups, run_mode=RunMode.RUN)
        wanted, had = (dict(leaves(_task(each))) for each in (config, plainly))
        changed = {
            key: value for key, value in wanted.items() if key.split(".")[0] != "sweep" and had.get(key, "") != value
        }
        values = [f"{'' if key in had else '++'}{key}={_written(value)}" for key, value in changed.items()]
        return " ".join(["python -m embexp", *(shlex.quote(word) for word in [*groups, *values])])


def _overrides(chosen: Mapping[str, str]) -> list[str]:
    groups = {key: text for key, text in chosen.items() if key in EXPERIMENT.choices or "@" in key or "/" in key}
    values = {key: text for key, text in chosen.items() if key not in groups}
    return [f"{key}={text}" for key, text in groups.items()] + [f"++{key}={text}" for key, text in values.items()]


def _task(config: DictConfig) -> dict[str, Any]:
    return plain(OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]))  # type: ignore[misc]


def _written(value: Any) -> str:
    return Override._get_value_element_as_str(value)
