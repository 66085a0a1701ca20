"""Runs the real command line: in this process, where the imports are paid once, or in one of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parent.parent
QUICK = ["model=static", "model.dimension=16", "trainer=smoke", "logger=none"]


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code, all it printed, and the folder of its run if it made one."""

    code: int
    output: str
    folder: Path | None

    @property
    def result(self) -> dict[str, Any]:
        assert self.folder is not None, self.output
        return json.loads((self.folder / "result.json").read_text())


class Command:
    """`embexp` in a folder of the test's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path) -> None:
        monkeypatch.chdir(folder)
        self._monkeypatch, self._capfd, self._folder, self._runs = monkeypatch, capfd, folder, 0

    def __call__(self, *arguments: str) -> Outcome:
        """Run in this process; a single run writes to run1, run2, ..."""
        from embexp import cli, exit_codes

        self._runs += 1
        folder = self._folder / f"run{self._runs}"
        own = [] if "-m" in arguments or "--cfg" in arguments else [f"hydra.run.dir={folder}"]
        exit_codes.of_jobs.clear()
        code, output = self._ended(cli.main, arguments, own)
        return Outcome(code, output, folder if folder.exists() else None)

    def mine(self, *arguments: str) -> Outcome:
        """Run `python -m embexp.mine` in this process, into the folder mined."""
        from embexp.mine import cli

        code, output = self._ended(cli.main, arguments, ["out=mined", "model=static"])
        folder = self._folder / "mined"
        return Outcome(code, output, folder if folder.exists() else None)

    def _ended(self, main: Callable[[], None], arguments: Sequence[str], own: Sequence[str]) -> tuple[int, str]:
        chosen = {argument.partition("=")[0] for argument in arguments}
        own = [argument for argument in own if argument.partition("=")[0] not in chosen]
        self._monkeypatch.setattr(sys, "argv", ["embexp", *arguments, *own])
        self._capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), "".join(self._capfd.readouterr())


def separate(*arguments: str, folder: Path, timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m embexp` in a process of its own, in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "embexp", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=timeout, check=False, **options,
    )  # fmt: skip


def hear_interrupts() -> None:
    """For a child that is to be interrupted: a shell that starts the tests in the background has switched that off."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
