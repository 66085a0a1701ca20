"""Checks the command line before anything heavy loads, and rewrites it as Hydra takes it.

Hydra alone stops at the first mistake, and needs a `+` for a key that no file names though the target takes it. Called
by `cli`; what it composes is checked by `config`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from embexp import targets
from embexp.checks import CONFIG_FOLDER, Program, mistakes_in, nearest, plain
from embexp.config import EXPERIMENT
from embexp.errors import UserError


def checked_arguments(
    overrides: Sequence[str],
    *,
    config_dir: str | None,
    sweep: bool,
    config_name: str | None = None,
    program: Program = EXPERIMENT,
    fresh: bool = True,
) -> list[str]:
    """The overrides as Hydra takes them, once they and the config that they make are free of mistakes.

    A key that no file names but its target takes gets the `+` that Hydra asks for. sweep: whether an override may hold
    several values (-m); then each value is checked with the others' first. fresh: whether the run's folder must not
    hold a run yet. Raises UserError with all mistakes.
    """
    if config_dir and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir {config_dir} is not a folder; it holds groups such as loss/ with your files")
    GlobalHydra.instance().clear()
    search_path = [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"] if config_dir else []
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        parsed, problems = _parse(overrides, sweep=sweep)
        groups = [o for o in parsed if _is_group(o, loader, config_dir, program)]
        values = [o for o in parsed if o not in groups]
        own = [o.input_line or "" for o in values if _is_hydras(o) and not o.is_sweep_override()]
        known: list[Override] = []
        for override in groups:
            mistakes = _group_mistakes(override, loader, config_dir, program)
            problems += mistakes
            known += [] if mistakes else [override]
        accepted: list[str] = []
        for choice in _combinations(known):
            try:
                config = compose(config_name or program.name, [*choice, *search_path, *own], return_hydra_config=True)
                written, mistakes = _checked(config, values, program, sweep=sweep, fresh=fresh)
            except (HydraException, OmegaConfBaseException) as error:
                problems.append(_on_one_line(error))
                continue
            problems += mistakes
            # a swept group's choices may differ in whether they have a key; ++ is right for both
            accepted = [min(forms) for forms in zip(written, accepted or written, strict=False)]
    GlobalHydra.instance().clear()
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return [*(o.input_line or "" for o in known), *accepted]


def _checked(
    config: DictConfig, values: Sequence[Override], program: Program, *, sweep: bool, fresh: bool
) -> tuple[list[str], list[str]]:
    """The plain overrides as Hydra takes them, and the mistakes of the config that they make."""
    HydraConfig.instance().set_config(config)  # so that ${hydra:...} means something
    hydra = config.hydra
    with open_dict(config):
        del config["hydra"]
    written, mistakes = _set(config, values, program)
    return written, [
        *mistakes,
        *mistakes_in(plain(config), program),
        *_folder_mistakes(hydra, sweep=sweep, fresh=fresh),
    ]


def _is_hydras(override: Override) -> bool:
    return override.key_or_group.startswith("hydra.")


def _folder_mistakes(hydra: DictConfig, *, sweep: bool, fresh: bool) -> list[str]:
    try:
        folder = Path(str(hydra.sweep.dir if sweep else hydra.run.dir))
    except InterpolationToMissingValueError:
        return []  # named by a key that must be set, which is said already
    if "${" in str(folder.absolute()):  # Hydra would fill it in once more, in its log's name for one
        return [f"the run's folder {folder.absolute()} has ${{ in its path, which a config can't; set hydra.run.dir="]
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return [
            f"the run's folder {folder} can't be made: {there} is not a folder that can be written; set hydra.run.dir="
        ]
    if fresh and not sweep and (folder / "metrics.jsonl").exists():
        return [f"{folder} holds another run; set hydra.run.dir to a new folder, or resume={folder}"]
    return []


def _parse(overrides: Sequence[str], *, sweep: bool) -> tuple[list[Override], list[str]]:
    parser = OverridesParser.create()
    parsed, problems = [], []
    for text in overrides:
        try:
            if re.match(r"[^=]*[][\\]", text):  # loss[scale]=1, which Hydra 1.4 takes and 1.3 does not
                raise HydraException(text)
            override = parser.parse_override(text)
        except HydraException:
            hint = " A value with special characters needs quotes: 'key=\"value\"'." if "=" in text else ""
            problems.append(f"{text!r} is not of the form key=value.{hint}")
            continue
        if override.is_sweep_override() and not sweep:
            problems.append(f"{text!r} has several values; add -m to run them all")
            continue
        parsed.append(override)
    return parsed, problems


def _is_group(override: Override, loader: ConfigLoader, config_dir: str | None, program: Program) -> bool:
    key = override.key_or_group
    return key in program.groups or bool(_options(key, loader, config_dir))


def _options(group: str, loader: ConfigLoader, config_dir: str | None) -> list[str]:
    found = set(loader.get_group_options(group, ObjectType.CONFIG))
    if config_dir:
        found |= {path.stem for path in Path(config_dir, group).glob("*.yaml")}
    return sorted(found)


def _group_mistakes(override: Override, loader: ConfigLoader, config_dir: str | None, program: Program) -> list[str]:
    group = override.key_or_group
    options = _options(group, loader, config_dir)
    if override.is_delete() or override.value() is None:
        return []
    if group not in program.choices and "/" not in group and not override.is_add():
        return [f"{group}: this command has no such group; it has {', '.join(program.choices)}"]
    problems = []
    for value in _values_of(override):
        chosen = [str(each) for each in value] if isinstance(value, list) else [str(value)]
        if isinstance(value, list) and group not in program.lists:
            problems.append(f"{group}={value} is a list; {group} takes one of {', '.join(options)}")
            continue
        for name in chosen:
            if name not in options:
                problems.append(
                    f"{override.get_key_element()}={name}: there is no such {group};"
                    f"{nearest(name, options)} {_choices(options)}"
                )
    return problems


def _values_of(override: Override) -> list[Any]:
    if override.is_sweep_override() and override.is_discrete_sweep():
        single = OverridesParser.create()
        texts = override.sweep_string_iterator()
        return [single.parse_override(f"{override.get_key_element()}={text}").value() for text in texts]
    return [override.value()]


def _combinations(groups: Sequence[Override]) -> list[list[str]]:
    """Overrides for each choice of each group, with the first choice of the others."""
    options = []
    for override in groups:
        key = override.get_key_element()
        if override.is_sweep_override() and override.is_discrete_sweep():
            options.append([f"{key}={text}" for text in override.sweep_string_iterator()])
        else:
            options.append([override.input_line or ""])
    first = [choices[0] for choices in options]
    combinations = [first]
    for place, choices in enumerate(options):
        combinations += [[*first[:place], choice, *first[place + 1 :]] for choice in choices[1:]]
    return combinations


def _set(config: DictConfig, overrides: Sequence[Override], program: Program) -> tuple[list[str], list[str]]:
    """Apply plain overrides to the composed config; returns them as Hydra takes them, and the mistakes."""
    written, problems = [], []
    for override in overrides:
        key = override.key_or_group
        text = override.input_line or ""
        if key.split(".")[0] == "hydra" or override.package is not None:
            written.append(text)  # Hydra's own keys, which it checks itself
            continue
        exists = _has(config, key)
        if override.is_delete():
            if not exists:
                problems.append(f"~{key}: there is no such key;{nearest(key, _keys(config))} --cfg job shows all keys")
                continue
            parent, _, name = key.rpartition(".")
            with open_dict(config):
                del (OmegaConf.select(config, parent) if parent else config)[name]
            written.append(text)
            continue
        reason = _owned(key, program)
        if reason:
            problems.append(f"{key} is set by embexp: {reason}")
            continue
        if "." in key and _has(config, key.partition(".")[0]) and config[key.partition(".")[0]] is None:
            group = key.partition(".")[0]
            problems.append(f"{key}: {group}=none has no keys; choose another {group}")
            continue
        if not exists and not override.is_add() and not override.is_force_add():
            accepted = _parameters_at(config, key.rpartition(".")[0], program)
            if key.rpartition(".")[2] not in (accepted or {}):
                near = [f"{key.rpartition('.')[0]}.{name}" for name in accepted or {}] + _keys(config)
                problems.append(f"{key}: there is no such key;{nearest(key, near)} --cfg job shows all keys")
                continue
            text = f"++{text}"
        *others, last = _values_of(override)
        for value in others:
            OmegaConf.update(config, key, value, force_add=True)
            problems += mistakes_in(plain(config), program)
        OmegaConf.update(config, key, last, force_add=True)
        written.append(text)
    return written, problems


def _has(config: DictConfig, key: str) -> bool:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node._content:  # type: ignore[operator]
            return False
        node = node._get_node(part)
    return True


def _owned(key: str, program: Program) -> str | None:
    group, _, name = key.replace(".inner.", ".").partition(".")  # a loss inside another is a loss too
    return program.owned.get(group, {}).get(name)


def _parameters_at(config: DictConfig, path: str, program: Program) -> Mapping[str, Any] | None:
    """What the node at `path` takes by its target's signature."""
    target: Any = program.arguments_of.get(path)
    if target is None:
        node = OmegaConf.select(config, path) if path else None
        target = node.get("_target_") if isinstance(node, DictConfig) else None
    definition = targets.find(target) if isinstance(target, str) else None
    return targets.parameters(definition) if definition else None


def _keys(config: DictConfig) -> list[str]:
    def walk(node: Any, prefix: str) -> Iterator[str]:
        for key, value in node.items():
            path = f"{prefix}{key}"
            yield path
            if isinstance(value, Mapping):
                yield from walk(value, f"{path}.")

    return list(walk(plain(config), ""))


def _choices(options: Sequence[str]) -> str:
    return f"choose from {', '.join(options)}"


def _on_one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()
