"""Which arm to run: paired against the best, within a margin, and cheapest in a stated order."""

from __future__ import annotations

import numpy as np
import pytest

from embexp.arm_choice import against, best_on, cheapest, verdict
from embexp.significance import Delta, Scores, compare

IDS = [f"q{place}" for place in range(40)]
DOCUMENT_OF = {query: f"d{place // 2}" for place, query in enumerate(IDS)}


def scores(*values):
    """40 values: the given ones over and over."""
    return Scores(IDS, values=np.resize(np.array(values, dtype=float), 40))


def delta(low, high, *, p_value=0.5, documents=50):
    middle = (low + high) / 2
    return Delta(middle, None, low, high, p_value, 0, 0, 0, queries=100, documents=documents)


def cost(query_ms, index_mib, training_s):
    return {"query_ms": query_ms, "index_mib": index_mib, "training_s": training_s, "index_s": 0.0}


def test_each_arm_is_paired_with_the_first_as_if_it_were_alone():
    base, tuned, other = ({"recall@1": scores(*values)} for values in ((0, 1), (1, 1, 0, 1), (0, 0)))
    found = against(base, {"tuned": tuned, "other": other}, document_of=DOCUMENT_OF)
    assert found["tuned"]["recall@1"].absolute == pytest.approx(0.25)  # one of four is won
    assert found["tuned"]["recall@1"].wins == 10
    assert found["other"]["recall@1"].absolute == pytest.approx(-0.5)
    assert found["tuned"] == compare(base, tuned, document_of=DOCUMENT_OF)


def test_a_metric_that_an_arm_lacks_is_left_out_of_its_comparison():
    base = {"recall@1": scores(0, 1), "similarity.cosine": scores(1)}
    found = against(base, {"bm25": {"recall@1": scores(1)}}, document_of=DOCUMENT_OF)
    assert list(found["bm25"]) == ["recall@1"]


def test_dev_chooses_the_best_and_among_equals_the_first():
    assert best_on({"bm25": 0.5, "base": 0.7, "tuned": 0.7}) == "base"


def test_an_arm_is_as_good_only_where_its_interval_ends_above_the_margin():
    found = verdict(
        {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4, "best": 0.9},
        {"a": delta(-0.019, 0.03), "b": delta(-0.021, 0.03), "c": delta(-0.3, -0.1, p_value=0.001),
         "d": delta(-0.015, -0.001, p_value=0.04)},
        dict.fromkeys(["a", "best"], cost(1, 1, 1)),
        margin=0.02,
    )  # fmt: skip
    assert found["best"] == "best"
    assert found["as_good"] == ["a", "best"]
    assert found["undecided"] == ["b"]
    assert found["worse"] == ["c", "d"]  # d is little worse, but surely so
    assert found["cheapest"] == "a"


def test_on_few_documents_no_arm_is_chosen():
    few = {"base": delta(-0.001, 0.001, documents=19)}
    found = verdict({"base": 0.4, "tuned": 0.5}, few, {"tuned": cost(1, 1, 1)}, margin=0.02)
    assert (found["best"], found["cheapest"], found["undecided"]) == ("tuned", None, ["base"])


@pytest.mark.parametrize(
    ("costs", "chosen"),
    [
        # 1.5 * 10 + 1 = 16 ms is as fast as 10
        ({"small": cost(16, 1, 9), "fast": cost(10, 5, 0)}, "small"),
        ({"small": cost(16.1, 1, 0), "fast": cost(10, 5, 9)}, "fast"),
        # 1.1 times the index is as small: training decides
        ({"trained": cost(10, 10, 60), "base": cost(11, 11, 0)}, "base"),
        ({"trained": cost(10, 10, 60), "base": cost(11, 11.1, 0)}, "trained"),
        ({"first": cost(10, 10, 5), "second": cost(9, 10, 5)}, "first"),
    ],
)
def test_the_cheapest_answers_fast_then_is_small_then_trains_shortly(costs, chosen):
    assert cheapest(costs) == chosen
