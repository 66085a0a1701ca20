"""The learning curve: nested parts of whole documents, and what a doubling of the questions may bring."""

from __future__ import annotations

import numpy as np
import pytest

from embexp.arms.learning_curve import extrapolated, nested
from embexp.data.retrieval_set import RetrievalSet
from embexp.evaluation.significance import Scores

IDS = [f"q{place}" for place in range(100)]
DOCUMENT_OF = {query: f"d{place // 2}" for place, query in enumerate(IDS)}


def right(*counts, of=DOCUMENT_OF):
    """Scores of 100 queries of which the first so many are right, for each count; `of` thins the documents."""
    return [Scores(IDS, values=(np.arange(100) < count).astype(float)) for count in counts], of


def curve(*counts, questions=(25, 50, 100), margin=0.02, of=DOCUMENT_OF):
    scores, document_of = right(*counts, of=of)
    return extrapolated(list(questions), scores, document_of=document_of, margin=margin)


def test_parts_are_nested_and_go_document_by_document():
    corpus = {f"p{place}": "a text" for place in range(20)}
    queries = {f"q{place}": f"what is {place}" for place in range(40)}
    qrels = {query: {f"p{place // 2}": 1} for place, query in enumerate(queries)}
    data = RetrievalSet(queries, corpus, qrels, {passage: passage for passage in corpus})
    quarter, half = (nested(data, share, seed=3) for share in (0.25, 0.5))
    assert (len(quarter), len(half)) == (10, 20)
    assert set(quarter) < set(half)
    assert len({data.document_of(query) for query in quarter}) == 5
    assert quarter == sorted(quarter, key=list(queries).index)
    assert nested(data, 0.25, seed=4) != quarter
    one = RetrievalSet(queries, corpus, qrels, dict.fromkeys(corpus, "one document"))
    assert len(nested(one, 0.25, seed=3)) == 10


def test_the_slope_is_the_gain_of_a_doubling():
    found = curve(40, 50, 60)
    assert found["per_doubling"]["absolute"] == pytest.approx(0.1)
    assert found["per_doubling"]["ci_low"] < 0.1 < found["per_doubling"]["ci_high"]


def test_a_power_law_goes_on_halving_the_error():
    # errors 0.4, 0.2, 0.1: the next is 0.05, where the slope would say +0.15
    found = curve(60, 80, 90)
    assert found["power_law"] == pytest.approx(0.05)
    assert found["low"] == pytest.approx(0.05 - (0.15 - found["per_doubling"]["ci_low"]))
    assert found["high"] == pytest.approx(0.1)  # no score is above 1


def test_steady_gains_say_that_more_would_help():
    assert curve(20, 40, 60)["would_help"] == "yes"


def test_scores_that_stand_still_say_that_more_would_hardly_help():
    assert curve(60, 60, 60)["would_help"] == "hardly"


def test_a_gain_within_the_noise_can_not_be_told():
    assert curve(50, 48, 52)["would_help"] == "unknown"


def test_on_few_documents_it_can_not_be_told():
    few = {query: f"d{place // 10}" for place, query in enumerate(IDS)}
    assert curve(20, 40, 60, of=few)["would_help"] == "unknown"


def test_a_perfect_score_has_no_power_law_and_nothing_to_gain():
    found = curve(80, 90, 100)
    assert found["power_law"] is None
    assert found["high"] == 0
    assert found["would_help"] == "hardly"


def test_questions_that_are_no_doubling_count_by_their_logarithm():
    # log2 of 16, 64, 256 is 4, 6, 8: 0.2 in two doublings
    assert curve(20, 40, 60, questions=(16, 64, 256))["per_doubling"]["absolute"] == pytest.approx(0.1)
