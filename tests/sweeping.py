"""A sweep on small data, by the real command in processes of their own that a test may kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import optuna

from tests.command import hear_interrupts

MODEL = ["model=static", "model.dimension=16", "logger=none"]
TRAINED = ["trainer.per_device_train_batch_size=8", "trainer.num_train_epochs=2", "trainer.learning_rate=0.05"]
SEARCH = ["sampler=random", "pruner=none", "loss.scale=tag(log,interval(0.001,50))"]
# some seconds of training, with few looks
LONG = ["trainer.num_train_epochs=6", "trainer.per_device_train_batch_size=2", "sweep.looks=1"]


class Sweeper:
    """`python -m embexp -m sweep=custom ...` at work in a folder; `command` may start with another program."""

    def __init__(
        self, *words: str, data: Path, folder: Path, environment: Mapping[str, str], under: Sequence[str] = ()
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._output = folder / f"output{len(list(folder.glob('output*')))}.txt"
        source = ["dataset=pairs", f"dataset.path={data}", "dataset.columns.group=group"]
        command = [sys.executable, "-m", "embexp", "-m", "sweep=custom", "sweep.name=test", *MODEL, *TRAINED, *SEARCH]
        chosen = {word.partition("=")[0] for word in words}
        command = [word for word in command if word.partition("=")[0] not in chosen]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [*under, *command, *source, *words], cwd=folder, env=os.environ | environment, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, preexec_fn=hear_interrupts,
            )  # fmt: skip
        self.folder = folder / "multirun" / "test"

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def until(self, reached: Callable[[], object], *, seconds: float = 240) -> None:
        """Wait until something is reached while the sweeper is at work."""
        end = time.monotonic() + seconds
        while not reached():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.05)

    def trains(self, number: int) -> bool:
        """Whether the trial has taken its first steps."""
        file = self.folder / str(number) / "metrics.jsonl"
        return file.exists() and "train/loss" in file.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.ended()

    def ended(self, *, seconds: float = 300) -> int:
        """Its exit code."""
        try:
            return self.process.wait(seconds)
        finally:
            if self.process.poll() is None:
                self.kill()


def numbered(study: optuna.Study) -> dict[int, str]:
    """The states of a study's trials by number."""
    return {trial.number: trial.state.name for trial in study.get_trials(deepcopy=False)}
