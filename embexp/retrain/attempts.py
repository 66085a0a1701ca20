"""What was trained, and how far it came: each attempt has a number.

| in the models' folder        | holds                                                                               |
|------------------------------|-------------------------------------------------------------------------------------|
| 0001                         | the run: what `current` leads to when it is promoted                                |
| attempts/0001/retrain.json   | what it was asked, what it is made from, and in the end the comparison and decision |
| attempts/0001/retrain.md     | the same to read                                                                    |
| attempts/0001/data           | the data set, where the run's data are mined                                        |
| attempts/0001/trained.json   | training questions, id -> text, where they are not mined: the file may change       |

Called by `retraining`; reads and writes files and imports nothing heavy.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embexp.durable import write_whole
from embexp.errors import UserError
from embexp.retrain.pointer import Models

STATE, TRAINED, FOLDER = "retrain.json", "trained.json", "attempts"
NUMBER = re.compile(r"\d{4,}")


@dataclass
class Attempt:
    """folder: its own in attempts/. state: the content of retrain.json, written with each change."""

    folder: Path
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """The data set that is mined for it."""
        return self.folder / "data"

    @property
    def run(self) -> Path:
        """The run that it trains."""
        return self.folder.parent.parent / self.folder.name

    @property
    def decision(self) -> Mapping[str, Any] | None:
        """What came of it; None while it is open."""
        return self.state.get("decision")

    @property
    def times(self) -> int:
        """How often the test on its documents has decided, in this attempt and those before it."""
        return int(self.state.get("times", 0))

    @property
    def trained(self) -> Mapping[str, str] | None:
        """Training questions of its run, id -> text, where they were kept."""
        file = self.folder / TRAINED
        found: Mapping[str, str] | None = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        return found

    def keep_trained(self, questions: Mapping[str, str]) -> None:
        """Keep its run's training questions, durably."""
        write_whole(self.folder / TRAINED, json.dumps(dict(questions), ensure_ascii=False) + "\n")

    def write(self, **changes: Any) -> None:
        """Keep these, durably."""
        self.state |= changes
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / STATE, json.dumps(self.state, indent=2) + "\n")


def all_in(models: Models) -> list[Attempt]:
    """The attempts in a models folder, the oldest first. Raises UserError for a file that can't be read."""
    found = [read(file.parent) for file in _folder(models).glob(f"*/{STATE}") if NUMBER.fullmatch(file.parent.name)]
    return sorted(found, key=lambda attempt: int(attempt.folder.name))


def read(folder: Path) -> Attempt:
    """The attempt in a folder. Raises UserError for a file that can't be read."""
    file = folder / STATE
    try:
        return Attempt(folder, json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"{file} can't be read ({error}); remove {folder}") from error


def of_run(run: Path) -> Attempt | None:
    """The attempt that a run is of; None for one that was trained by itself."""
    folder = run.resolve().parent / FOLDER / run.resolve().name
    return read(folder) if (folder / STATE).is_file() else None


def _folder(models: Models) -> Path:
    return models.folder.resolve() / FOLDER


def last(models: Models) -> Attempt | None:
    """The newest attempt, where there is one."""
    return next(reversed(all_in(models)), None)


def open_for(models: Models, asked: Mapping[str, Any], *, margin: float) -> Attempt | None:
    """The attempt to go on with, or a new one; None when what is asked was decided already.

    asked: all that a new model would come of. One that was not promoted is decided again with another margin. An
    attempt that was stopped is gone on with, also for other documents: what was paid for stays.
    """
    attempts = all_in(models)
    newest = attempts[-1] if attempts else None
    if newest is not None and newest.decision is not None and newest.state["asked"] == asked:
        decision = newest.decision
        if decision["promoted"] or decision["margin"] == margin:
            return None
        newest.write(decision=None)
        return newest
    if newest is not None and newest.decision is None:
        if newest.state["asked"] != asked:
            _begin_again(newest)
            newest.write(asked=dict(asked), compared=None, trained=None, remarks=[], times=_times(newest, asked))
        return newest
    used = [
        *models.served(),
        *(path.name for path in models.folder.iterdir()),
        *(each.folder.name for each in attempts),
    ]
    number = 1 + max((int(name) for name in used if NUMBER.fullmatch(name)), default=0)
    attempt = Attempt(_folder(models) / f"{number:04}")
    attempt.write(asked=dict(asked), decision=None, times=_times(newest, asked))
    return attempt


def _times(before: Attempt | None, asked: Mapping[str, Any]) -> int:
    """How often a test on these documents has decided already, with other margins or recipes."""
    same = before is not None and all(before.state["asked"].get(key) == asked.get(key) for key in ("passages", "data"))
    return before.times if before is not None and same else 0


def _begin_again(attempt: Attempt) -> None:
    """Without what was made of other documents or settings, but with the answers that were paid for. No model that
    was ever current is of an open attempt: a decision is written before the pointer turns."""
    (attempt.data / "mining.json").unlink(missing_ok=True)
    shutil.rmtree(attempt.run, ignore_errors=True)


def prune(models: Models, *, keep: int) -> list[str]:
    """Remove runs and attempts but for the current model, the last `keep` that were current before it, and the last
    attempt, whose data set is gone on from. Returns the names of those that are gone."""
    kept = {*models.served()[: keep + 1], *([models.name_of(models.current)] if models.current else [])}
    removed = []
    for attempt in all_in(models)[:-1]:
        if attempt.folder.name not in kept:
            shutil.rmtree(attempt.run, ignore_errors=True)
            shutil.rmtree(attempt.folder, ignore_errors=True)  # last: until then it is known that its run is to go
            removed.append(attempt.folder.name)
    return removed
