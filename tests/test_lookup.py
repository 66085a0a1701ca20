"""One question against a corpus: the order, the places of known answers, and which questions the data know."""

from __future__ import annotations

import numpy as np
import pytest

from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.evaluation.search import Dense
from embexp.search.lookup import Finder, Known, known_questions
from tests.test_evaluation_search import Planted

CORPUS = {"east": "0", "north": "90", "west": "180", "also north": "90"}


def found(question, *, top=4, answers=()):
    return Finder(Planted(), CORPUS).find(question, top=top, answers=answers)


def test_the_nearest_come_first_with_their_cosines():
    hits = found("10", top=2).hits
    assert [(hit.place, hit.passage, hit.text) for hit in hits] == [(1, "east", "0"), (2, "also north", "90")]
    assert hits[0].score == pytest.approx(np.cos(np.radians(10)))


def test_a_known_answer_is_marked_and_comes_last_among_equals():
    hits = found("90", answers=["also north"]).hits
    assert [(hit.passage, hit.known) for hit in hits][:2] == [("north", False), ("also north", True)]


def test_the_place_of_a_known_answer_is_given_even_where_it_is_not_shown():
    assert found("170", top=1, answers=["east"]).places == {"east": 4}
    assert found("90", top=1, answers=["also north"]).places == {"also north": 2}
    assert found("90", top=1, answers=["north", "also north"]).places == {"also north": 1, "north": 2}


def test_places_are_those_of_the_list():
    hits = found("80", answers=["north", "east"]).hits
    assert {hit.passage: hit.place for hit in hits if hit.known} == found("80", answers=["north", "east"]).places


def test_an_answer_that_the_corpus_lacks_has_no_place():
    assert found("0", answers=["south"]).places == {}


def test_more_passages_than_there_are_can_be_asked_for():
    assert len(found("0", top=9).hits) == 4


def test_the_order_is_that_of_a_run():
    data = RetrievalSet({"q": "90"}, CORPUS, {"q": {"also north": 1}}, {})
    run = Dense(Planted()).search(data, top=4)["q"]
    assert [hit.passage for hit in found("90", answers=["also north"]).hits] == [passage for passage, _ in run]


def test_a_scorer_puts_the_first_passages_in_another_order_and_places_are_those_of_the_list():
    def southern(questions, texts):
        assert (questions, len(texts)) == (["80"] * 2, 2)
        return np.array([0.25 if text == "90" else 0.5 for text in texts], np.float32)

    finder = Finder(
        Planted(), {"east": "0", "north": "90", "west": "180", "north east": "60"}, scorer=southern, depth=2
    )
    found = finder.find("80", top=3, answers=["north", "west"])
    assert [(hit.passage, hit.known) for hit in found.hits] == [("north east", False), ("north", True), ("east", False)]
    assert [hit.score for hit in found.hits][:2] == [0.5, 0.25]
    assert found.places == {"north": 2, "west": 4}


def test_a_weighed_scorer_orders_as_a_run_does():
    def southern(questions, texts):
        return np.array([0.25 if text == "90" else 0.5 for text in texts], np.float32)

    corpus = {"east": "0", "north": "90", "west": "180", "north east": "60"}
    # at 80 degrees north is nearer than north east: shares 1 and 0 of the search, 0 and 1 of the scorer
    for weight, passages, scores in (
        (0.25, ["north", "north east"], [0.75, 0.25]),
        (0.75, ["north east", "north"], [0.75, 0.25]),
    ):
        found = Finder(Planted(), corpus, scorer=southern, depth=2, weight=weight).find("80", top=2)
        assert [hit.passage for hit in found.hits] == passages
        assert [hit.score for hit in found.hits] == pytest.approx(scores, abs=1e-5)


def test_questions_are_known_by_their_words_and_test_comes_before_train():
    def side(prefix, *texts):
        queries = {f"{prefix}{place}": text for place, text in enumerate(texts)}
        return RetrievalSet(queries, CORPUS, {query: {"east": 1, "west": 0} for query in queries}, {})

    splits = Splits(side("a", "Where is it?", "Only here"), side("b"), side("c", "where  IS it"), {"real": ("c0",)})
    assert known_questions(splits) == {
        "where is it": Known("test", "c0", "real", ("east",)),
        "only here": Known("train", "a1", None, ("east",)),
    }
