"""The runs that a command line names, without those that its filters leave out. Called by `compare.cli`.

A folder that can't be read is named and left out: one broken run does not hide a year of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from embexp.config.checks import nearest
from embexp.errors import UserError, listed
from embexp.results import runs
from embexp.results.runs import Run, leaves

USUAL = ("outputs", "multirun")  # where runs lie unless they are sent elsewhere


@dataclass(frozen=True)
class Collected:
    """runs: in the order of their folders. unread: a sentence for each folder that is broken or no run."""

    runs: Sequence[Run]
    unread: Sequence[str]


def collect(words: Sequence[str]) -> Collected:
    """The runs at or below the folders among the words, which pass the filters (key=value) among them.

    Raises UserError for a folder that is not there, for no run at all, and for a filter on a key that no run has.
    """
    filters = [word for word in words if "=" in word and not Path(word).exists()]
    places = [Path(word) for word in words if word not in filters] or [
        Path(name) for name in USUAL if Path(name).is_dir()
    ]
    if not places:
        raise UserError(f"name the folders of runs to compare; there is no {' and no '.join(USUAL)} here")
    found: dict[Path, Run] = {}
    unread = []
    for folder in (folder for place in places for folder in runs.find(place)):
        try:
            found.setdefault(folder.resolve(), runs.read(folder))
        except UserError as error:
            unread.append(str(error))
    kept = filtered(list(found.values()), filters)
    if not kept:
        of = f" of the {len(found)} there" if found else ""
        wanted = f" that has {' '.join(filters)}" if filters else ""
        raise UserError(f"no run{of} in {', '.join(map(str, places))}{wanted}", *unread)
    return Collected(kept, unread)


def filtered(found: Sequence[Run], filters: Sequence[str]) -> list[Run]:
    """The runs that pass every filter: loss=mnrl,triplet trainer.learning_rate=2e-5 status=completed seed=1."""
    kept = list(found)
    for word in filters:
        key, _, wanted = word.partition("=")
        there = [value for run in found if (value := value_of(run, key)) is not _ABSENT]
        if found and not there:
            near = nearest(key, sorted({name for run in found[:50] for name, _ in leaves(run.config)}))
            raise UserError(
                f"{word}: no run has a key {key};{near} loss, model, dataset, status or a config's key will do"
            )
        fits = partial(_fits, options=wanted.split(","))
        if found and not any(map(fits, there)):
            raise UserError(f"{word}: no run has that; there is {key}={listed(sorted(set(map(str, there))), most=8)}")
        kept = [run for run in kept if (value := value_of(run, key)) is not _ABSENT and fits(value)]
    return kept


_ABSENT = object()


def value_of(run: Run, key: str) -> Any:
    """A choice by name, the status, or a value of the config by its dotted key."""
    if key == "status":
        return run.status
    if key in run.names:
        return run.names[key]
    node: Any = run.config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return _ABSENT
        node = node[part]
    return node


def _fits(value: Any, options: Sequence[str]) -> bool:
    return any(_same(value, option) for option in options)


def _same(value: Any, option: str) -> bool:
    if value is None or isinstance(value, bool):
        return option.lower() == ("null" if value is None else str(value).lower())
    if isinstance(value, int | float):
        try:
            return float(option) == value  # 2e-5 is 0.00002
        except ValueError:
            return False
    return str(value) == option
