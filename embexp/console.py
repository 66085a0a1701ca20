"""What a process prints: to readers who may stop reading, as `| head` does, and above a display that moves.

Called by `cli` and `job`; `progress` shows the display.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO)  # a pipe's reader has gone, or the terminal

Take = Callable[[list[str]], None]


class Forgiving:
    """A stream whose further text goes nowhere once its reader has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, if anybody still reads."""
        self._tried(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, if anybody still reads."""
        self._tried(self._stream.flush)

    def _tried(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            if error.errno not in GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is still in the buffer goes there too
            os.close(nowhere)


class _Shared(Forgiving):
    """A forgiving stream whose lines somebody else may write, who has the terminal in use.

    Whoever holds it, as handlers of logs do from their start, need not know.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._take: Take | None = None
        self._process, self._begun, self._lock = os.getpid(), "", threading.RLock()

    def write(self, text: str) -> int:
        """Write, or hand on the lines that are whole; what a forked process writes it writes itself."""
        if os.getpid() != self._process:  # another thread may have held the lock as this one was forked
            return super().write(text)
        with self._lock:
            if self._take is None:
                return super().write(text)
            *lines, self._begun = (self._begun + text).split("\n")
            if lines:
                self._take(lines)
        return len(text)

    @contextmanager
    def handed_to(self, take: Take) -> Iterator[None]:
        """Within it, `take` gets what is written, in whole lines."""
        with self._lock:
            self._take = take
        try:
            yield
        finally:
            with self._lock:
                self._take = None
                if self._begun:
                    super().write(self._begun)
                self._begun = ""


def bare(stream: TextIO) -> TextIO:
    """The stream itself, where it is one of `forgiving`'s."""
    return stream._stream if isinstance(stream, Forgiving) else stream


@contextmanager
def forgiving() -> Iterator[None]:
    """Within it, standard output and standard error may lose their readers, and their lines be handed on."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Shared(stream) for stream in streams)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams


def on_terminal() -> list[_Shared]:
    """Standard output and standard error, where they are `forgiving` and the terminal's."""
    streams = dict.fromkeys([sys.stdout, sys.stderr])
    return [stream for stream in streams if isinstance(stream, _Shared) and stream.isatty()]
