"""Shows how far asking is: done, rate, tokens, cost and time left. Called by `client`."""

from __future__ import annotations

import logging
import time

from embexp.progress import Count, moves
from embexp.service.journal import Answer, Spending

log = logging.getLogger(__name__)

FIRST, EVERY = 5.0, 60.0  # seconds until the first line and between the others, where no one watches


class Progress:
    """A line that moves on a terminal, elsewhere one in the log now and then; kept answers count as done at once."""

    def __init__(self, what: str, total: int | None) -> None:
        self._spent = Spending()
        self._count = Count(what, total, unit="calls", told=False).begin()
        self._started = time.monotonic()
        self._last = self._started + FIRST - EVERY
        if not moves() and total:
            log.info("asking for %s: %s ...", what, f"{total:,}")

    def kept(self) -> None:
        """One more that was answered in an earlier run."""
        self._count.add_known()

    def answered(self, answer: Answer) -> None:
        """One more answer."""
        self._count.add()
        self._spent.add(answer)
        self._count.shown = (self._cost(),)
        if not moves() and time.monotonic() - self._last > EVERY:
            self._last = time.monotonic()
            log.info("%s", self._line())

    def close(self) -> None:
        """Show it no longer."""
        self._count.end()

    def _line(self) -> str:
        rate = self._spent.calls / (time.monotonic() - self._started)
        done, total = self._count.done, self._count.total
        text = f"{self._count.what}: {done:,}"
        if total is not None:
            text += f" of {total:,}, {(total - done) / rate / 60:,.0f} minutes left"
        return f"{text}, {rate:.1f} a second, {self._cost()}"

    def _cost(self) -> str:
        tokens = f"{self._spent.tokens:,} tokens"
        return tokens if self._spent.unpriced else f"{tokens}, {self._spent.usd:.2f} USD"
