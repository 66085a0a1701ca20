from functools import partial

import numpy as np
import pytest

from embexp.data.retrieval_set import RetrievalSet
from embexp.data.splits import unified
from embexp.errors import UserError
from embexp.rows.negatives import draw_random
from embexp.rows.shapes import SHAPES, to_rows

DATA = RetrievalSet(
    queries={"q1": "one?", "q2": "two?"},
    corpus={"a": "A", "b": "B", "c": "C", "d": "D"},
    qrels={"q1": {"a": 2, "b": 1, "c": 0}, "q2": {"d": 1, "a": 0}},
    documents={},
)


def by_place(queries, passages):
    """A teacher that scores 10 for one? and 20 for two?, less the passage's place in the alphabet."""
    return np.array([{"one?": 10, "two?": 20}[q] - ord(p) + ord("A") for q, p in zip(queries, passages, strict=True)])


def rows_of(shape, data=DATA, per_query=1):
    drawn = partial(draw_random, per_query=per_query)
    return to_rows(data, shape, negatives=drawn, seed=0, teacher=by_place)


def in_order(rows):
    return list(rows.columns), list(zip(*rows.columns.values(), strict=True))


def test_pair_has_a_row_per_relevant_passage():
    rows = rows_of("pair")
    assert in_order(rows) == (["anchor", "positive"], [("one?", "A"), ("one?", "B"), ("two?", "D")])
    assert rows.query_ids == ["q1", "q1", "q2"]
    assert rows.passage_ids == [("a",), ("b",), ("d",)]
    assert len(rows) == 3


def test_pair_draws_no_negatives():
    def never(*_args, **_options):
        raise AssertionError("drawn")

    assert len(to_rows(DATA, "pair", negatives=never, seed=0)) == 3


def test_triplet_sets_the_judged_negative_beside_each_positive():
    rows = rows_of("triplet")
    assert in_order(rows) == (
        ["anchor", "positive", "negative"],
        [("one?", "A", "C"), ("one?", "B", "C"), ("two?", "D", "A")],
    )
    assert rows.passage_ids == [("a", "c"), ("b", "c"), ("d", "a")]


def test_triplet_has_a_row_per_negative_and_n_tuple_a_column():
    rows = rows_of("triplet", per_query=2)
    assert in_order(rows)[1][:4] == [("one?", "A", "C"), ("one?", "A", "D"), ("one?", "B", "C"), ("one?", "B", "D")]
    assert rows.passage_ids[:4] == [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]
    assert len(rows) == 6
    rows = rows_of("n_tuple", per_query=2)
    columns, texts = in_order(rows)
    assert columns == ["anchor", "positive", "negative_1", "negative_2"]
    assert texts[:2] == [("one?", "A", "C", "D"), ("one?", "B", "C", "D")]
    assert rows.passage_ids[:2] == [("a", "c", "d"), ("b", "c", "d")]
    assert len(rows) == 3


def test_labelled_pair_is_one_for_relevant_and_zero_for_negatives():
    rows = rows_of("labelled_pair")
    assert in_order(rows) == (
        ["text_a", "text_b", "label"],
        [("one?", "A", 1), ("one?", "B", 1), ("two?", "D", 1), ("one?", "C", 0), ("two?", "A", 0)],
    )
    assert rows.query_ids == ["q1", "q1", "q2", "q1", "q2"]
    assert rows.passage_ids == [("a",), ("b",), ("d",), ("c",), ("a",)]


def test_scored_pair_divides_grades_by_the_highest():
    columns, rows = in_order(rows_of("scored_pair"))
    assert columns == ["text_a", "text_b", "score"]
    assert rows == [("one?", "A", 1.0), ("one?", "B", 0.5), ("two?", "D", 0.5), ("one?", "C", 0.0), ("two?", "A", 0.0)]


def test_a_grade_below_zero_scores_zero():
    data = RetrievalSet({"q": "?"}, {"a": "A", "b": "B"}, {"q": {"a": 1, "b": -2}}, {})
    assert in_order(rows_of("scored_pair", data))[1] == [("?", "A", 1.0), ("?", "B", 0.0)]


@pytest.mark.parametrize("shape", SHAPES)
def test_text_columns_are_the_query_first_and_no_labels(shape):
    rows = rows_of(shape)
    query, *passages = rows.text_columns
    assert set(rows.columns[query]) == {"one?", "two?"}
    assert all(set(rows.columns[column]) <= {"A", "B", "C", "D"} for column in passages)
    assert len(passages) == (2 if shape in ("triplet", "n_tuple", "list") else 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_copies_of_a_passage_make_one_row_and_are_never_a_negative(shape):
    copied = unified(
        RetrievalSet(
            {"q1": "one?", "q2": "two?"},
            {"a": "A", "copy": "A", "b": "B"},
            {"q1": {"copy": 1}, "q2": {"b": 1}},
            {},
        )
    )
    rows = rows_of(shape, copied)
    positives = [row for row in in_order(rows)[1] if row[:2] == ("one?", "A")]
    assert len(positives) == 1
    assert positives[0][2:] in [(), ("B",), (1,), (1.0,), ("B", [10, 9])]


def test_relevant_passages_outside_the_corpus_make_no_row():
    assert rows_of("pair", DATA.with_passages(["a", "c"])).passage_ids == [("a",)]


def test_an_unknown_shape_lists_those_that_exist():
    with pytest.raises(UserError, match=f"'pairs' is not one that .* there are {', '.join(SHAPES)}"):
        rows_of("pairs")


def test_data_that_makes_no_row_is_refused():
    with pytest.raises(UserError, match="no rows of shape pair could be made from 2 queries"):
        rows_of("pair", DATA.with_passages(["c"]))


def test_a_list_is_an_n_tuple_with_the_teachers_score_of_each_passage_last():
    columns, rows = in_order(rows_of("list", per_query=2))
    assert columns == ["anchor", "positive", "negative_1", "negative_2", "scores"]
    assert rows[0] == ("one?", "A", "C", "D", [10, 8, 7])
    assert rows[1] == ("one?", "B", "C", "D", [9, 8, 7])
    assert rows_of("list", per_query=2).passage_ids[0] == ("a", "c", "d")


def test_a_list_without_a_teacher_is_refused():
    with pytest.raises(UserError, match="shape list needs a teacher"):
        to_rows(DATA, "list", negatives=partial(draw_random, per_query=1), seed=0)


def test_judged_pairs_need_no_drawn_negatives_and_data_with_answers_only_does():
    rows = to_rows(DATA, "labelled_pair", negatives=None, seed=0)
    assert rows.columns["label"] == [1, 1, 1, 0, 0]
    assert rows.drawn is None
    answers = RetrievalSet({"q": "?"}, {"a": "A", "b": "B"}, {"q": {"a": 1}}, {})
    with pytest.raises(UserError, match=r"all rows of shape labelled_pair have the same label.*negatives=random"):
        to_rows(answers, "labelled_pair", negatives=None, seed=0)


def test_rows_keep_the_negatives_that_were_drawn_for_them():
    assert rows_of("triplet").drawn == {"q1": ["c"], "q2": ["a"]}
    assert rows_of("pair").drawn is None
