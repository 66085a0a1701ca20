"""Composes a trial's config and job, and the command that trains the same again. Called by `sweep.sweeper`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from embexp.config.checks import plain
from embexp.config.experiment import EXPERIMENT
from embexp.errors import UserError, listed
from embexp.jobs.job import Job
from embexp.results.runs import leaves
from embexp.resume import changes, own_folders
from embexp.sweep.reference import TrialReference
from embexp.sweep.space import Space

MAY_DIFFER = (  # while a study grows
    "debug", "cache", "cache_size_gb", "report_texts", "keep_checkpoints", "logger", "sweep",
)  # fmt: skip
LAUNCHED = ("hydra/", "sweep", "sampler", "pruner")  # groups of the search, not of a run


class Composer:
    """fixed: the overrides of the command line that every trial has."""

    def __init__(self, context: HydraContext, config: DictConfig, fixed: Sequence[str]) -> None:
        self.config = config
        self._context, self._fixed = context, list(fixed)

    @property
    def seed(self) -> int:
        """The config's, where a trial has no other."""
        return int(self.config.seed)

    def plain(self, chosen: Mapping[str, str]) -> dict[str, Any]:
        """The config that the trials with these choices have in common, as plain values."""
        return _task(self._composed(chosen))

    def leaves(self, space: Space) -> dict[str, Any]:
        """What may not change, by dotted key: what all trials have in common and, for each choice of a searched group,
        what that choice says. What is searched is left out."""
        searched = {_place(parameter.key) for parameter in space.parameters}
        found = {
            key: value
            for key, value in leaves(self.plain(space.fixed))
            if key.split(".")[0] not in MAY_DIFFER and not _is_under(key, searched)
        }
        found["sweep.looks"] = self.config.sweep.looks
        for parameter in space.parameters:
            for text in parameter.texts.values() if _is_group(parameter.key) else ():
                found |= {
                    f"{key} with {parameter.key}={text}": value
                    for key, value in leaves(self.plain({**space.fixed, parameter.key: text}))
                    if _is_under(key, {_place(parameter.key)}) and key not in searched
                }
        return found

    def subdir(self, study: str, number: int) -> str:
        """A trial's folder in the sweep's."""
        confirmed = study.rpartition("/")[2] if "/" in study else ""
        return f"{confirmed}/seed-{self.seed + 1 + number}" if confirmed else str(number)

    def job(self, number: int, chosen: Mapping[str, str], *, subdir: str) -> Job:
        """The job of a trial: Hydra composes its config and makes its folder, and that is all it does here.

        Raises UserError when the folder holds a run with another config: nothing of it may be taken for this trial's.
        """
        config = self._composed(chosen, f"hydra.sweep.subdir={subdir}")
        folder = Path(str(self.config.hydra.sweep.dir), subdir)
        if (folder / "metrics.jsonl").exists():
            changed = changes(folder, _without_hydra(config), may_differ=MAY_DIFFER)
            if changed:
                raise UserError(
                    f"{folder} holds a run of another study: {listed(changed)}. Set another sweep.name, or move the "
                    "folder away"
                )
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
        config = self._composed(chosen)
        choices = {
            str(group): str(choice)
            for group, choice in config.hydra.runtime.choices.items()
            if choice is not None and _is_group(str(group)) and not str(group).startswith(LAUNCHED)
        }
        groups = [f"experiment={choices.pop('experiment')}"] if "experiment" in choices else []
        usual = self._loaded(groups).hydra.runtime.choices
        groups += [f"{group}={choice}" for group, choice in choices.items() if str(usual.get(group)) != choice]
        wanted, had = (dict(leaves(_task(each))) for each in (config, self._loaded(groups)))
        values = [
            f"{'' if key in had else '++'}{key}={_written(value)}"
            for key, value in wanted.items()
            if key.split(".")[0] != "sweep" and had.get(key, "") != value
        ]
        words = [*own_folders(config.hydra), *groups, *values]
        return " ".join(["python -m embexp", *(shlex.quote(word) for word in words)])

    def _composed(self, chosen: Mapping[str, str], *further: str) -> DictConfig:
        overrides = [*self._fixed, *_overrides(chosen), *further]
        return self._context.config_loader.load_sweep_config(self.config, overrides)

    def _loaded(self, overrides: list[str]) -> DictConfig:
        return self._context.config_loader.load_configuration("config", overrides, run_mode=RunMode.RUN)


def _overrides(chosen: Mapping[str, str]) -> list[str]:
    groups = {key: text for key, text in chosen.items() if _is_group(key)}
    values = {key: text for key, text in chosen.items() if key not in groups}
    return [f"{key}={text}" for key, text in groups.items()] + [f"++{key}={text}" for key, text in values.items()]


def _is_group(key: str) -> bool:
    return key.partition("@")[0] in EXPERIMENT.choices


def _place(key: str) -> str:
    """Where in the config a key or a group stands."""
    return key.partition("@")[2] or key


def _is_under(key: str, places: Set[str]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])  # type: ignore[misc]


def _task(config: DictConfig) -> dict[str, Any]:
    return plain(_without_hydra(config))


def _written(value: Any) -> str:
    return Override._get_value_element_as_str(value)
