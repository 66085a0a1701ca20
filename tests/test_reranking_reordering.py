"""A reranker changes the order of another arm's first passages and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from embexp.data.retrieval_set import RetrievalSet
from embexp.evaluation.ranking import Ranking
from embexp.reranking.reordering import WEIGHTS, Reranked, blended, weighed

PASSAGES = ["a", "b", "c", "d", "e"]


class First:
    """An arm that finds these passages, whatever is asked; it says how many it was asked for."""

    encoder = None

    def __init__(self, *found: str, scores: tuple[float, ...] = (0.9,) * 5) -> None:
        self._found, self._scores, self.asked = found, scores, []

    def search(self, retrieval_set, *, top):
        self.asked.append(top)
        places = np.full((len(self._found), len(PASSAGES)), -1)
        for row, found in enumerate(self._found):
            places[row, : len(found)] = [PASSAGES.index(passage) for passage in found]
        scores = np.where(places >= 0, self._scores, -np.inf).astype(np.float32)
        return Ranking(list(retrieval_set.queries), PASSAGES, places, scores, scores[:, 0])


def set_of(queries, qrels):
    return RetrievalSet(queries, {passage: f"text {passage}" for passage in PASSAGES}, qrels, {})


def scorer(**scores):
    """By query's text and passage's last letter, such as one_a."""

    def score(queries, passages):
        return np.array(
            [scores[f"{query}_{passage[-1]}"] for query, passage in zip(queries, passages, strict=True)], np.float32
        )

    return score


def test_the_first_passages_stand_in_the_scorers_order_and_the_rest_as_before():
    data = set_of({"q1": "one", "q2": "two"}, {"q1": {"c": 1}, "q2": {"e": 1}})
    first = First("abcde", "edcba")
    judge = scorer(one_a=0.25, one_b=0.5, one_c=0.75, two_e=0.125, two_d=0.0, two_c=1.0)  # of others it knows nothing
    found = Reranked(first, judge, depth=3).search(data, top=5)
    assert found["q1"] == [("c", 0.75), ("b", 0.5), ("a", 0.25), ("d", -4.0), ("e", -5.0)]
    assert found["q2"] == [("c", 1.0), ("e", 0.125), ("d", 0.0), ("b", -4.0), ("a", -5.0)]
    assert found.lowest.tolist() == [0.75, 0.125]
    assert first.asked == [5]


def test_what_is_asked_for_is_less_than_what_is_scored():
    data = set_of({"q1": "one"}, {"q1": {"c": 1}})
    first = First("abc")
    found = Reranked(first, scorer(one_a=0.1, one_b=0.2, one_c=0.3), depth=4).search(data, top=1)
    assert [passage for passage, _ in found["q1"]] == ["c"]
    assert first.asked == [4]


def test_among_equal_scores_the_passage_that_answers_comes_last_then_the_lower_id_first():
    data = set_of({"q1": "one"}, {"q1": {"a": 1}})
    found = Reranked(First("abdc"), scorer(one_a=0.5, one_b=0.5, one_c=0.5, one_d=0.5), depth=5).search(data, top=5)
    assert [passage for passage, _ in found["q1"]] == ["b", "c", "d", "a"]


def test_a_query_for_which_nothing_was_found_stays_without_and_its_answer_is_below_all():
    data = set_of({"q1": "one", "q2": "two"}, {"q1": {"e": 1}, "q2": {"b": 1}})
    found = Reranked(First("", "b"), scorer(two_b=0.5), depth=2).search(data, top=3)
    assert (found["q1"], found["q2"]) == ([], [("b", 0.5)])
    assert found.lowest.tolist() == [-np.inf, 0.5]


def test_with_a_scorer_that_agrees_nothing_changes():
    data = set_of({"q1": "one"}, {"q1": {"c": 1}})
    agrees = scorer(one_d=0.9, one_b=0.8, one_e=0.7, one_a=0.6, one_c=0.5)
    found = Reranked(First("dbeac"), agrees, depth=50).search(data, top=3)
    assert [passage for passage, _ in found["q1"]] == ["d", "b", "e"]
    assert [score for _, score in found["q1"]] == pytest.approx([0.9, 0.8, 0.7])


def test_a_weight_mixes_where_both_scores_lie_between_the_lowest_and_the_highest_of_the_query():
    rows = np.array([0, 0, 0, 1, 1])
    search = np.array([0.8, 0.7, 0.6, 0.5, 0.5], dtype=np.float32)  # shares 1, 1/2, 0; equal ones have none
    judge = np.array([0.1, 0.9, 0.1, 0.25, 0.75], dtype=np.float32)  # shares 0, 1, 0; 0, 1
    assert blended(rows, search, judge, weight=0.25) == pytest.approx([0.75, 0.625, 0, 0, 0.25], abs=1e-6)
    assert blended(rows, search, judge, weight=0) == pytest.approx([1, 0.5, 0, 0, 0], abs=1e-6)
    assert blended(rows, search, judge, weight=1) is judge


def test_a_weighed_order_is_of_both_and_the_rest_stays_below():
    data = set_of({"q1": "one"}, {"q1": {"c": 1}})
    first = First("abcd", scores=(0.8, 0.7, 0.6, 0.5, 0.4))
    judge = scorer(one_a=0.0, one_b=0.5, one_c=1.0)
    found = Reranked(first, judge, depth=3, weight=0.75).search(data, top=4)
    assert [passage for passage, _ in found["q1"]] == ["c", "b", "a", "d"]
    assert [score for _, score in found["q1"]] == pytest.approx([0.75, 0.5, 0.25, -4], abs=1e-6)
    kept = Reranked(first, judge, depth=3, weight=0).search(data, top=4)
    assert [passage for passage, _ in kept["q1"]] == ["a", "b", "c", "d"]


def test_other_weights_ask_neither_the_search_nor_the_scorer_again():
    data = set_of({"q1": "one"}, {"q1": {"c": 1}})
    first, calls = First("abc", scores=(0.8, 0.7, 0.6, 0.5, 0.4)), []

    def judge(queries, passages):
        calls.append(len(passages))
        return scorer(one_a=0.0, one_b=0.5, one_c=1.0)(queries, passages)

    arm = Reranked(first, judge, depth=3)
    orders = {weight: [p for p, _ in arm.weighing(weight).search(data, top=3)["q1"]] for weight in (0.0, 0.25, 1.0)}
    assert orders == {0.0: ["a", "b", "c"], 0.25: ["a", "b", "c"], 1.0: ["c", "b", "a"]}
    assert (first.asked, calls) == ([3], [3])


@pytest.mark.parametrize(
    ("by_weight", "chosen"),
    [
        ({0.4: {"recall@1": 0.5}}, 0.4),
        ({0.3: {"recall@1": 0.5}, 0.7: {"recall@1": 0.5}}, 0.3),  # equal: the smaller one
        ({0.3: {"recall@1": 0.5}, 0.7: {"recall@1": 0.5, "ndcg@1": 0.6}}, 0.7),
        ({0.2: {"ndcg@1": 0.9}, 0.6: {"recall@1": 0.1}}, 0.6),  # the metric itself comes first
        ({}, 0.0),  # nothing better than the search
    ],
)
def test_dev_chooses_the_weight_by_the_metric_then_by_ndcg_then_the_smallest(by_weight, chosen):
    arm = Reranked(First("abc"), scorer(), depth=3)

    def measured(weighing):
        return {"recall@1": 0.0, "ndcg@1": 0.0} | by_weight.get(weighing._weight, {})

    weight, tried = weighed(arm, measured, metric="recall@1")
    assert weight == chosen
    assert list(tried) == [f"{each:g}" for each in WEIGHTS]
    assert tried[f"{chosen:g}"] == max(tried.values())
