"""Deltas by hand, and what the bootstrap promises: documents are drawn, and no difference is rarely called one."""

from __future__ import annotations

import numpy as np
import pytest

from embexp.evaluation import significance
from embexp.evaluation.significance import Delta, Scores, compare, interval_of_mean


def mean_of(values, names=None):
    return Scores(names or [f"q{place}" for place in range(len(values))], values=np.asarray(values, dtype=float))


def statistic_of(values):
    values = np.asarray(values, dtype=float)
    names = [f"q{place}" for place in range(len(values))]
    return Scores(names, statistic=lambda items: float(values[items].mean()))


def delta_of(base, tuned, documents=None, seed=0):
    """The delta; each query has its own document unless `documents` says otherwise."""
    names = documents or [f"d{place}" for place in range(len(base.query_ids))]
    of = dict(zip(base.query_ids, names, strict=True))
    return compare({"m": base}, {"m": tuned}, document_of=of, seed=seed)["m"]


def width(delta):
    return delta.ci_high - delta.ci_low


def test_wins_ties_and_losses_are_counted_by_query():
    delta = delta_of(mean_of([0, 1, 1, 0.5, 0]), mean_of([1, 1, 0, 0.5, 0.5]))
    assert (delta.wins, delta.ties, delta.losses, delta.queries) == (2, 2, 1, 5)
    assert delta.absolute == pytest.approx(0.1)  # (1 + 0 - 1 + 0 + 0.5) / 5
    assert delta.relative == pytest.approx(0.2)  # from 0.5 to 0.6


def test_relative_is_null_when_base_is_zero():
    assert delta_of(mean_of([0, 0]), mean_of([0, 1])).relative is None


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.2, "better"), (-0.2, -0.01, "worse"), (-0.1, 0.1, "no difference"), (0.0, 0.2, "no difference")],
)
def test_verdict_needs_an_interval_and_a_p_value_that_exclude_zero(low, high, verdict):
    assert Delta(0.1, None, low, high, 0.049, 1, 1, 1, 30, documents=20).verdict == verdict
    assert Delta(0.1, None, low, high, 0.05, 1, 1, 1, 30, documents=20).verdict == "no difference"
    assert Delta(0.1, None, low, high, 0.049, 1, 1, 1, 30, documents=19).verdict == "no difference"


def test_a_change_that_one_document_carries_is_no_verdict_though_no_draw_is_below_zero():
    # influence +0.848 once and -0.042 twenty times: 2 effective documents, so the widened interval ends at the
    # smallest draw, which is never below +0.01
    delta = delta_of(mean_of(np.zeros(21)), mean_of([0.01] * 20 + [0.9]))
    assert delta.ci_low == pytest.approx(0.01)
    assert delta.p_value > 0.1
    assert delta.verdict == "no difference"


def test_two_documents_give_the_distribution_worked_by_hand():
    # differences 1 and 0, two drawn: mean 1, 1/2, 1/2 or 0, a quarter each, so P(mean <= 0) = 1/4, a normal's -0.674;
    # for two documents that is -0.674 / sqrt(2) = -0.477 of a t with one degree of freedom: p = 1 - 2 atan(0.477) / pi
    delta = delta_of(mean_of([0, 0]), mean_of([1, 0]))
    assert (delta.ci_low, delta.ci_high) == (0, 1)
    assert delta.p_value == pytest.approx(0.717, abs=0.02)
    assert delta.verdict == "no difference"


def test_equal_models_have_p_value_one_and_an_interval_of_zero():
    delta = delta_of(mean_of([0.3, 0.7, 1]), mean_of([0.3, 0.7, 1]))
    assert (delta.ci_low, delta.ci_high, delta.p_value, delta.ties) == (0, 0, 1, 3)


def test_documents_are_drawn_not_queries():
    # four questions on each of 25 documents that all go the same way are 25 observations, not 100: twice as wide
    tuned = np.repeat([1, 0, 0, 1, -1] * 5, 4)
    each_alone = delta_of(mean_of(np.zeros(100)), mean_of(tuned))
    grouped = delta_of(mean_of(np.zeros(100)), mean_of(tuned), [f"d{place // 4}" for place in range(100)])
    assert width(grouped) / width(each_alone) == pytest.approx(2, rel=0.1)
    assert grouped.absolute == each_alone.absolute


def test_few_documents_get_the_interval_of_a_t_not_a_normal():
    # ten documents, +0.1 and -0.1 by turns: deviation 0.1 * sqrt(10 / 9), so a t interval is 2.262 * 0.1054 / sqrt(10)
    delta = delta_of(mean_of(np.zeros(10)), mean_of([0.1, -0.1] * 5))
    assert delta.ci_high == pytest.approx(0.0754, abs=0.0055)  # draws come in steps of 0.02; percentiles give 0.06
    assert delta.ci_low == pytest.approx(-delta.ci_high, abs=0.0055)


