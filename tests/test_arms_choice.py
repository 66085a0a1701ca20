"""Which arm to run: paired against the best, within a margin, and cheapest in a stated order."""

from __future__ import annotations

import re

import numpy as np
import pytest

from embexp.arms.choice import against, best_on, cheapest, verdict
from embexp.arms.shown import arms_line, change, costs_line, costs_table
from embexp.data.retrieval_set import Splits
from embexp.evaluation.significance import Delta, Scores, compare
from tests.conftest import toy_set

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


ARM = {"dev": {"recall@1": 0.2, "recall@10": 0.4}, "test": {"recall@1": 0.25, "recall@10": 0.5}}
COST = {"query_ms": 1.25, "index_mib": 3.0, "index_s": 2.0, "training_s": 0.0}
CHANGE = {"absolute": -0.01, "ci_low": -0.015, "ci_high": 0.005, "queries": 400, "documents": 40}


def result_of(**verdict):
    """A result of two arms, base and tuned, the best on dev."""
    arms = {
        "base": ARM | {"cost": COST, "delta": None, "against_best": {"recall@10": CHANGE}},
        "tuned": ARM | {"cost": COST, "delta": {"recall@10": CHANGE}, "against_best": None},
    }
    chosen = {"metric": "recall@10", "best": "tuned", "margin": 0.02, "undecided": [], "cheapest": "base"}
    on = {"passages": 256, "of": 2000, "questions": 30}
    return {"arms": arms, "arms_verdict": chosen | {"measured_on": on} | verdict, "learning_curve": None}


def test_the_sentence_names_the_arm_to_run_with_what_it_may_lose():
    assert arms_line(result_of()) == (
        "**Arm to run: base**, the cheapest that is as good as the best on dev, tuned: recall@10 0.500 against 0.500 "
        "on test, -0.010, 95 % interval -0.015 to +0.005 (a loss below 0.02 is taken as none)."
    )


def test_the_sentence_says_of_what_arms_test_can_not_tell():
    assert arms_line(result_of(cheapest="tuned", undecided=["base"])) == (
        "**Arm to run: tuned**, the best on dev (recall@10 0.500 on test); no cheaper one is sure to be less than 0.02 "
        "worse. 400 queries can't tell of base: worse by up to 0.015, or not."
    )


def test_costs_of_a_sample_are_said_to_be_scaled():
    table = costs_table(result_of())
    assert table.lines[0] == ["base", "1.2", "3.0", "2.0", "0.0"]
    assert "for 2,000 passages" in costs_line(result_of())
    assert "timed on 256 passages and scaled" in costs_line(result_of())


@pytest.mark.parametrize(("documents", "said"), [(5, "+0.200 (+0.100 to +0.300)"), (4, "+0.200 (too few)")])
def test_the_interval_of_fewer_than_five_documents_is_not_shown(documents, said):
    found = {"absolute": 0.2, "ci_low": 0.1, "ci_high": 0.3, "documents": documents}
    assert change({"recall@10": found}, "recall@10") == said
    assert change(None, "recall@10") == "-"


def test_the_benchmark_shows_each_arm_and_fuses_as_its_peer_does(tmp_path):
    from benchmarks import arms as benchmark

    line = benchmark.lines(result_of())[1]
    assert line == ["tuned", "0.250", "0.400", "0.500", "-0.010 (-0.015 to +0.005)", "-", "1.2", "3.0", "2.0", "0.0"]
    data = toy_set()
    (tmp_path / "retrieval").mkdir()
    for arm, step in (("tuned", 1), ("bm25", 3)):  # two orders of the corpus
        ids = list(data.corpus)[::step]
        hits = [f"{query} Q0 {passage} {rank} 0 {arm}\n" for query in data.queries for rank, passage in enumerate(ids)]
        (tmp_path / "retrieval" / f"{arm}.test.trec").write_text("".join(hits))
    said = benchmark.fusing(Splits(data, data, data, {}), tmp_path, rounds=1)
    peer, own = re.search(r"mrr@10 (\S+), by embexp (\S+),", said).groups()
    assert 0 < float(peer) == float(own) < 1
