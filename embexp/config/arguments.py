"""Checks the command line before anything heavy loads, and rewrites it as Hydra takes it.

Hydra alone stops at the first mistake, and needs a `+` for a key that no file names though the target takes it. Called
by `cli`; what it composes is checked by `config.experiment`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from embexp.config.checks import CONFIG_FOLDER, Program, mistakes_in, nearest, plain
from embexp.config.choices import choices
from embexp.config.experiment import EXPERIMENT
from embexp.config.overrides import applied, values_of
from embexp.errors import UserError
from embexp.sweep import settings as sweep_settings


@dataclass(frozen=True)
class _Setting:
    """What a command line is checked against."""

    loader: ConfigLoader
    config_dir: str | None
    config_name: str
    program: Program
    sweep: bool
    fresh: bool
    shown: bool

    def composed(self, choices: Sequence[str], values: Sequence[Override]) -> DictConfig:
        """The config with choices of groups and with Hydra's own values, hydra's node included."""
        path = [f"hydra.searchpath=[file://{Path(self.config_dir).absolute()}]"] if self.config_dir else []
        own = [o.input_line or "" for o in values if _is_hydras(o) and not o.is_sweep_override()]
        return compose(self.config_name, [*choices, *path, *own], return_hydra_config=True)


def checked_arguments(
    overrides: Sequence[str],
    *,
    config_dir: str | None,
    sweep: bool,
    config_name: str | None = None,
    program: Program = EXPERIMENT,
    fresh: bool = True,
    shown: bool = False,
) -> list[str]:
    """The overrides as Hydra takes them, once they and the config that they make are free of mistakes.

    A key that no file names but its target takes gets the `+` that Hydra asks for. sweep: whether an override may hold
    several values (-m); then each value is checked with the others' first, and a search space with its ends. fresh:
    whether the run's folder must not hold a run yet. shown: whether the config is only shown. Raises UserError with all
    mistakes.
    """
    if config_dir and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir {config_dir} is not a folder; it holds groups such as loss/ with your files")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        setting = _Setting(loader, config_dir, config_name or program.name, program, sweep, fresh, shown)
        parsed, problems = _parse([_placed(text, program) for text in overrides], loader, sweep=sweep)
        problems += _hidden_files(config_dir)
        accepted, mistakes = _accepted(parsed, setting)
        problems += mistakes
        if sweep and not problems:
            for branch in _branches(parsed, setting, problems):
                keys = {override.key_or_group for override in branch}
                problems += _accepted([*(o for o in parsed if o.key_or_group not in keys), *branch], setting)[1]
    GlobalHydra.instance().clear()
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return accepted


def _accepted(overrides: Sequence[Override], setting: _Setting) -> tuple[list[str], list[str]]:
    """Overrides as Hydra takes them, and the mistakes in them and in the configs that they make."""
    groups = [o for o in overrides if _is_group(o, setting.loader, setting.config_dir, setting.program)]
    values = [o for o in overrides if o not in groups]
    known: list[Override] = []
    problems: list[str] = []
    for override in groups:
        mistakes = _group_mistakes(override, setting.loader, setting.config_dir, setting.program)
        problems += mistakes
        known += [] if mistakes else [override]
    accepted: list[str] = []
    for choice in _combinations(known):
        try:
            written, mistakes = _checked(setting.composed(choice, values), values, setting)
        except (HydraException, OmegaConfBaseException) as error:
            problems.append(_on_one_line(error))
            continue
        problems += mistakes
        # a swept group's choices may differ in whether they have a key; ++ is right for both
        accepted = [min(forms) for forms in zip(written, accepted or written, strict=False)]
    return [*(o.input_line or "" for o in known), *accepted], problems


def _branches(parsed: Sequence[Override], setting: _Setting, problems: list[str]) -> list[list[Override]]:
    """The overrides that a sweep's search makes, a list for each of its branches; none without a search."""
    groups = [o for o in parsed if _is_group(o, setting.loader, setting.config_dir, setting.program)]
    composed = setting.composed(_combinations(groups)[0], parsed)
    if composed.get("sweep") is None:
        return []
    from embexp.sweep import space  # Optuna: only where something is searched

    sweeper = plain(composed.hydra.sweeper)
    task = [override for override in parsed if not _is_hydras(override)]
    try:
        found = space.parse(sweeper["params"], sweeper["where"], task, complete=True)
    except UserError as error:
        problems += error.problems
        return []
    searched = {each.key: list(each.texts) for each in found.parameters}
    problems += sweep_settings.mistakes_in_search(plain(composed.evaluator), sweeper, searched)
    parser = OverridesParser.create()
    return [[parser.parse_override(text) for text in branch] for branch in found.branches()]


