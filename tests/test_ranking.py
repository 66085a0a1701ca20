"""The first passages of each query are those of plain sorting, however their scores come by."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from embexp.data.retrieval_set import RetrievalSet
from embexp.evaluation import ranking
from embexp.evaluation.ranking import NEVER, First, Relevant
from tests.hits import ranking_of


def set_of(passages, queries, relevant):
    qrels = {query: dict.fromkeys(relevant.get(query, ()), 1) for query in queries}
    return RetrievalSet(dict.fromkeys(queries, "a question"), dict.fromkeys(passages, "a text"), qrels, {})


def first_of(data, blocks, *, top, without=None):
    """blocks: (row, place, scores)."""
    first = First(data, top=top, without=without)
    for row, place, scores in blocks:
        first.add(torch.tensor(scores, dtype=torch.float32), row=row, place=place)
    return first.ranking()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_first_are_those_of_plain_sorting_however_the_matrix_is_cut(data):
    size, rows = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    passages, queries = [f"p{place:02}" for place in rng.permutation(size)], [f"q{row}" for row in range(rows)]
    relevant = {query: set(rng.choice(passages, rng.integers(0, size + 1), replace=False)) for query in queries}
    left_out = {query: set(rng.choice(passages, rng.integers(0, size + 1), replace=False)) for query in queries[1:]}
    scores = (
        rng.choice([-1, -0.5, -0.0, 0.0, 0.25, 1], (rows, size))
        if data.draw(st.booleans())
        else rng.normal(size=(rows, size))
    )
    scores = scores.astype(np.float32)
    top = data.draw(st.integers(1, size + 2))
    down = [0, *sorted(data.draw(st.sets(st.integers(1, rows)))), rows]
    across = [0, *sorted(data.draw(st.sets(st.integers(1, size), max_size=3))), size]
    blocks = [
        (row, place, scores[row:row_end, place:place_end].copy())
        for place, place_end in itertools.pairwise(across)
        for row, row_end in itertools.pairwise(down)
        if place_end > place
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "GROUP", 2)
        patch.setattr(ranking, "CANDIDATES_AT_ONCE", data.draw(st.sampled_from([8, 10**6])))
        found = first_of(set_of(passages, queries, relevant), blocks, top=top, without=left_out)
    for row, query in enumerate(queries):
        order = sorted(
            range(size), key=lambda place: (-scores[row, place], passages[place] in relevant[query], passages[place])
        )
        kept = [place for place in order if passages[place] not in left_out.get(query, ())]
        assert found[query] == [(passages[place], scores[row, place]) for place in kept[:top]]
        lowest = min((scores[row, passages.index(passage)] for passage in relevant[query]), default=np.inf)
        assert found.lowest[row] == lowest


def test_a_passage_that_is_never_ranked_leaves_its_place_empty():
    data = set_of("abc", ["q1", "q2"], {"q1": {"b"}, "q2": {"a"}})
    found = first_of(data, [(0, 0, [[0.1, NEVER, 0.3], [NEVER, NEVER, NEVER]])], top=2)
    assert dict(found) == {"q1": [("c", pytest.approx(0.3)), ("a", pytest.approx(0.1))], "q2": []}
    assert found.places.tolist() == [[2, 0], [-1, -1]]
    assert found.lowest.tolist() == [np.inf, np.inf]


def test_a_matrix_of_equal_scores_is_ranked_by_id_with_the_relevant_last(monkeypatch):
    monkeypatch.setattr(ranking, "CANDIDATES_AT_ONCE", 100)
    names = [f"p{place:03}" for place in range(200)]
    data = set_of(names[::-1], ["q1", "q2", "q3"], {"q1": {"p000", "p002"}, "q2": set(names[:199])})
    found = first_of(data, [(0, 0, np.full((3, 150), 0.5)), (0, 150, np.full((3, 50), 0.5))], top=3)
    assert [[passage for passage, _ in hits] for hits in found.values()] == [
        ["p001", "p003", "p004"],
        ["p199", "p000", "p001"],
        ["p000", "p001", "p002"],
    ]


def test_a_ranking_reads_as_a_mapping_and_gives_its_places_in_any_order_of_queries():
    found = ranking_of({"q1": ["b", "a"], "q2": ["c"]}, "abc")
    assert (list(found), len(found)) == (["q1", "q2"], 2)
    assert found == {"q1": [("b", 1.0), ("a", 0.5)], "q2": [("c", 1.0)]}
    assert found.places_of(["q1", "q2"]) is found.places
    assert found.places_of(["q2", "gone", "q1"]).tolist() == [[2, -1], [-1, -1], [1, 0]]
    with pytest.raises(KeyError):
        found["gone"]


def test_grades_are_looked_up_by_row_and_place():
    relevant = Relevant({"q1": {"a": 2, "b": 0, "gone": 1}, "q3": {"c": 3}}, ["q1", "q2", "q3"], "abc")
    places = torch.tensor([[0, 1, 2], [2, 0, 1], [-1, 2, 0]])
    assert relevant.grades(torch.arange(3)[:, None], places).tolist() == [[2, 0, 0], [0, 0, 0], [0, 3, 0]]
    assert Relevant({}, ["q"], "a").grades(torch.tensor([0]), torch.tensor([0])).tolist() == [0]
