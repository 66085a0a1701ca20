"""A reranker changes the order of another arm's first passages and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from embexp.data.retrieval_set import RetrievalSet
from embexp.evaluation.ranking import Ranking
from embexp.reranking.reordering import Reranked

PASSAGES = ["a", "b", "c", "d", "e"]


class First:
    """An arm that finds these passages, whatever is asked; it says how many it was asked for."""

    encoder = None

    def __init__(self, *found: str) -> None:
        self._found, self.asked = found, []

    def search(self, retrieval_set, *, top):
        self.asked.append(top)
        places = np.full((len(self._found), len(PASSAGES)), -1)
        for row, found in enumerate(self._found):
            places[row, : len(found)] = [PASSAGES.index(passage) for passage in found]
        scores = np.where(places >= 0, 0.9, -np.inf).astype(np.float32)
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
