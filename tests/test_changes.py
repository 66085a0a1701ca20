"""Which queries changed most, and what is kept of them."""

from __future__ import annotations

import pandas as pd

from embexp.data.retrieval_set import RetrievalSet
from embexp.results import changes


def frame(**columns):
    return pd.DataFrame({"query_id": ["q1", "q2", "q3", "q4"], "slice": "unseen", **columns})


FOUR = frame(**{
    "base.recall@10": [1.0, 0.0, 1.0, 1.0],
    "tuned.recall@10": [0.0, 1.0, 1.0, 1.0],
    "base.mrr@10": [1.0, 0.0, 0.5, 0.25],
    "tuned.mrr@10": [0.0, 1.0, 0.5, 1.0],
    "base.mrr@100": [1.0, 0.02, 0.5, 0.25],
    "tuned.mrr@100": [0.05, 1.0, 0.5, 1.0],
})  # fmt: skip


def test_the_primary_metric_decides_and_among_equals_the_rank_of_the_first_right_passage():
    assert changes.most_changed(FOUR, metric="recall@10") == (["q2", "q4"], ["q1"])  # q3 is as it was


def test_paraphrases_are_no_examples_since_the_verdict_leaves_them_out():
    mixed = FOUR.assign(slice=["unseen", "paraphrase", "unseen", None])
    assert changes.most_changed(mixed, metric="recall@10") == (["q4"], ["q1"])


def test_a_metric_without_a_value_per_query_leaves_the_rank():
    assert changes.most_changed(FOUR, metric="similarity.spearman_cosine") == (["q2", "q4"], ["q1"])


def test_without_a_tuned_model_nothing_has_changed():
    base_alone = FOUR[["query_id", "slice", "base.recall@10", "base.mrr@100"]]
    assert changes.most_changed(base_alone, metric="recall@10") == ([], [])


def test_no_more_than_eight_of_a_kind_the_most_changed_first():
    gains = [place / 20 for place in range(12)]
    scores = {"base.mrr@10": [0.0] * 12, "tuned.mrr@10": gains}
    many = pd.DataFrame({"query_id": [f"q{n}" for n in range(12)], "slice": "unseen", **scores})
    improved, harmed = changes.most_changed(many, metric="mrr@10")
    assert improved == [f"q{place}" for place in range(11, 3, -1)]
    assert harmed == []


def test_the_most_harmed_comes_first():
    two = pd.DataFrame({"query_id": ["a", "b"], "slice": "seen", "base.mrr@10": [1, 1], "tuned.mrr@10": [0.5, 0.1]})
    assert changes.most_changed(two, metric="mrr@10") == ([], ["b", "a"])


def test_the_first_three_passages_are_kept_and_the_right_one_where_it_stands_below():
    passages = {f"p{n}": f"text {n}" for n in range(6)} | {"p5": "x" * 700}
    data = RetrievalSet({"q": "which?"}, passages, {"q": {"p4": 1, "p5": 1}}, dict.fromkeys(passages, "d"))
    base = [(f"p{n}", 1.0 - n / 10) for n in range(4)]
    tuned = [(f"p{n}", 1.0 - n / 10) for n in range(6)]
    scores = pd.DataFrame({"query_id": ["q"], "slice": [None], "base.mrr@100": [0.0], "tuned.mrr@100": [0.2]})
    kept = changes.examples({"base": {"q": base}, "tuned": {"q": tuned}}, scores, data, metric="recall@10")
    first = [("p0", 1, False), ("p1", 2, False), ("p2", 3, False)]
    assert kept["rankings"] == {"q": {"base": first, "tuned": [*first, ("p4", 5, True)]}}
    assert (kept["improved"], kept["harmed"], kept["depth"]) == (["q"], [], 4)
    assert kept["texts"] == {"queries": {"q": "which?"}, "passages": {f"p{n}": f"text {n}" for n in (0, 1, 2, 4)}}


def test_a_long_text_is_cut():
    assert changes._cut("a" * 600) == "a" * 600
    assert changes._cut("a" * 601) == "a" * 599 + "…"
