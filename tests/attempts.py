"""Runs an experiment in a process that may die, and compares what two runs leave."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir

from embexp.config.checks import CONFIG_FOLDER, plain

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["embexp.run", "embexp.training.fine_tuning"])  # imports only, as in a multirun
QUICK = ["trainer=smoke", "trainer.max_steps=7", "trainer.eval_steps=2", "logger=none", "limit=null"]
VARYING = ("seconds", "peak_memory_mib", "git")


@dataclass(frozen=True)
class Ending:
    """What a run leaves, without times."""

    weights: bytes
    result: dict
    metrics: list[dict]

    @classmethod
    def of(cls, folder: Path) -> Ending:
        result = json.loads((folder / "result.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return cls(
            b"".join(path.read_bytes() for path in sorted((folder / "model").rglob("*.safetensors"))),
            {key: value for key, value in result.items() if key not in VARYING},
            [{key: value for key, value in line.items() if key not in ("seconds", "attempt")} for line in lines],
        )


def configured(*overrides: str) -> dict:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return plain(compose("config", [*QUICK, *overrides]))


def attempt(
    config: dict, folder: Path, *, before: Callable[[Path], None] | None = None, seconds: float | None = None
) -> int:
    """Run in a process of its own, a second attempt resumed; returns its exit code, -9 when it was killed.

    before: called with the folder in that process, to prepare a fault. seconds: after which it is killed.
    """
    folder.mkdir(exist_ok=True)
    process = SERVER.Process(target=_run, args=(config, folder, before))
    process.start()
    if seconds is not None:
        threading.Timer(seconds, process.kill).start()
    process.join(120)
    return process.exitcode


def _run(config: dict, folder: Path, before: Callable[[Path], None] | None) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    from embexp.run import run

    if before is not None:
        before(folder)
    names = {"loss": "mnrl", "model": "static", "dataset": "pairs"}
    run(config, names=names, folder=folder, group="attempts", resume=(folder / "metrics.jsonl").exists())


def at_file_event(number: int, folder: Path, *, where: str | None = None) -> None:
    """SIGKILL at the `number`-th time that a file with `where` in its path is opened, renamed or removed."""
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    _on_file_events(where or str(folder), count)


def counting_file_events(file: Path, folder: Path) -> None:
    """One byte into `file` for each of them."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
    _on_file_events(str(folder), lambda: os.write(descriptor, b"."))


def _on_file_events(where: str, action: Callable[[], object]) -> None:
    def hook(event: str, arguments: tuple) -> None:
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and where in str(arguments[0]):
            action()

    sys.addaudithook(hook)
