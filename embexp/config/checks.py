"""Checks a composed config against what its program and its targets take; lists every mistake, imports nothing.

Hydra alone accepts `lr=abc`. Each program says in a `Program` what its config may hold: `config.experiment` for
experiments, `mine.config` for mining. Reads YAML and source files only, so that a mistake shows before anything heavy
loads.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from embexp.config import targets, value_types
from embexp.errors import UserError

PACKAGE = Path(__file__).parent.parent
# beside the package in a checkout, inside it in a wheel
CONFIG_FOLDER = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
Types = tuple[tuple[type, ...], str]  # what a key takes, and the same in words


@dataclass(frozen=True)
class Program:
    """What the config of one command may hold.

    | field        | says                                                                                  |
    |--------------|---------------------------------------------------------------------------------------|
    | name         | its file in conf/, without the ending                                                 |
    | groups       | groups that the config always has; a node of one has a `_target_` or is null          |
    | choices      | folders in conf/ that its command line chooses from                                    |
    | lists        | groups that take several choices: each holds nodes by name                            |
    | placed       | node -> how Hydra is told of its choice, where that is another group's                |
    | root         | keys beside the groups, and what they take                                            |
    | owned        | group -> keys that embexp sets itself, each with where to say it instead              |
    | own_keys     | group -> keys beside the target's own                                                 |
    | arguments_of | group -> the class whose arguments it takes, where its nodes have no `_target_`       |
    | at_least     | key -> the least number that it takes; 0 stands for above 0                           |
    | further      | the mistakes that only this program knows of                                          |
    """

    name: str
    groups: Sequence[str]
    root: Mapping[str, Types]
    choices: Sequence[str]
    lists: Sequence[str] = ()
    placed: Mapping[str, str] = field(default_factory=dict)
    owned: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    own_keys: Mapping[str, Mapping[str, Types]] = field(default_factory=dict)
    arguments_of: Mapping[str, str] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)
    further: Callable[[Mapping[str, Any]], list[str]] = lambda config: []


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed config as plain values; keys that must still be set (???) stay as that text."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=False)  # type: ignore[return-value]


def refuse_environment() -> None:
    """From now on `${oc.env:NAME}` is a mistake: a config is written to files and folder names, secrets with it."""

    def refuse(name: str, default: object = None) -> None:
        raise UserError(
            f"${{oc.env:{name}}} would write that environment variable's value into the run's files; write it out "
            "if it is no secret. Keys are read from the environment by what needs them"
        )

    OmegaConf.register_new_resolver("oc.env", refuse, replace=True)


def mistakes_in(config: Mapping[str, Any], program: Program) -> list[str]:
    """Every mistake in a composed config: missing values, types, ranges, targets, parameters, and what does not fit."""
    absent = [key for key in [*program.root, *program.groups] if key not in config]
    if absent:
        return [f"{key} is not in the config; set {key}=... (none does for logger and trainer)" for key in absent]
    problems = [f"{key} must be set: {key}=..." for key in _missing(config, "")]
    for key, (types, words) in program.root.items():
        value = config[key]
        if value == "???":
            continue
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            problems.append(f"{key}={value!r} must be {words}")
    allowed = [str(package) for package in config["allowed_packages"] or []]
    for group in program.groups:
        if config[group] is not None:
            problems += _group_mistakes(config[group], group, program, allowed)
    problems += list(targets.forbidden(config))
    problems += _nested_mistakes(config, allowed)
    problems += list(_out_of_range(config, program.at_least))
    return problems + program.further(config)


def nearest(word: str, options: Sequence[str]) -> str:
    """A hint with the most similar option, or nothing."""
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    return f" did you mean {near[0]}?" if near else ""


def _group_mistakes(node: Any, group: str, program: Program, allowed: Sequence[str]) -> list[str]:
    if group in program.lists:
        named = node.items() if isinstance(node, Mapping) else ()
        return [
            problem
            for name, each in named
            for problem in _node_mistakes(each, f"{group}.{name}", group, program, allowed)
        ]
    if group in program.arguments_of:
        return _parameter_mistakes(node, program.arguments_of[group], group, group, program, allowed, partial=True)
    return _node_mistakes(node, group, group, program, allowed)


def _missing(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _missing(value, f"{prefix}.{key}" if prefix else str(key))
    elif node == "???":
        yield prefix


def _node_mistakes(node: Any, path: str, group: str, program: Program, allowed: Sequence[str]) -> list[str]:
    """Mistakes in a node with a `_target_`, and in those below it."""
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        return [f"{path} must be a mapping with a _target_, the dotted path of a class or function; it is {node!r}"]
    partial = bool(node.get("_partial_"))  # the runner calls these with the rest
    parameters = {key: value for key, value in node.items() if key not in ("_target_", "_partial_", "_convert_")}
    return _parameter_mistakes(parameters, node["_target_"], path, group, program, allowed, partial=partial)


def _parameter_mistakes(
    values: Mapping[str, Any],
    target: str,
    path: str,
    group: str,
    program: Program,
    allowed: Sequence[str],
    *,
    partial: bool,
) -> list[str]:
    try:
        definition = targets.resolve(target, allowed=allowed)
    except UserError as error:
        return [f"{path}: {error}"]
    accepted = targets.parameters(definition)
    group_of_keys = path.split(".inner")[0]  # a loss inside another is described in the same way
    own = program.own_keys.get(group_of_keys, {})
    problems = []
    for name, value in values.items():
        key = f"{path}.{name}"
        if reason := program.owned.get(group_of_keys, {}).get(str(name)):
            problems.append(f"{key} is set by embexp: {reason}")
        elif name in own:
            types, meant = own[str(name)]
            if not isinstance(value, types) or isinstance(value, bool):
                problems.append(f"{key}={value!r} must be {meant}")
        elif value == "???":
            continue
        elif accepted is not None and name not in accepted:
            problems.append(f"{key}: {target.rpartition('.')[2]} takes no {name};{nearest(str(name), list(accepted))}")
        elif isinstance(value, Mapping) and "_target_" in value:
            problems += _node_mistakes(value, key, "", program, allowed)
        elif accepted is not None and (words := value_types.mistake(value, accepted[str(name)])):
            problems.append(f"{key}={value!r} must be {words}")
    if accepted is not None and not partial:
        lacking = [name for name, parameter in accepted.items() if parameter.required and name not in values]
        problems += [f"{path}.{name} must be set: {path}.{name}=..." for name in lacking]
    return problems


def _nested_mistakes(config: Mapping[str, Any], allowed: Sequence[str]) -> list[str]:
    """Targets in lists and other places that no signature leads to."""
    problems = []
    for path, target in targets.nodes({key: config[key] for key in config if key != "hydra"}):
        try:
            targets.resolve(str(target), allowed=allowed)
        except UserError as error:
            problems.append(f"{path}: {error}")
    return problems


def _out_of_range(config: Mapping[str, Any], at_least: Mapping[str, float]) -> Iterator[str]:
    for key, least in at_least.items():
        node: Any = config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        is_number = isinstance(node, int | float) and not isinstance(node, bool)
        if is_number and (node < least or (least == 0 and node == 0)):
            yield f"{key}={node} must be {'above 0' if least == 0 else f'at least {least}'}"
