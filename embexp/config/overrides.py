"""Applies overrides of single keys to a composed config, and says what is wrong with them. Called by `arguments`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf, open_dict

from embexp.config import targets
from embexp.config.checks import Program, mistakes_in, nearest, plain


def values_of(override: Override) -> list[Any]:
    """The values that an override gives its key: one, those of a sweep, or the ends of an interval."""
    if override.is_sweep_override() and override.is_discrete_sweep():
        single = OverridesParser.create()
        texts = override.sweep_string_iterator()
        return [single.parse_override(f"{override.get_key_element()}={text}").value() for text in texts]
    value = override.value()
    return [value.start, value.end] if isinstance(value, IntervalSweep) else [value]


def applied(config: DictConfig, overrides: Sequence[Override], program: Program) -> tuple[list[str], list[str]]:
    """Apply plain overrides to the composed config; returns them as Hydra takes them, and the mistakes."""
    written, problems, swept = [], [], []
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
        *others, last = values_of(override)
        swept.append((key, others, last))
        OmegaConf.update(config, key, last, force_add=True)
        written.append(text)
    for key, others, last in swept:  # now that all other keys are set, whatever the order
        for value in others:
            OmegaConf.update(config, key, value, force_add=True)
            problems += mistakes_in(plain(config), program)
        OmegaConf.update(config, key, last, force_add=True)
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
