"""Checkpoints that are whole or not used: each is sealed with the digests of its files once all are written.

The trainer writes a checkpoint file by file, so a killed run leaves half of one. Called by `trainer` and `tuning`;
knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embexp.durable import sync, sync_name, write_whole
from embexp.errors import UserError

log = logging.getLogger(__name__)

SEAL = "complete.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint. ended: whether training was over when it was made."""

    folder: Path
    ended: bool

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return _step(self.folder)


def path_of(folder: Path, step: int) -> Path:
    """Where the run in `folder` keeps the checkpoint of a step."""
    return folder / "checkpoints" / f"checkpoint-{step}"


def seal(checkpoint: Path, *, made_from: str, ended: bool) -> None:
    """Declare a checkpoint whole, once it is on disk. made_from: the digest of the data and models behind it."""
    content = {"files": _digests(checkpoint), "made_from": made_from, "ended": ended}
    sync(checkpoint)
    sync_name(checkpoint.parent)
    write_whole(checkpoint / SEAL, json.dumps(content))


def is_whole(checkpoint: Path) -> bool:
    """Whether it is sealed and every file is as it was then."""
    content = _seal_of(checkpoint)
    return content is not None and content["files"] == _digests(checkpoint)


def rotate(folder: Path, *, keep: int | None, best: int | None) -> None:
    """Remove all but the last `keep` checkpoints of the run in `folder`, those that were best for them, and `best`."""
    checkpoints = _checkpoints(folder)
    kept = checkpoints[-keep:] if keep else checkpoints
    needed = {best, *map(_step, kept), *map(_best_step, kept)}
    for checkpoint in checkpoints:
        if _step(checkpoint) not in needed:
            shutil.rmtree(checkpoint)


def last_usable(folder: Path, *, made_from: str) -> Checkpoint | None:
    """The last whole checkpoint whose best predecessor is whole too, after removing every other; None without one.

    Raises UserError when it was made from other data or other models than `made_from`.
    """
    usable = None
    for checkpoint in reversed(_checkpoints(folder)):
        if is_whole(checkpoint) and ((best := _best_step(checkpoint)) is None or is_whole(path_of(folder, best))):
            usable = checkpoint
            break
        log.warning("%s is not whole, or its best checkpoint is not, and is not used", checkpoint)
    content = _seal_of(usable) if usable else None
    if content is not None and content["made_from"] != made_from:
        raise UserError(
            f"the data, the base model or one that helps to train it (guide, teacher, rescorer) has changed since "
            f"{usable} was made, or hard negatives that score nearly alike were drawn otherwise (with another "
            "trainer.processes, or without the cache), so this run can't be continued; start a new one, or bring back "
            "what was there"
        )
    for checkpoint in _checkpoints(folder):
        if usable is None or checkpoint not in (usable, path_of(folder, _best_step(usable) or 0)):
            shutil.rmtree(checkpoint)
    return Checkpoint(usable, ended=content["ended"]) if usable and content else None


def _checkpoints(folder: Path) -> list[Path]:
    """In the order of their steps."""
    return sorted((folder / "checkpoints").glob("checkpoint-*"), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _best_step(checkpoint: Path) -> int | None:
    return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["best_global_step"]


def _seal_of(checkpoint: Path) -> dict[str, Any] | None:
    try:
        return json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _digests(checkpoint: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and not path.name.startswith(SEAL):
            with path.open("rb") as file:
                digests[str(path.relative_to(checkpoint))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
