"""Says how far a step is that takes a while, so that nobody takes it for stuck. Called by the steps that ask nobody."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from typing import TypeVar

log = logging.getLogger(__name__)

EVERY = 5.0  # seconds between lines
T = TypeVar("T")


def told(what: str, items: Collection[T]) -> Iterator[T]:
    """The items, with a line of the log before the first and now and then: `reading files: 120 of 900`."""
    log.info("%s: %d ...", what, len(items))
    last = time.monotonic()
    for place, item in enumerate(items):
        if time.monotonic() - last > EVERY:
            last = time.monotonic()
            log.info("%s: %d of %d", what, place, len(items))
        yield item
