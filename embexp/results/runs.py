"""Runs as their folders tell of them: completed, failed, pruned, or without a result. Called by `page` and `compare`.

Reads files only and imports nothing heavy, so that a thousand runs are read in a second.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from embexp.errors import UserError
from embexp.results.keys import KEYS, LATER

UNFINISHED = "unfinished"  # it is running, or was ended from outside: either way there is no result.json
GROUPS = ("loss", "model", "dataset")
NEEDED = [key for key in KEYS if key not in LATER]  # of names Hydra's files tell
CONFIG = ("metric", "seed", "limit", "dataset")  # what is read of a config


@dataclass(frozen=True)
class Run:
    """folder: as it was named. status: of its result, or `unfinished`. result: the content of result.json, if there is
    one. config: the composed one. names: the choices of loss, model and data set."""

    folder: Path
    status: str
    result: Mapping[str, Any] | None
    config: Mapping[str, Any]
    names: Mapping[str, str]

    def score(self, side: str, metric: str, *, arm: str | None = None) -> float | None:
        """A metric on dev or test, of an arm, or what the run came to: the tuned model's, the base's where none was to
        be tuned. None where it was not measured, or the run came to nothing."""
        if self.result is None or (arm is None and self.status != "completed"):
            return None
        measured = self.result[arm] if arm else self.result["tuned"] or self.result["base"]
        found = ((measured or {}).get(side) or {}).get(metric)
        return None if found is None else float(found)

    def steps(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a torn last line is left out, as is all of an unreadable file."""
        try:
            lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return [step for step in found if isinstance(step, dict) and isinstance(step.get("step"), int)]


def find(place: Path) -> Iterator[Path]:
    """The folders of runs at or below a folder, sorted. Raises UserError when there is no such folder."""
    if not place.is_dir():
        raise UserError(
            f"{place} is not a folder; name the folder of a run, or one that holds runs (outputs, multirun)"
        )
    for here, folders, files in os.walk(place):
        if ".hydra" in folders or "result.json" in files:
            yield Path(here)
            folders.clear()  # no run lies in another
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def read(folder: Path) -> Run:
    """The run in a folder. Raises UserError where there is none, or where its files are broken."""
    result = _result(folder)
    if result is not None:
        names = result.get("names") or _choices(folder)
        return Run(folder, result["status"], result, result["config"], names)
    file = folder / ".hydra" / "config.yaml"
    hydra, config = _yaml(folder, "hydra.yaml"), _yaml(folder, "config.yaml")
    if not {"metric", "evaluator"} <= config.keys():
        what = "a data set that was mined" if "miner" in config else "no run of embexp"
        raise UserError(f"{folder} is {what}")
    if missing := [key for key in CONFIG if key not in config]:
        raise UserError(f"{file} is no config of a run: it has no {', '.join(missing)}")
    return Run(folder, UNFINISHED, None, config, _named(hydra, folder))


def _result(folder: Path) -> dict[str, Any] | None:
    file = folder / "result.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read: {error}") from error
    missing = [key for key in NEEDED if not isinstance(found, dict) or key not in found]
    if not missing:
        config = found["config"]
        missing = [f"config.{key}" for key in CONFIG if not isinstance(config, dict) or key not in config]
    if missing:
        raise UserError(f"{file} is not a result of embexp: it has no {', '.join(missing)}")
    return dict.fromkeys(LATER) | found  # names are in Hydra's files


def _choices(folder: Path) -> dict[str, str]:
    """For a result that does not say them itself."""
    return _named(_yaml(folder, "hydra.yaml"), folder)


def _named(hydra: Mapping[str, Any], folder: Path) -> dict[str, str]:
    try:
        choices = hydra["hydra"]["runtime"]["choices"]
        return {group: str(choices[group]) for group in GROUPS}
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / '.hydra' / 'hydra.yaml'} does not name a {error}, so this is no run") from error


def _yaml(folder: Path, name: str) -> dict[str, Any]:
    file = folder / ".hydra" / name
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), Loader=loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        words = " ".join(str(error).split())
        raise UserError(f"{folder} has no result.json, and {name} can't be read: {words}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is empty or no config")
    return found


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in a config that holds nothing itself."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node
