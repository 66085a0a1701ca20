"""Starts without the garbage collector. Called by whatever loads modules and configs, which stay; imports nothing.

Looking through them again and again, for garbage that is not there, took a sixth of the time of every start.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Within it, reference cycles are not looked for."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
