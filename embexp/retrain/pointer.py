"""The pointer to the model that is served, and the history of what it pointed to. Called by `retraining` and `cli`.

| in the models' folder | is                                                                                     |
|-----------------------|----------------------------------------------------------------------------------------|
| current               | a symbolic link to the run whose model is served, replaced in one step: at any moment  |
|                       | it leads to a whole run                                                                |
| current.json          | {"model": the same}, in its place on file systems without links; replaced in one step  |
| history.jsonl         | a line for each turn of the pointer: time, event, model, before, reasons               |
| 0001, 0002 ...        | the runs that were trained (`attempts`)                                                |

Reads and writes files and imports nothing heavy.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from embexp.durable import sync_name, write_whole
from embexp.errors import BusyError, UserError, listed

STARTED, PROMOTED, ROLLED_BACK = "started", "promoted", "rolled back"
HISTORY = "history.jsonl"
MODELS = "models"  # the folder beside a run, where none is named


@dataclass(frozen=True)
class Models:
    """A folder of models. A model is named by its run's folder, relative to this one."""

    folder: Path

    @property
    def current(self) -> Path | None:
        """The folder of the run that is served; None before there is one. Raises UserError where it is gone."""
        name = self._name()
        if name is None:
            return None
        run = self.folder / name
        if not (run / "result.json").is_file():
            raise UserError(
                f"{self.folder / 'current'} names {name}, which is no longer there; bring it back, or go back to the "
                f"one before: python -m embexp.retrain rollback models={self.folder}"
            )
        return run.resolve()

    def history(self) -> list[dict[str, Any]]:
        """The lines of history.jsonl, the oldest first."""
        file = self.folder / HISTORY
        try:
            return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise UserError(f"{file} can't be read ({error}); mend that line, or take it out") from error

    def served(self) -> list[str]:
        """The names of all models that were ever current, the newest first, each once."""
        names = (line["model"] for line in reversed(self.history()) if line["event"] in (STARTED, PROMOTED))
        return list(dict.fromkeys(names))

    def name_of(self, run: Path) -> str:
        """What a run is called here."""
        return os.path.relpath(run.resolve(), self.folder.resolve())

    def turn(self, event: str, run: Path, reasons: Sequence[str]) -> None:
        """Write the history's line, then turn the pointer; after a kill between the two the same call ends it."""
        name, lines = self.name_of(run), self.history()
        line = {"event": event, "model": name, "before": self._name(), "reasons": list(reasons)}
        if not lines or {key: lines[-1].get(key) for key in line} != line:
            lines.append({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **line})
            write_whole(self.folder / HISTORY, "".join(json.dumps(each) + "\n" for each in lines))
        self._point(name)

    def repair(self) -> None:
        """End a turn that was killed behind the history's line."""
        lines = self.history()
        if lines and lines[-1]["model"] != self._name():
            self._point(lines[-1]["model"])

    def rollback(self) -> tuple[str, str]:
        """Turn the pointer back to the model that was current before the one that is; returns both names."""
        now = self._name()
        promoted = [line for line in self.history() if line["event"] in (STARTED, PROMOTED) and line["model"] == now]
        before = promoted[-1]["before"] if promoted else None
        if now is None or before is None:
            raise UserError(f"{self.folder}: there is no model before the current one ({now or 'none'})")
        if not (self.folder / before / "model").is_dir():
            raise UserError(
                f"{self.folder}: the model before {now}, {before}, is no longer there (keep= says how many are kept)"
            )
        self.turn(ROLLED_BACK, self.folder / before, [f"asked for, from {now}"])
        return now, before

    def refuse_other(self, run: Path) -> None:
        """Raise UserError for a run that this folder's models do not come from."""
        names = self.served()
        if names and run.resolve() != self.folder.resolve() and self.name_of(run) not in names:
            raise UserError(
                f"{self.folder} holds the models that came of {listed(reversed(names), most=2)}, and {run} is none of "
                f"them. Name {self.folder / 'current'}, or another folder with models="
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Refuse a second process; the system frees the lock of one that died."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".retrain.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise BusyError(f"another process is at work on the models in {self.folder}; wait for it") from error
        try:
            yield
        finally:
            lock.release()

    def _name(self) -> str | None:
        link, file = self.folder / "current", self.folder / "current.json"
        if link.is_symlink():
            return str(link.readlink())
        if link.exists():
            raise UserError(f"{link} is no link to a run; move it away: embexp keeps its pointer there")
        if file.is_file():
            return str(json.loads(file.read_text(encoding="utf-8"))["model"])
        return None

    def _point(self, name: str) -> None:
        link, file, fresh = self.folder / "current", self.folder / "current.json", self.folder / ".current.partial"
        fresh.unlink(missing_ok=True)
        try:
            fresh.symlink_to(name)
        except OSError:  # a share or a drive without links
            write_whole(file, json.dumps({"model": name}) + "\n")
            return
        fresh.replace(link)
        sync_name(link)
        file.unlink(missing_ok=True)


def models_of(run: Path | None, named: str | None) -> Models:
    """The models' folder that a command means: the named one, the one that stands in the run's place, the one that the
    run or the link to it lies in, or else the one beside the run."""
    if named is not None:
        return Models(Path(named).expanduser().absolute())
    if run is None:
        raise UserError("name the run, or the models' folder: models=<folder>")
    whole = run.resolve()
    for place in (whole, run.absolute().parent, whole.parent):
        if (place / HISTORY).is_file():
            return Models(place)
    return Models(whole.parent / MODELS)
