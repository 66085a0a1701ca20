"""What a sweep is asked to do: the nodes `sweep` and `hydra.sweeper`. Called by `arguments` and `sweep.sweeper`.

| node          | holds                                                                                |
|---------------|--------------------------------------------------------------------------------------|
| sweep         | the sweep itself: its name, what it is judged by, where its study is, confirmation    |
| hydra.sweeper | the search: space, sampler, pruner, how many trials, how many at a time               |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from embexp.config import targets, value_types
from embexp.config.checks import Types, nearest
from embexp.config.experiment import metrics_made
from embexp.errors import UserError, listed
from embexp.sweep.reference import SCHEMES

SWEEP_TYPES: dict[str, Types] = {
    "name": ((str,), "a name for its folder, such as mnrl; a number needs quotes: sweep.name=\"'7'\""),
    "objectives": ((dict, type(None)), "a mapping such as {metric: maximize, dimensions: minimize}, or null"),
    "looks": ((int,), "a whole number of looks at dev per epoch"),
    "confirm_seeds": ((int,), "a whole number; 0 confirms nothing"),
    "storage": ((str, type(None)), "a PostgreSQL address without a password, or null"),
    "storage_env": ((str, type(None)), "the name of an environment variable, or null"),
}
SWEEPER_TYPES: dict[str, Types] = {
    "n_trials": ((int,), "a whole number"),
    "n_jobs": ((int,), "a whole number"),
    "max_failed": ((int, float), "a share from 0 to 1"),
    "lease": ((int, float), "a number of seconds"),
    "seed": ((int,), "a whole number"),
    "params": ((dict,), "a mapping from keys to what they may be"),
    "where": ((dict,), "a mapping from choices, such as loss=triplet, to params"),
}
AT_LEAST = {"n_trials": 1, "n_jobs": 1, "looks": 1, "confirm_seeds": 0}
PLACES = ("optuna.samplers.", "optuna.pruners.")
SPECIAL = ("metric", "dimensions", "training_seconds")  # objectives that are no metric of dev
DIRECTIONS = ("maximize", "minimize")


@dataclass(frozen=True)
class Settings:
    """Both nodes' values; objectives: name -> direction, never null."""

    name: str
    objectives: Mapping[str, str]
    looks: int
    confirm_seeds: int
    storage: str | None
    storage_env: str | None
    n_trials: int
    n_jobs: int
    max_failed: float
    lease: float
    seed: int
    params: Mapping[str, Any]
    where: Mapping[str, Mapping[str, Any]]
    sampler: Mapping[str, Any]
    pruner: Mapping[str, Any] | None

    @classmethod
    def of(cls, sweep: Mapping[str, Any], sweeper: Mapping[str, Any]) -> Settings:
        """The settings of two nodes that have no mistakes."""
        both = {**sweep, **sweeper, "objectives": sweep["objectives"] or {"metric": "maximize"}}
        return cls(**{each.name: both[each.name] for each in fields(cls)})


def mistakes_in(config: Mapping[str, Any], sweeper: Mapping[str, Any]) -> list[str]:
    """Every mistake in the nodes `sweep` (of the composed config) and `hydra.sweeper`."""
    sweep = config["sweep"]
    problems = _of_types(sweep, SWEEP_TYPES, "sweep") + _of_types(sweeper, SWEEPER_TYPES, "hydra.sweeper")
    problems += _unknown(sweep, [*SWEEP_TYPES], "sweep")
    problems += _unknown(sweeper, [*SWEEPER_TYPES, "sampler", "pruner", "_target_", "_recursive_"], "hydra.sweeper")
    if problems:
        return problems
    for node, values in (("sweep", sweep), ("hydra.sweeper", sweeper)):
        for key, least in AT_LEAST.items():
            if key in values and values[key] < least:
                problems.append(f"{node}.{key}={values[key]} must be at least {least}")
    if not 0 < sweeper["max_failed"] <= 1:
        problems.append(f"hydra.sweeper.max_failed={sweeper['max_failed']} must be a share above 0 and up to 1")
    if sweeper["lease"] <= 0:
        problems.append(f"hydra.sweeper.lease={sweeper['lease']} must be above 0")
    if config["trainer"] is None:
        problems.append("trainer=none trains nothing, so there is nothing to search; choose another trainer")
    problems += _name_mistakes(sweep["name"])
    problems += _of_search(sweeper)
    problems += _objective_mistakes(config, sweep, sweeper)
    return problems + _address_mistakes(sweep)


def _of_types(node: Mapping[str, Any], types: Mapping[str, Types], path: str) -> list[str]:
    problems = []
    if lacking := [key for key in types if key not in node]:
        problems.append(
            f"{path} has no {', '.join(lacking)}; begin your file with `defaults: [custom, _self_]`, which has"
        )
    for key, (accepted, words) in types.items():
        if key in lacking:
            continue
        if not isinstance(node[key], accepted) or isinstance(node[key], bool):
            problems.append(f"{path}.{key}={node[key]!r} must be {words}")
    return problems


