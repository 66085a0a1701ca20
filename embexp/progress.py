"""Shows how far the work is: on a terminal one line that moves, elsewhere a line of the log now and then.

`stages` says what is under way; `embedding` and `callbacks` count in it. What is printed meanwhile stands above.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from embexp import console

if TYPE_CHECKING:
    from rich.text import Text

log = logging.getLogger(__name__)

A_SECOND = 5  # times that the line is drawn
EVERY = 60.0  # seconds between lines of the log, where there is no terminal
BAR, SHORTEST_BAR = 30, 8  # columns


class Count:
    """Something under way, as far as it is; without a unit nothing is counted in it."""

    def __init__(self, what: str, total: int | None = None, *, unit: str = "", done: int = 0, told: bool = True):
        """total: None where it is not known. unit: of what is counted, in the plural. done: so far, as in a resumed
        run. told: also in the log, where there is no terminal; False where the caller does so."""
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self.shown: tuple[str, ...] = ()  # what else to show, the most important first
        self._before, self._told = done, told
        self._started = self._last = time.monotonic()

    def add(self, number: int = 1) -> None:
        """So many more are done."""
        self.done += number
        if self._told and not _display.moves and (now := time.monotonic()) - self._last > EVERY:
            self._last = now
            log.info("%s: %s %s, %s", self.what, self.counted, self.unit, ", ".join(self.pace(now)))

    def pace(self, now: float) -> list[str]:
        """The time left, then how many a second; before there is one, the time it has taken."""
        seconds = now - self._started
        if self.done <= self._before or seconds <= 0:
            return [] if seconds < 1 else [_clock(seconds)]
        rate = (self.done - self._before) / seconds
        left = [] if self.total is None else [f"{_clock((self.total - self.done) / rate)} left"]
        return [*left, f"{_short(rate)} {self.unit}/s"]

    @property
    def counted(self) -> str:
        """How many, of how many where that is known."""
        return f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"

    def add_known(self) -> None:
        """One more was done already: it says nothing of how fast the others are."""
        self.done += 1
        self._before += 1

    def begin(self) -> Count:
        """Show it beneath what is under way."""
        _display.push(self)
        return self

    def end(self) -> None:
        """Show it no longer."""
        _display.drop(self)

    def __enter__(self) -> Count:
        return self.begin()

    def __exit__(self, *_: object) -> None:
        self.end()


def moves() -> bool:
    """Whether a line that moves is shown now."""
    return _display.moves


def text_of(under_way: Sequence[Count], *, width: int, now: float, plain: bool = False) -> Text:
    """A line for what is under way, and one for each further thing that is counted in it; none is wider than `width`.

    now: by time.monotonic. plain: with ASCII alone.
    """
    from rich.text import Text

    named = [count for count in under_way if count.what]
    counted = [count for count in named if count.unit]
    lines = [(named[0].what, counted[0] if counted else named[0])] if named else []  # the stage, with its count
    lines += [(f"  {count.what}", count) for count in counted[1:]]
    return Text("\n").join(_line(Text, what, count, width, now, plain) for what, count in lines)


def _line(text: type[Text], what: str, count: Count, width: int, now: float, plain: bool) -> Text:
    line = text(no_wrap=True, overflow="ellipsis", end="").append(what, style="bold")
    known = [count.counted] if count.unit else []
    first, pace, left = count.shown[:1], count.pace(now), width - 1 - len(what)  # the last column stays free: some wrap
    chosen = set()
    for part in (*known, *first, *pace[:1], *count.shown[1:], *pace[1:]):  # what matters most, as far as there is room
        if len(part) + 2 <= left:
            chosen.add(part)
            left -= len(part) + 2
    if count.total and left >= SHORTEST_BAR + 2:
        bar = min(BAR, left - 2)
        full = min(bar, bar * count.done // count.total)
        line.append("  " + ("#" if plain else "━") * full, style="green")
        line.append(("." if plain else "━") * (bar - full), style="bright_black")
    for part in (*known, *count.shown, *pace):
        if part in chosen:
            line.append(f"  {part}")
    line.truncate(width - 1, overflow="ellipsis")
    return line


class _Display:
    """The one line of a process; it is there while something is under way."""

    def __init__(self) -> None:
        self._under_way: list[Count] = []
        self._open = ExitStack()
        self.moves = False

    def push(self, count: Count) -> None:
        self._under_way.append(count)
        if not self.moves and _has_terminal():
            self._show()

    def drop(self, count: Count, *, with_later: bool = False) -> None:
        if count in self._under_way:
            place = self._under_way.index(count)
            del self._under_way[place : None if with_later else place + 1]
        if not self._under_way:
            self.moves = False
            self._open.close()

    def _show(self) -> None:
        from rich.live import Live  # 0.04 s, which only a terminal costs
        from rich.text import Text

        screen = _console()

        def above(lines: list[str]) -> None:
            shown = [Text(line.rstrip("\r").rpartition("\r")[2]) for line in lines]  # the last state of others' bars
            screen.print(*shown, sep="\n", soft_wrap=True, highlight=False)

        def drawn() -> Text:
            plain = screen.options.ascii_only
            return text_of([*self._under_way], width=screen.width, now=time.monotonic(), plain=plain)

        live = Live(
            console=screen, get_renderable=drawn, refresh_per_second=A_SECOND, transient=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        self._open.enter_context(live)
        for stream in console.on_terminal():
            self._open.enter_context(stream.handed_to(above))
        self.moves = True


_display = _Display()


def _has_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def _console() -> Any:
    from rich.console import Console

    class Screen(Console):
        def show_cursor(self, show: bool = True) -> bool:
            """Leave it as it is: whoever is killed could not bring it back."""
            return False

    return Screen(file=console.Forgiving(console.bare(sys.stderr)))  # type: ignore[arg-type]


def _clock(seconds: float) -> str:
    whole = math.ceil(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Show that this is under way, and nothing of what was counted in it once it has ended or failed."""
    count = Count(what).begin()
    try:
        yield
    finally:
        _display.drop(count, with_later=True)


@contextmanager
def kept_open() -> Iterator[None]:
    """Keep the display open between what is under way in here."""
    with doing(""):
        yield


@contextmanager
def counting(what: str | None, total: int, *, unit: str) -> Iterator[Callable[[int], None]]:
    """Show how many are done, by what is called with the number of each part; None shows nothing."""
    if what is None:
        yield lambda number: None
    else:
        with Count(what, total, unit=unit) as count:
            yield count.add
