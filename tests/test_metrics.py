"""Metrics by hand, then against trec_eval's own code and sentence-transformers'."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings, strategies as st
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from embexp.data.retrieval_set import RetrievalSet
from embexp.evaluation.evaluators import graded
from embexp.evaluation.metrics import MEASURES, accuracy, average_precision, mrr, ndcg, precision, recall
from embexp.evaluation.search import ranked
from tests.hits import ranking_of

RANKED = ["p1", "p2", "p3", "p4", "p5"]


def scored(measure, ranked, grades, k, corpus=RANKED):
    """One query's score."""
    found = graded(ranking_of({"q": ranked}, corpus), {"q": grades}, ["q"], ranks=max(k, 5))
    return measure(found, k)[0]


def test_relevant_at_rank_two_gives_mrr_one_half():
    assert scored(mrr, RANKED, {"p2": 1}, 10) == 1 / 2


def test_relevant_just_below_the_cut_scores_zero_everywhere():
    found = {name: scored(measure, RANKED, {"p3": 1}, 2) for name, measure in MEASURES.items()}
    assert found == dict.fromkeys(MEASURES, 0.0)


def test_recall_divides_by_all_relevant_and_precision_by_k():
    grades = {"p1": 1, "p4": 1, "elsewhere": 1}
    assert scored(recall, RANKED, grades, 4) == 2 / 3
    assert scored(precision, RANKED, grades, 4) == 2 / 4


def test_precision_divides_by_k_also_when_fewer_are_ranked():
    assert scored(precision, ["p1"], {"p1": 1}, 10) == 1 / 10


def test_accuracy_is_one_however_many_are_found():
    assert [scored(accuracy, RANKED, {"p2": 1, "p3": 1}, k) for k in (1, 2, 3)] == [0.0, 1.0, 1.0]


def test_map_averages_precision_at_each_hit_over_all_relevant():
    # hits at ranks 1 and 3 of three relevant: (1/1 + 2/3 + 0) / 3
    assert scored(average_precision, RANKED, {"p1": 1, "p3": 1, "elsewhere": 1}, 5) == pytest.approx(5 / 9)


def test_ndcg_uses_the_grade_as_gain():
    # found: 1 at rank 1, 3 at rank 2; best: 3 at rank 1, 1 at rank 2
    expected = (1 + 3 / log2(3)) / (3 + 1 / log2(3))
    assert scored(ndcg, RANKED, {"p1": 1, "p2": 3}, 5) == pytest.approx(expected)


def test_ndcg_is_cut_in_the_best_ranking_too():
    assert scored(ndcg, RANKED, {"p1": 1, "p2": 1, "p3": 1}, 2) == 1.0


def test_a_passage_judged_not_relevant_is_no_hit():
    assert scored(mrr, RANKED, {"p1": 0, "p2": 1}, 5) == 1 / 2
    assert scored(ndcg, RANKED, {"p1": -1, "p2": 1}, 5) == pytest.approx(1 / log2(3))


def test_an_empty_ranking_scores_zero():
    assert {scored(measure, [], {"p1": 1}, 3) for measure in MEASURES.values()} == {0.0}


def test_each_query_has_its_own_row_whatever_the_order_of_the_ranking():
    ranking = ranking_of({"q2": ["p1", "p2"], "q1": ["p3"]}, RANKED)
    found = graded(ranking, {"q1": {"p3": 2}, "q2": {"p2": 1, "gone": 3}, "q3": {"p1": 1}}, ["q1", "q2", "q3"], ranks=3)
    assert found.found.tolist() == [[2, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert found.best.tolist() == [[2, 0, 0], [3, 1, 0], [1, 0, 0]]
    assert found.relevant.tolist() == [1, 2, 1]


CORPUS = [f"p{place}" for place in range(8)]
# p8 and p9 are judged but not in the corpus
GRADES = st.dictionaries(st.sampled_from([*CORPUS, "p8", "p9"]), st.integers(0, 3), min_size=1).filter(
    lambda grades: any(grades.values())
)
TIED_SCORES = st.lists(st.integers(0, 3), min_size=len(CORPUS), max_size=len(CORPUS))


def tie_broken(scores: list[int], grades: dict[str, int], top: int) -> list[str]:
    """The ranking that embexp makes of tied scores; oracles get it as such, since each breaks ties its own way."""
    data = RetrievalSet({"q": "a question"}, dict.fromkeys(CORPUS, "a text"), {"q": grades}, {})
    hits = ranked(data, iter([np.array([scores], dtype=np.float32)]), top=top)["q"]
    return [passage for passage, _ in hits]


@settings(max_examples=200, deadline=None)
@given(TIED_SCORES, GRADES, st.sampled_from([1, 3, 5, 10]), st.integers(1, 8))
def test_every_metric_equals_trec_eval(scores, grades, k, top):
    ranking = tie_broken(scores, grades, top)
    asked = {"recall": "recall", "precision": "P", "accuracy": "success", "map": "map_cut", "ndcg": "ndcg_cut"}
    measures = {f"{name}.{k}" for name in asked.values()}
    run = {"q": {passage: 100.0 - rank for rank, passage in enumerate(ranking)}}
    oracle = pytrec_eval.RelevanceEvaluator({"q": grades}, measures).evaluate(run)["q"]
    found = {name: scored(MEASURES[name], ranking, grades, k, CORPUS) for name in asked}
    assert found == pytest.approx({name: oracle[f"{theirs}_{k}"] for name, theirs in asked.items()})
    cut = {"q": dict(list(run["q"].items())[:k])}  # trec_eval's reciprocal rank has no cut of its own
    reciprocal = pytrec_eval.RelevanceEvaluator({"q": grades}, {"recip_rank"}).evaluate(cut)["q"]["recip_rank"]
    assert scored(mrr, ranking, grades, k, CORPUS) == pytest.approx(reciprocal)


@settings(max_examples=200, deadline=None)
@given(TIED_SCORES, GRADES, st.sampled_from([1, 3, 5, 10]))
def test_recall_precision_accuracy_and_mrr_equal_sentence_transformers(scores, grades, k):
    ranking = tie_broken(scores, grades, len(CORPUS))
    relevant = {passage for passage, grade in grades.items() if grade > 0}
    depths = {f"{name}_at_k": [k] for name in ("mrr", "ndcg", "accuracy", "precision_recall", "map")}
    oracle = InformationRetrievalEvaluator({"q": ""}, dict.fromkeys(CORPUS, ""), {"q": relevant}, **depths)
    hits = [{"corpus_id": passage, "score": 100.0 - rank} for rank, passage in enumerate(ranking)]
    theirs = oracle.compute_metrics([hits])
    for name in ("recall", "precision", "accuracy", "mrr"):
        assert scored(MEASURES[name], ranking, grades, k, CORPUS) == pytest.approx(theirs[f"{name}@k"][k]), name