def _unknown(node: Mapping[str, Any], known: Sequence[str], path: str) -> list[str]:
    return [
        f"{path}.{key}: there is no such key;{nearest(str(key), known)} there are "
        f"{listed([key for key in known if not key.startswith('_')], most=20)}"
        for key in node
        if key not in known
    ]


def _name_mistakes(name: str) -> list[str]:
    if name and name not in (".", "..") and not set(name) & set("/\\${}'\"") and name == name.strip():
        return []
    return [f"sweep.name={name!r} must be a name for a folder, such as mnrl"]


def _of_search(sweeper: Mapping[str, Any]) -> list[str]:
    """The nodes sampler and pruner: classes of Optuna, with parameters that they take."""
    problems = []
    for group, places in (("sampler", "optuna.samplers"), ("pruner", "optuna.pruners")):
        node = sweeper[group]
        if node is None and group == "pruner":
            continue
        if not isinstance(node, Mapping) or not str(node.get("_target_")).startswith(f"{places}."):
            problems.append(f"{group} must be one of {places}, in a file with a _target_; choose one with {group}=")
            continue
        foreign = [at for at, target in targets.nodes(node, group) if not str(target).startswith(PLACES)]
        if foreign:
            problems.append(f"{', '.join(foreign)} must be of {' or '.join(PLACES)}")
            continue
        try:
            accepted = targets.parameters(targets.resolve(node["_target_"], allowed=["optuna"]))
        except UserError as error:
            problems.append(f"{group}: {error}")
            continue
        for name, value in node.items():
            key = f"hydra.sweeper.{group}.{name}"
            if name == "_target_" or accepted is None:
                continue
            if name == "seed":
                problems.append(f"{key} is set by embexp: set hydra.sweeper.seed=")
            elif name not in accepted:
                problems.append(f"{key}: there is no such key;{nearest(str(name), list(accepted))}")
            elif words := value_types.mistake(value, accepted[str(name)]):
                problems.append(f"{key}={value!r} must be {words}")
    return problems


def _objective_mistakes(config: Mapping[str, Any], sweep: Mapping[str, Any], sweeper: Mapping[str, Any]) -> list[str]:
    objectives = sweep["objectives"]
    if objectives is None:
        return []
    problems = []
    names = [*SPECIAL, *metrics_made(config)]
    for name, direction in objectives.items():
        if name not in names:
            problems.append(
                f"sweep.objectives.{name}: there is no such objective;{nearest(str(name), names)} there are "
                f"{listed(names, most=9)}"
            )
        if direction not in DIRECTIONS:
            problems.append(f"sweep.objectives.{name}={direction} must be maximize or minimize")
    if not objectives:
        problems.append("sweep.objectives is empty; null stands for the metric alone")
    first = next(iter(objectives), "metric")
    if sweeper["pruner"] is not None and first in SPECIAL and first != "metric":
        problems.append(
            f"sweep.objectives: {first} is known at a trial's end alone, which can't prune; set pruner=none"
        )
    if len(objectives) > 1 and sweeper["pruner"] is not None:
        problems.append("several objectives can't be pruned by (Optuna has no rule for it); set pruner=none")
    return problems


def mistakes_in_search(
    evaluators: Mapping[str, Any], sweeper: Mapping[str, Any], searched: Mapping[str, Sequence[Any]]
) -> list[str]:
    """What can't be searched, since trials would not be compared like with like. searched: key -> what it may be."""
    problems = []
    metrics = searched.get("metric", ())
    if len({re.sub(r"^dim\d+\.", "", str(metric)) for metric in metrics}) > 1:
        problems.append("metric is what trials are compared by; it may be searched in its dimensions alone (dim64....)")
    if reranked := [key for key in searched if key.partition(".")[0] == "reranker"]:
        problems.append(f"{', '.join(reranked)}: a trial has no reranker; compare by -m without a sweep")
    ranking = [node for node in evaluators.values() if "k_values" in node]
    all_searched = all(node.get("training_distractors", 0) is None for node in ranking)
    if "model" in searched and sweeper["pruner"] is not None and not all_searched:
        problems.append(
            "model is searched, and while training each model's dev is searched in passages of its own choice, so that "
            "looks don't compare; set evaluator.retrieval.training_distractors=null, or pruner=none"
        )
    return problems


def _address_mistakes(sweep: Mapping[str, Any]) -> list[str]:
    url = sweep["storage"]
    if url is None:
        return []
    if sweep["storage_env"] is not None:
        return ["sweep.storage and sweep.storage_env both name a database; set one of them to null"]
    rest = url.partition("://")[2] or url
    user, _, host = rest.rpartition("@")  # a password may hold an @ or a /
    port = host.partition("/")[0].partition("]")[2 if host.startswith("[") else 0].partition(":")[2]
    if ":" in user or "password=" in url or not (port or "0").isdigit():  # the value is not repeated
        return [
            "sweep.storage holds a password, which would be written to files: name an environment variable with "
            "sweep.storage_env=, or keep the password in ~/.pgpass"
        ]
    if url.partition("://")[0] not in SCHEMES:
        return ["sweep.storage must be a PostgreSQL address: postgresql://user@host:5432/database"]
    return []
