"""A cap holds whatever is in flight, and a price is only ever that of the model."""

from __future__ import annotations

import random
import threading
from decimal import Decimal

import pytest
from omegaconf import OmegaConf

from embexp.config.experiment import CONFIG_FOLDER
from embexp.errors import UserError
from embexp.service.budget import Budget, Cost, Price, price_of
from embexp.service.journal import Answer, Spending

PRICES = {
    "gpt-4o": {"input": 2.5, "output": 10.0},
    "gpt-4o-2024-05-13": {"input": 5.0, "output": 15.0},
    "gpt-4o-mini": {"input": 0.15, "output": 0.6},
}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gpt-4o", 2.5),
        ("gpt-4o-2024-08-06", 2.5),
        ("gpt-4o-2024-05-13", 5.0),
        ("gpt-4o-mini", 0.15),
        ("gpt-4o-mini-2024-07-18", 0.15),
        ("gpt-4o-latest", 2.5),
        ("gpt-4o-audio-preview", None),
        ("gpt-4o.1", None),
        ("gpt-4", None),
        ("my-gpt-4o", None),
    ],
)
def test_a_dated_name_has_the_price_of_its_model_and_another_model_has_none(model, expected):
    found = price_of(model, PRICES)
    assert (found.input if found else None) == expected


def test_a_million_prompt_tokens_and_half_a_million_completion_tokens_of_gpt_4o_cost_seven_and_a_half():
    assert Price(2.5, 10.0).of(1_000_000, 500_000) == Decimal("7.5")
    assert Price(0.15, 0.6).of(1, 1) == Decimal("0.00000075")


def test_the_price_table_prices_the_default_model_and_says_when_it_was_noted():
    table = OmegaConf.to_container(OmegaConf.load(CONFIG_FOLDER / "prices.yaml"))
    assert price_of("gpt-4o-2024-08-06", table["models"]) == Price(2.5, 10.0)
    assert table["noted"]
    assert all(set(price) == {"input", "output"} for price in table["models"].values())


def test_what_is_reserved_is_held_back_and_what_was_not_taken_comes_back():
    budget = Budget(tokens=100)
    assert budget.reserve(Cost(60))
    assert not budget.reserve(Cost(60))  # 120 might be taken
    assert budget.refusal(Cost(60)) is None  # but the first may take less
    budget.book(Cost(60), Cost(30))
    assert budget.reserve(Cost(60))
    budget.book(Cost(60), Cost(60))
    assert not budget.reserve(Cost(11))
    assert budget.refusal(Cost(11)) == (
        "budget.tokens=100 would be exceeded: 90 spent on this data set so far, and the next call may take 11"
    )
    assert budget.reserve(Cost(10))


def test_calls_and_dollars_are_capped_too_and_no_cap_caps_nothing():
    assert Budget(calls=0).refusal(Cost(1)).startswith("budget.calls=0 would be exceeded: 0 spent")
    dollars = Budget(usd=0.3)
    assert dollars.reserve(Cost(5, Decimal("0.1")))
    assert dollars.reserve(Cost(5, Decimal("0.2")))  # exactly the cap, which floating point would exceed
    assert dollars.refusal(Cost(5, Decimal("0.31"))).startswith("budget.usd=0.3 would be exceeded: 0 spent")
    assert Budget().reserve(Cost(10**12, Decimal(10**9)))


def test_a_call_that_was_never_answered_costs_nothing():
    budget = Budget(calls=1)
    assert budget.reserve(Cost(5))
    budget.book(Cost(5), Cost(0, calls=0))
    assert budget.spent == Cost(0, calls=0)
    assert budget.reserve(Cost(5))


def test_what_earlier_attempts_spent_counts_and_what_had_no_price_then_has_todays():
    earlier = Spending()
    earlier.add(Answer("", prompt_tokens=1000, completion_tokens=0, cost=0.0025))
    earlier.add(Answer("", prompt_tokens=2000, completion_tokens=100, cost=None))
    budget = Budget(usd=1)
    budget.book_earlier(earlier, Price(2.5, 10.0))
    assert budget.spent == Cost(3100, Decimal("0.0025") + Decimal("0.006"), 2)


@pytest.mark.parametrize(
    ("caps", "spent", "call", "larger"),
    [
        ({"calls": 10}, Cost(0, calls=10), Cost(50), {"calls": "20"}),
        ({"usd": 5}, Cost(0, Decimal("4.999")), Cost(50, Decimal("0.01")), {"usd": "10"}),
        ({"usd": 0.001}, Cost(0, Decimal(0)), Cost(50, Decimal("0.0042")), {"usd": "0.01"}),
        ({"tokens": 5000}, Cost(0), Cost(20_000), {"tokens": "40000"}),  # twice the cap would not do
    ],
)
def test_a_refusal_says_which_cap_to_raise_to_what(caps, spent, call, larger):
    budget = Budget(**caps)
    budget.book(Cost(0, calls=0), spent)
    assert budget.larger == {}
    assert budget.refusal(call)
    assert budget.larger == larger
    raised = Budget(**{name: float(cap) for name, cap in budget.larger.items()})
    raised.book(Cost(0, calls=0), spent)
    assert raised.reserve(call)


def test_a_negative_cap_is_refused_by_name():
    with pytest.raises(UserError, match=r"budget\.tokens must be 0 or more"):
        Budget(tokens=-1)
    with pytest.raises(UserError, match=r"budget\.usd must be 0 or more"):
        Budget(usd=float("nan"))


def test_no_cap_is_exceeded_by_thirty_two_threads_at_once():
    budget = Budget(tokens=5_000, calls=80)
    taken = []

    def work(seed):
        rng = random.Random(seed)
        while budget.reserve(Cost(100)):
            used = Cost(rng.randint(1, 100))
            taken.append(used.tokens)
            budget.book(Cost(100), used)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == budget.spent.tokens
    assert budget.spent.tokens <= 5_000
    assert budget.spent.calls == len(taken) <= 80
    assert budget.refusal(Cost(100)) is not None
