"""What happens between the steps of a training: looks that a study asks for, checkpoints, lines for the tracker.

Called by `fine_tuning`, which chooses some; the loop in `trainer` runs them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

from transformers import TrainerCallback

from embexp.progress import EVERY, Count, moves
from embexp.tracking import Tracker

log = logging.getLogger(__name__)

LINES = 10  # of losses, and of looks at dev, in the log of a training; more where that is less than one a minute


class Watch(Protocol):
    """Who follows a run while it trains and may end it early: a trial's side of its study.

    looks: at dev, per epoch. scores_test: whether the run is scored on test, as one that stands for itself is.
    """

    looks: int
    scores_test: bool

    def report(self, metrics: Mapping[str, float], look: int) -> None:
        """Take dev's metrics at a look, counted from 1. Raises Pruned to end the run."""


class Looks(TrainerCallback):
    """Scores dev after equal shares of an epoch, whatever the batch size, and tells the watch.

    So the same look of two runs comes after equally many questions, to within a batch.
    """

    def __init__(self, per_epoch: int, watch: Watch | None) -> None:
        """watch: None in a process that follows, which looks at dev when process 0 does."""
        self._per_epoch, self._watch = per_epoch, watch
        self._last = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up at the checkpoint's look in a resumed run."""
        self._last = self._reached(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a look where one is due, and for the last one."""
        if self._reached(state) > self._last or state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **_: Any) -> None:
        """Tell the watch, once a look."""
        if self._reached(state) > self._last:
            self._last = self._reached(state)
            if self._watch is not None:
                self._watch.report({name.removeprefix("eval_"): value for name, value in metrics.items()}, self._last)

    def _reached(self, state: Any) -> int:
        return math.floor((state.epoch or 0) * self._per_epoch + 1e-6)


class Saves(TrainerCallback):
    """Asks for a checkpoint as often as the config says, beside those at looks, which may be fewer."""

    def __init__(self, every: float) -> None:
        """every: steps; below 1, a share of all."""
        self._every = every

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for one where it is due."""
        every = math.ceil(state.max_steps * self._every) if self._every < 1 else int(self._every)
        if state.global_step % every == 0:
            control.should_save = True


class Track(TrainerCallback):
    """Sends losses and dev metrics to the tracker and shows how far the training is."""

    def __init__(self, tracker: Tracker, *, metric: str) -> None:
        """metric: the one of dev to show."""
        self._tracker, self._metric = tracker, metric
        self._count: Count | None = None
        self._loss, self._dev = "", ""
        self._said: dict[str, tuple[int, float]] = {}  # what was last said in the log: at which step, and when

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show the count of steps, at the checkpoint's in a resumed run."""
        count = Count("training", state.max_steps, unit="steps", done=state.global_step, told=False)
        self._count = count.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count; log wherever a checkpoint is made."""
        assert self._count is not None
        self._count.add()
        if control.should_save:  # a resumed run starts its mean loss at the checkpoint; so does one that never stopped
            control.should_log = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log wherever a checkpoint is made."""
        if control.should_save:
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Send what the trainer logs to the tracker: dev metrics, or the mean loss since the last time."""
        # metrics have an @ or a dot in their names; the trainer's own measurements of time have neither
        names = [name for name in logs if name.startswith("eval_") and set(name) & set("@.")]
        dev = {f"dev/{name.removeprefix('eval_')}": logs[name] for name in names}
        train = {f"train/{name}": logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs}
        if any(name.startswith("eval_") for name in logs):
            self._tracker.log({"epoch": logs["epoch"], **dev}, step=state.global_step)
            self._show_dev(logs[f"eval_{self._metric}"], state)
        elif train:
            self._tracker.log({"epoch": logs["epoch"], **train}, step=state.global_step)
            if "loss" in logs:
                self._show_loss(logs["loss"], state)

    def _show_dev(self, score: float, state: Any) -> None:
        self._dev = f"dev {self._metric} {score:.3f}"
        self._show()
        self._say("dev", self._dev, state)

    def _show_loss(self, loss: float, state: Any) -> None:
        self._loss = f"loss {loss:.3f}"
        self._show()
        if not moves():
            self._say("loss", f"loss {loss:.4f}", state)

    def _show(self) -> None:
        if self._count is not None:
            self._count.shown = tuple(filter(None, (self._loss, self._dev)))

    def _say(self, what: str, text: str, state: Any) -> None:
        step, total, now = state.global_step, state.max_steps, time.monotonic()
        before, at = self._said.get(what, (-total, now))
        if step - before >= total / LINES or now - at > EVERY or step == total:
            self._said[what] = step, now
            log.info("step %d of %d: %s", step, total, text)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show it no longer."""
        assert self._count is not None
        self._count.end()