def test_documents_that_did_not_change_do_not_narrow_the_interval():
    # 4 of 100 documents changed: influence 0.96 four times and -0.04 else, so 2 * 3.84^2 / 3.40 = 8.7 effective ones
    few = np.array([1.0] * 4 + [0.0] * 96)
    delta = delta_of(mean_of(np.zeros(100)), mean_of(few))
    assert significance._effective_documents(few, np.arange(100)) == pytest.approx(8.68, abs=0.01)
    assert (delta.ci_low, delta.ci_high) == (0.0, pytest.approx(0.09, abs=0.011))  # plain percentiles: 0.01 to 0.08
    assert delta.p_value > 0.05


def test_a_p_value_below_five_percent_and_an_interval_without_zero_are_the_same():
    rng = np.random.default_rng(4)
    for _ in range(60):
        delta = delta_of(mean_of(np.zeros(30)), mean_of(rng.normal(0.35, 1, size=30)))
        assert (delta.p_value < 0.05) == (delta.ci_low > 0 or delta.ci_high < 0)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    rng = np.random.default_rng(1)
    base, tuned = mean_of(rng.random(40)), mean_of(rng.random(40))
    assert delta_of(base, tuned, seed=5) == delta_of(base, tuned, seed=5)
    assert delta_of(base, tuned, seed=5) != delta_of(base, tuned, seed=6)


def test_a_statistic_that_is_a_mean_gets_the_interval_of_the_mean():
    rng = np.random.default_rng(2)
    base, tuned = rng.random(60), rng.random(60) + 0.1
    documents = [f"d{place // 3}" for place in range(60)]
    mean = delta_of(mean_of(base), mean_of(tuned), documents)
    statistic = delta_of(statistic_of(base), statistic_of(tuned), documents)
    assert statistic.absolute == pytest.approx(mean.absolute)
    assert (statistic.ci_low, statistic.ci_high) == pytest.approx((mean.ci_low, mean.ci_high), abs=0.1 * width(mean))
    assert (statistic.wins, statistic.ties, statistic.losses) == (None, None, None)


@pytest.mark.parametrize("kind", [mean_of, statistic_of])
def test_a_slice_is_scored_on_its_queries_only(kind):
    part = kind([0, 1, 1, 0.5]).of_queries({"q1", "q3"})
    assert (part.query_ids, part.score) == (["q1", "q3"], 0.75)
    assert part.over(np.array([0, 0, 1])) == pytest.approx(2.5 / 3)  # a position may repeat, and counts in the slice


def test_metrics_over_different_items_are_compared_each_on_its_own():
    base = {"retrieval": mean_of([0, 0]), "pairs": mean_of([0, 0, 0], ["q0", "q0", "q1"])}
    tuned = {"retrieval": mean_of([1, 0]), "pairs": mean_of([1, 1, 0], ["q0", "q0", "q1"])}
    deltas = compare(base, tuned, document_of={"q0": "d0", "q1": "d1"}, seed=0)
    assert list(deltas) == ["retrieval", "pairs"]
    assert (deltas["pairs"].absolute, deltas["pairs"].queries) == (pytest.approx(2 / 3), 2)


def test_no_difference_is_called_one_in_about_five_percent_but_far_more_if_queries_were_drawn(monkeypatch):
    monkeypatch.setattr(significance, "DRAWS_OF_MEANS", 500)
    rng = np.random.default_rng(3)
    documents = [f"d{place // 5}" for place in range(200)]
    false = {"documents": 0, "queries": 0}
    for seed in range(200):  # the two models differ by chance alone, alike on the five questions of a document
        tuned = mean_of(np.repeat(rng.choice([-1, 0, 1], size=40), 5))
        base = mean_of(np.zeros(200))
        false["documents"] += delta_of(base, tuned, documents, seed=seed).verdict != "no difference"
        false["queries"] += delta_of(base, tuned, seed=seed).verdict != "no difference"
    assert 1 <= false["documents"] <= 24  # 5 % of 200 is 10
    assert false["queries"] > 50


def test_the_interval_of_a_mean_counts_documents_and_not_queries():
    # two documents of two equal queries: as a mean of 2 values 0 and 1, with t of 1 degree of freedom = 12.706
    low, high = interval_of_mean(np.array([0.0, 0.0, 1.0, 1.0]), np.array([0, 0, 1, 1]))
    assert (low, high) == pytest.approx((0.5 - 12.706 * 0.5, 0.5 + 12.706 * 0.5), abs=1e-3)


def test_the_interval_of_a_mean_with_a_query_a_document_is_the_t_interval():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    error = values.std(ddof=1) / 2
    assert interval_of_mean(values, np.arange(4)) == pytest.approx(
        (2.5 - 3.1824 * error, 2.5 + 3.1824 * error), abs=1e-3
    )


def test_the_interval_of_a_mean_over_one_document_is_infinite():
    assert interval_of_mean(np.array([0.0, 1.0]), np.array([0, 0])) == (-np.inf, np.inf)