def _checked(config: DictConfig, values: Sequence[Override], setting: _Setting) -> tuple[list[str], list[str]]:
    """The plain overrides as Hydra takes them, and the mistakes of the config that they make."""
    HydraConfig.instance().set_config(config)  # so that ${hydra:...} means something
    hydra = config.hydra
    with open_dict(config):
        del config["hydra"]
    written, mistakes = applied(config, values, setting.program)
    found = plain(config)
    return written, [
        *mistakes,
        *mistakes_in(found, setting.program),
        *_search_mistakes(found, hydra, values, setting),
        *_folder_mistakes(hydra, sweep=setting.sweep, fresh=setting.fresh),
    ]


def _search_mistakes(
    config: Mapping[str, Any], hydra: DictConfig, values: Sequence[Override], setting: _Setting
) -> list[str]:
    """What is wrong with the settings of a sweep, or with a search where none is chosen."""
    if not config.get("sweep"):
        if hydra.sweeper.get("_target_", "").startswith("hydra_plugins.embexp_sweeper"):
            return ["this search has no node sweep; begin your file with `defaults: [custom, _self_]`, which has one"]
        unbounded = [o for o in values if o.is_sweep_override() and not o.is_discrete_sweep()]
        return [f"{o.input_line}: only a sweep searches; add sweep=custom, or list values" for o in unbounded]
    if not isinstance(config["sweep"], Mapping):
        return []  # said already
    if not setting.sweep:
        return [] if setting.shown else ["a sweep is a multirun: add -m (a trial goes on by the sweep's own command)"]
    if "sampler" not in hydra.sweeper:
        return ["the sweep needs hydra/sweeper=embexp, which its file chooses; leave the other one out"]
    return sweep_settings.mistakes_in(config, plain(hydra.sweeper))


def _hidden_files(config_dir: str | None) -> list[str]:
    """The user's files that Hydra would pass over, since it finds those of the same names in conf/ first."""
    problems = []
    for path in sorted(CONFIG_FOLDER.rglob("*.yaml")) if config_dir else ():
        name = path.relative_to(CONFIG_FOLDER)
        own = Path(str(config_dir), name)
        if own.is_file() and own.read_bytes() != path.read_bytes():
            problems.append(
                f"{own} would not be read: embexp has a {name} of its own. Rename it, and choose it by its new name"
            )
    return problems


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


def _parse(overrides: Sequence[str], loader: ConfigLoader, *, sweep: bool) -> tuple[list[Override], list[str]]:
    parser = OverridesParser.create()
    parsed, problems = [], []
    for text in overrides:
        try:
            if re.match(r"[^=]*[][\\]", text):  # loss[scale]=1, which Hydra 1.4 takes and 1.3 does not
                raise HydraException(text)
            override = parser.parse_override(text)
            override.config_loader = loader  # glob(*) asks it
        except HydraException:
            hint = " A value with special characters needs quotes: 'key=\"value\"'." if "=" in text else ""
            problems.append(f"{text!r} is not of the form key=value.{hint}")
            continue
        if override.is_sweep_override() and not sweep:
            problems.append(f"{text!r} has several values; add -m to run them all")
            continue
        parsed.append(override)
    return parsed, problems


def _placed(text: str, program: Program) -> str:
    """guard_dataset=pairs as Hydra takes it: dataset@guard_dataset=pairs."""
    key, equals, value = text.partition("=")
    return f"{program.placed[key]}={value}" if equals and key in program.placed else text


def _is_group(override: Override, loader: ConfigLoader, config_dir: str | None, program: Program) -> bool:
    key = override.key_or_group
    return key in program.groups or bool(choices(key, loader, config_dir))


def _group_mistakes(override: Override, loader: ConfigLoader, config_dir: str | None, program: Program) -> list[str]:
    group = override.key_or_group
    options = choices(group, loader, config_dir)
    if override.is_delete() or override.value() is None:
        return []
    if group not in program.choices and "/" not in group and not override.is_add():
        return [f"{group}: this command has no such group; it has {', '.join(program.choices)}"]
    problems = []
    for value in values_of(override):
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


def _combinations(groups: Sequence[Override]) -> list[list[str]]:
    """Overrides for each choice of each group, with the first choice of the others."""
    options = []
    for override in groups:
        key = override.get_key_element()
        if override.is_sweep_override() and override.is_discrete_sweep():
            options.append([f"{key}={text}" for text in override.sweep_string_iterator()])
        else:
            options.append([override.input_line or ""])
    first = [texts[0] for texts in options]
    combinations = [first]
    for place, texts in enumerate(options):
        combinations += [[*first[:place], choice, *first[place + 1 :]] for choice in texts[1:]]
    return combinations


def _choices(options: Sequence[str]) -> str:
    return f"choose from {', '.join(options)}"


def _on_one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()
