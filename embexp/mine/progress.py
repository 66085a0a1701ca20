"""Shows how far asking is: done, rate, tokens, cost and time left. Called by `client`."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm

from embexp.mine.journal import Answer, Spending

log = logging.getLogger(__name__)

FIRST, EVERY = 5.0, 60.0  # seconds until the first line and between the others, where no one watches


class Progress:
    """A bar on a terminal; elsewhere a line in the log now and then. Answers that were kept count as done at once."""

    def __init__(self, what: str, total: int | None) -> None:
        self._what, self._spent = what, Spending()
        self._bar = tqdm(
            total=total, desc=what, unit=" calls", smoothing=0, disable=not sys.stderr.isatty(), dynamic_ncols=True
        )
        self._done, self._total = 0, total
        self._started = time.monotonic()
        self._last = self._started + FIRST - EVERY
        if self._bar.disable and total:
            log.info("asking for %s: %s ...", what, f"{total:,}")

    def kept(self) -> None:
        """One more that was answered in an earlier run."""
        self._done += 1
        if not self._bar.disable:
            self._bar.initial += 1  # the rate, and so the time left, is of calls
            self._bar.update()

    def answered(self, answer: Answer) -> None:
        """One more answer."""
        self._done += 1
        self._spent.add(answer)
        if not self._bar.disable:
            self._bar.set_postfix_str(self._cost(), refresh=False)
            self._bar.update()
        elif time.monotonic() - self._last > EVERY:
            self._last = time.monotonic()
            log.info("%s", self._line())

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()

    def _line(self) -> str:
        rate = self._spent.calls / (time.monotonic() - self._started)
        text = f"{self._what}: {self._done:,}"
        if self._total is not None:
            left = (self._total - self._done) / rate
            text += f" of {self._total:,}, {left / 60:,.0f} minutes left"
        return f"{text}, {rate:.1f} a second, {self._cost()}"

    def _cost(self) -> str:
        tokens = f"{self._spent.tokens:,} tokens"
        return tokens if self._spent.unpriced else f"{tokens}, {self._spent.usd:.2f} USD"
