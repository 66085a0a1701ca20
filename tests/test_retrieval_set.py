from dataclasses import replace

import pytest

from embexp.data.retrieval_set import RetrievalSet, validated
from embexp.errors import UserError
from tests.conftest import toy_set


def problems(retrieval_set):
    with pytest.raises(UserError) as error:
        validated(retrieval_set)
    return error.value.problems


GRADED = RetrievalSet(
    queries={"q1": "one", "q2": "two"},
    corpus={"a": "A", "b": "B", "c": "C"},
    qrels={"q1": {"c": 2, "a": 1, "b": 0}, "q2": {"b": 1}},
    documents={"a": "doc2", "b": "doc2", "c": "doc1"},
)


def test_relevant_are_the_grades_above_zero_in_order_of_id():
    assert GRADED.relevant("q1") == ["a", "c"]
    assert GRADED.relevant("unknown") == []


def test_documents_of_a_query_are_those_of_its_relevant_passages_only():
    assert GRADED.documents_of("q1") == {"doc1", "doc2"}
    assert GRADED.documents_of("q2") == {"doc2"}


def test_the_bootstrap_unit_is_the_first_document_or_the_query_where_there_is_none():
    assert GRADED.document_of("q1") == "doc1"
    assert replace(GRADED, documents={}).document_of("q1") == "q1"


def test_with_queries_keeps_the_whole_corpus_and_the_asked_order():
    part = GRADED.with_queries(["q2", "q1"])
    assert list(part.queries) == ["q2", "q1"]
    assert list(GRADED.with_queries(["q2"]).qrels) == ["q2"]
    assert part.corpus == GRADED.corpus


def test_with_passages_keeps_qrels_outside_the_corpus_as_misses():
    part = GRADED.with_passages(["c", "b"])
    assert list(part.corpus) == ["b", "c"]  # the corpus's order
    assert part.relevant("q1") == ["a", "c"]


def test_a_sound_set_is_returned_unchanged(toy):
    assert validated(toy) is toy


def test_empty_sets_are_refused_with_both_counts():
    assert problems(RetrievalSet({}, {"p": "text"}, {}, {})) == (
        "the data set has 0 queries and 1 passages; both are needed",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": {**GRADED.queries, "q1": "  "}}, "1 queries with an empty text: q1. Remove them or give them"),
        ({"corpus": {**GRADED.corpus, "b": "\n"}}, "1 passages with an empty text: b."),
        ({"corpus": {**GRADED.corpus, "d e": "D"}}, "1 ids of passages that are empty or hold white space: 'd e'."),
        ({"qrels": {**GRADED.qrels, "q2": {"b": 1, "zz": 1}}}, "1 qrels name passages that are not in the corpus: zz."),
        ({"qrels": {**GRADED.qrels, "q3": {"b": 1}}}, "1 qrels name queries that do not exist: q3."),
        ({"qrels": {**GRADED.qrels, "q2": {"b": 0}}}, "1 queries have no relevant passage: q2."),
        ({"qrels": {"q1": {"a": 1}}}, "1 queries have no relevant passage: q2."),
    ],
)
def test_each_fault_is_named_with_its_ids(change, message):
    (problem,) = problems(replace(GRADED, **change))
    assert problem.startswith(message)


def test_an_empty_id_is_refused():
    faulty = replace(GRADED, queries={"": "one", "q2": "two"}, qrels={"": {"a": 1}, "q2": {"b": 1}})
    assert problems(faulty)[0].startswith("1 ids of queries that are empty or hold white space: ''.")


def test_all_faults_are_listed_together():
    faulty = replace(GRADED, queries={"q1": "", "q 2": "two"})
    assert len(problems(faulty)) == 4  # an empty text, white space, q2 unknown, 'q 2' unanswered


def test_of_many_ids_five_are_shown_and_the_rest_counted():
    faulty = replace(toy_set(), qrels={})
    assert "20 queries have no relevant passage: q0.0, q0.1, q1.0, q1.1, q2.0 and 15 more." in problems(faulty)[0]
