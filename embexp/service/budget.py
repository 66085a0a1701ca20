"""Hard caps on what a data set, or an endpoint's vectors, may cost, and what a call costs by the price table.

Called by `client` and `remote`: before a call its worst case is reserved, after it what it really took is booked, so
that a cap holds however many calls are in flight. Knows nothing of servers.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal

from embexp.errors import UserError
from embexp.service.journal import Spending

DATED = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|\d{4}|latest)")  # gpt-4o-2024-08-06 is a gpt-4o
MILLION = Decimal(1_000_000)
CENT = Decimal("0.01")


@dataclass(frozen=True)
class Price:
    """USD per million tokens. input: of prompts. output: of completions."""

    input: float
    output: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> Decimal:
        """What a call costs in USD, exactly."""
        return (Decimal(repr(self.input)) * prompt_tokens + Decimal(repr(self.output)) * completion_tokens) / MILLION


def price_of(model: str, prices: Mapping[str, Mapping[str, float]]) -> Price | None:
    """A model's price in the table, a dated name's by what stands before the date; None where it has none.

    Of several names that fit the longest counts. Other endings are other models: gpt-4o-mini is no gpt-4o.
    """
    fitting = [
        name for name in prices if model.startswith(name) and (model == name or DATED.fullmatch(model[len(name) :]))
    ]
    if not fitting:
        return None
    found = prices[max(fitting, key=len)]
    return Price(input=found["input"], output=found["output"])


def unpriced(model: str, prices: Mapping[str, Mapping[str, float]]) -> str | None:
    """What to say where USD are capped and the model's price is not known."""
    if price_of(model, prices) is not None:
        return None
    return (
        f"budget.usd is set and the price of {model} is not in the price table. Set llm.price in USD per million "
        "tokens, as llm.price='{input: 1, output: 2}' (0 and 0 for a server of your own), or cap budget.tokens instead"
    )


@dataclass(frozen=True)
class Cost:
    """What a call takes, or may take at most. usd: 0 where no price is known, and then no cap on USD is taken."""

    tokens: int
    usd: Decimal = Decimal(0)
    calls: int = 1


class Budget:
    """Caps on the calls, tokens and USD of a data set as a whole: what earlier attempts spent on it counts too.

    Each is null for no cap. Safe to use from several threads.
    """

    def __init__(self, *, usd: float | None = None, tokens: int | None = None, calls: int | None = None) -> None:
        """Raises UserError for a cap below 0."""
        given = {"usd": usd, "tokens": tokens, "calls": calls}
        wrong = [name for name, cap in given.items() if cap is not None and not cap >= 0]  # NaN is caught too
        if wrong:
            raise UserError(*(f"budget.{name} must be 0 or more, or null for no cap" for name in wrong))
        self._caps: dict[str, Decimal | int | None] = {"tokens": tokens, "calls": calls, "usd": None}
        if usd is not None:
            self._caps["usd"] = Decimal(repr(usd))
        self._lock = threading.Lock()
        self._spent = Cost(0, calls=0)
        self._reserved = Cost(0, calls=0)
        self.larger: dict[str, str] = {}  # the cap that refused a call -> one with which asking would go on

    @property
    def caps_usd(self) -> bool:
        """Whether a price is needed."""
        return self._caps["usd"] is not None

    @property
    def spent(self) -> Cost:
        """What has been booked."""
        return self._spent

    def book_earlier(self, spending: Spending, price: Price | None) -> None:
        """Count what a journal holds; answers that had no price then are counted at today's."""
        usd = spending.usd
        if spending.unpriced is not None and price is not None:
            usd += price.of(spending.unpriced.prompt_tokens, spending.unpriced.completion_tokens)
        with self._lock:
            self._spent = _plus(self._spent, Cost(spending.tokens, usd, spending.calls))

    def reserve(self, most: Cost) -> bool:
        """Hold back the most that a call can take; False where that does not fit beside the calls in flight."""
        with self._lock:
            held = _plus(self._reserved, most)
            if self._exceeded(_plus(self._spent, held)):
                return False
            self._reserved = held
            return True

    def book(self, most: Cost, taken: Cost) -> None:
        """Give back what was reserved for a call and count what it took (nothing: `Cost(0, calls=0)`)."""
        with self._lock:
            self._reserved = _plus(self._reserved, most, sign=-1)
            self._spent = _plus(self._spent, taken)

    def refusal(self, most: Cost, *, key: str = "budget", on: str = "this data set") -> str | None:
        """Why a call will not fit, whatever the calls in flight come to; None where it may yet fit.

        key: where the user sets the caps. on: what they are for.
        """
        with self._lock:
            exceeded = self._exceeded(_plus(self._spent, most))
        if not exceeded:
            return None
        name, spent, needed = exceeded
        self.larger = {name: _larger(self._caps[name], spent + needed)}
        return (
            f"{key}.{name}={_plain(self._caps[name])} would be exceeded: {_plain(spent)} spent on {on} so far, and the "
            f"next call may take {_plain(needed)}"
        )

    def _exceeded(self, total: Cost) -> tuple[str, Decimal | int, Decimal | int] | None:
        for name, cap in self._caps.items():
            if cap is not None and getattr(total, name) > cap:
                return name, getattr(self._spent, name), getattr(total, name) - getattr(self._spent, name)
        return None


def _plus(left: Cost, right: Cost, *, sign: int = 1) -> Cost:
    return Cost(left.tokens + sign * right.tokens, left.usd + sign * right.usd, left.calls + sign * right.calls)


def _larger(cap: Decimal | int | None, total: Decimal | int) -> str:
    """Twice the cap, or twice what is needed where that is still too little, as an override has it."""
    assert cap is not None
    found = 2 * (cap if 2 * cap >= total else total)
    return f"{found.quantize(CENT, ROUND_UP).normalize():f}" if isinstance(found, Decimal) else str(found)


def _plain(value: Decimal | int | None) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".") if isinstance(value, Decimal) else f"{value:,}"
