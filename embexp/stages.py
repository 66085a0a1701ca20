"""Times the stages of a run and says in the log where it is. Called by `experiment`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

log = logging.getLogger(__name__)


class Timer(Protocol):
    """Times what is done within it, under a stage's name."""

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """Begin the stage."""


def timer(seconds: dict[str, float]) -> Timer:
    """A timer that writes each stage's wall seconds into `seconds`, also of one that fails."""

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.perf_counter()
        log.info("%s ...", name)
        try:
            yield
            log.info("%s done in %.1f s", name, time.perf_counter() - start)
        finally:
            seconds[name] = round(time.perf_counter() - start, 2)

    return stage
