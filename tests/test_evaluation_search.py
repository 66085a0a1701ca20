"""Rankings: who comes first among equals, exactness against plain sorting, and what keyword search leaves out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from embexp.cache import kept_in
from embexp.data.retrieval_set import RetrievalSet
from embexp.encoding.encoder import Encoder
from embexp.errors import UserError
from embexp.evaluation import search as arms
from embexp.evaluation.ranking import Ranking
from embexp.evaluation.search import BM25, Dense, Hybrid, fused, nearest, ranked
from embexp.models.embedding_model import Static


def set_of(passages, queries, relevant):
    qrels = {query: dict.fromkeys(relevant.get(query, ()), 1) for query in queries}
    return RetrievalSet(queries, passages, qrels, {})


def ids(ranking):
    return {query: [passage for passage, _ in hits] for query, hits in ranking.items()}


def search_scores(relevant, scores, *, top, passages="bacd"):
    data = set_of(dict.fromkeys(passages, "a text"), {"q": "a question"}, {"q": relevant})
    return ids(ranked(data, iter([np.array([scores], dtype=np.float32)]), top=top))["q"]


def test_among_equal_scores_relevant_passages_come_last_and_the_rest_by_id():
    assert search_scores({"a"}, [0.5, 0.5, 0.5, 0.5], top=4) == ["b", "c", "d", "a"]


def test_a_higher_score_beats_the_tie_rule():
    assert search_scores({"a"}, [0.1, 0.9, 0.1, 0.5], top=4) == ["a", "d", "b", "c"]


def test_a_tie_at_the_last_place_leaves_the_relevant_passage_out():
    assert search_scores({"a"}, [0.5, 0.5, 0.9, 0.5], top=2) == ["c", "b"]


def test_relevant_passages_come_last_by_id_as_well():
    assert search_scores({"b", "a"}, [0, 0, 0, 0], top=4) == ["c", "d", "a", "b"]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_ranking_equals_plain_sorting_however_scores_are_cut_into_blocks(data):
    passages = data.draw(st.permutations([f"p{place}" for place in range(7)]))
    queries = {f"q{place}": "a question" for place in range(data.draw(st.integers(1, 5)))}
    relevant = {query: data.draw(st.sets(st.sampled_from(passages))) for query in queries}
    scores = np.array([[data.draw(st.integers(0, 3)) for _ in passages] for _ in queries], dtype=np.float32)
    top, cut = data.draw(st.integers(1, 9)), data.draw(st.integers(1, len(queries)))

    def places(query, row):
        return sorted(passages, key=lambda p: (-row[passages.index(p)], p in relevant[query], p))[:top]

    found = ranked(
        set_of(dict.fromkeys(passages, "a text"), queries, relevant), iter([scores[:cut], scores[cut:]]), top=top
    )
    assert ids(found) == {query: places(query, row) for query, row in zip(queries, scores, strict=True)}


class Planted:
    """An encoder of unit vectors in the plane; a text is its angle in degrees."""

    device = "cpu"

    def queries(self, texts):
        angles = np.radians([float(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    passages = queries


@pytest.mark.parametrize("cells_at_once", [1, 7, 1_000])
def test_dense_search_finds_the_nearest_by_angle_in_blocks_of_any_size(monkeypatch, cells_at_once):
    monkeypatch.setattr(arms, "CELLS_AT_ONCE", cells_at_once)
    data = set_of({"east": "0", "north": "90", "west": "180"}, {"q1": "10", "q2": "100", "q3": "170"}, {})
    ranking = Dense(Planted()).search(data, top=2)
    assert ids(ranking) == {"q1": ["east", "north"], "q2": ["north", "west"], "q3": ["west", "north"]}
    assert ranking["q1"][0][1] == pytest.approx(np.cos(np.radians(10)))


@pytest.mark.parametrize("at_once", [32, 50, 64, 1000])
def test_nearest_reads_passages_in_blocks_and_ranks_each_once(monkeypatch, at_once):
    monkeypatch.setattr(arms, "PASSAGES_AT_ONCE", at_once)
    monkeypatch.setattr(arms, "CELLS_AT_ONCE", 700)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(150, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[[3, 70, 149]] = rows[20]  # equal passages, far apart
    data = set_of(
        {f"p{place:03}": "a text" for place in range(150)},
        {f"q{row}": "a question" for row in range(20)},
        {"q0": {"p003"}},
    )
    found = nearest(data, np.concatenate([rows[[20]], rows[:19]]), rows, top=5)
    products = np.concatenate([rows[[20]], rows[:19]]) @ rows.T
    assert [passage for passage, _ in found["q0"][:4]] == ["p020", "p070", "p149", "p003"]
    assert len({score for _, score in found["q0"][:4]}) == 1
    assert found.lowest[0] == found["q0"][0][1]
    for row, hits in enumerate(found.values()):
        assert len({passage for passage, _ in hits}) == 5
        assert [score for _, score in hits] == pytest.approx(sorted(products[row], reverse=True)[:5], abs=1e-6)


def test_passages_may_be_a_memory_map(tmp_path):
    np.save(tmp_path / "rows.npy", np.eye(4, dtype=np.float32))
    data = set_of(dict.fromkeys("abcd", "a text"), {"q": "a question"}, {})
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="c")
    assert ids(nearest(data, np.array([[0, 0.2, 0.9, 0]], dtype=np.float32), mapped, top=2)) == {"q": ["c", "b"]}


def test_a_keyword_ranking_is_kept_between_runs(toy, tmp_path, monkeypatch):
    with kept_in(tmp_path):
        first = BM25().search(toy, top=3)
        monkeypatch.setattr(arms, "KeywordIndex", None)  # asked again it would fail
        assert BM25().search(toy, top=3) == first


def test_one_index_serves_all_sets_of_a_corpus_and_no_other(monkeypatch):
    made, keyword_index = [], arms.KeywordIndex
    monkeypatch.setattr(arms, "KeywordIndex", lambda corpus: made.append(corpus) or keyword_index(corpus))
    arm, corpus = BM25(), {"a": "red apples", "b": "blue whales"}
    for query, first in (("a red one", "a"), ("whales", "b")):
        assert ids(arm.search(set_of(dict(corpus), {"q": query}, {}), top=1)) == {"q": [first]}
    assert ids(arm.search(set_of({**corpus, "c": "whales, whales"}, {"q": "whales"}, {}), top=1)) == {"q": ["c"]}
    assert [len(corpus) for corpus in made] == [2, 3]


def test_a_keyword_ranking_without_some_passages_is_kept_apart(toy, tmp_path):
    with kept_in(tmp_path):
        whole = BM25().search(toy, top=3)
        part = BM25().search(toy, top=3, without={"q3.0": ["p3"]})
    assert (whole["q3.0"][0][0], whole["q3.1"]) == ("p3", part["q3.1"])
    assert "p3" not in ids(part)["q3.0"]


def test_keyword_scores_take_no_more_threads_than_torch(toy, monkeypatch):
    pools = []
    monkeypatch.setattr(arms, "ThreadPoolExecutor", lambda count: pools.append(count) or ThreadPoolExecutor(count))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        list(arms.keyword_scores(toy))
    finally:
        torch.set_num_threads(before)
    assert pools == [3]


def test_bm25_finds_keywords_in_any_case_and_leaves_out_passages_without_one():
    data = set_of({"p1": "The red apple", "p2": "a green pear", "p3": "an apple and a pear"}, {"q": "APPLE, red?"}, {})
    assert ids(BM25().search(data, top=3)) == {"q": ["p1", "p3"]}


def test_bm25_ranks_the_rarer_word_higher():
    data = set_of(
        {"p1": "apple pie", "p2": "apple jam", "p3": "quince jam", "p4": "apple jam"}, {"q": "apple quince"}, {}
    )
    assert ids(BM25().search(data, top=1)) == {"q": ["p3"]}


def test_bm25_gives_a_query_of_unknown_words_an_empty_ranking():
    data = set_of({"p1": "apple", "p2": "pear"}, {"q1": "zebra", "q2": "pear", "q3": "?!"}, {"q1": {"p1"}})
    assert ids(BM25().search(data, top=2)) == {"q1": [], "q2": ["p2"], "q3": []}


@pytest.mark.parametrize(("value", "words"), [(1.0, "collapsed"), (float("nan"), "NaN"), (float("inf"), "NaN or inf")])
def test_a_constant_or_broken_model_is_refused_and_not_scored(toy, value, words):
    model = Static(dimension=8, vocabulary=200).load(toy.corpus.values())
    with torch.no_grad():
        model.model[0].embedding.weight.fill_(value)
    with pytest.raises(UserError, match=words):
        Dense(Encoder(model)).search(toy, top=3)


def ranking_of(*rows):
    """A ranking of five passages a to e for as many queries; -1 after the last."""
    places = np.array([row + [-1] * (5 - len(row)) for row in rows])
    queries = [f"q{row}" for row in range(len(rows))]
    return Ranking(queries, list("abcde"), places, places.astype(np.float32), np.zeros(len(rows), np.float32))


def test_fused_ranks_are_summed_as_reciprocals():
    # a: 1/61 + 1/63; b: 1/62 + 1/61; c: 1/63; d: 1/62
    found = fused(ranking_of([0, 1, 2]), ranking_of([1, 3, 0]), top=4)
    assert ids(found) == {"q0": ["b", "a", "d", "c"]}
    assert [score for _, score in found["q0"]] == pytest.approx([1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62, 1 / 63])


def test_of_equal_sums_the_one_that_the_model_ranks_higher_comes_first():
    # crossed ranks, and ranks in one list alone, give equal sums
    assert ids(fused(ranking_of([0, 1], [2]), ranking_of([1, 0], [3]), top=3)) == {"q0": ["a", "b"], "q1": ["c", "d"]}
    assert ids(fused(ranking_of([1, 0], [3]), ranking_of([0, 1], [2]), top=1)) == {"q0": ["b"], "q1": ["d"]}


def test_a_query_that_one_arm_ranks_nothing_for_keeps_the_other_order():
    assert ids(fused(ranking_of([], [4]), ranking_of([2, 0], []), top=5)) == {"q0": ["c", "a"], "q1": ["e"]}


def test_a_hybrid_asks_both_arms_for_more_than_it_gives():
    # of the query's words only "20" stands in a passage; by angle 10 is nearest to 12, then 20
    data = set_of({"far": "20", "near": "10", "off": "90"}, {"q": "12"}, {})
    keyword = set_of(data.corpus, {"q": "20"}, {})

    class Keywords:
        def search(self, retrieval_set, *, top):
            assert top == arms.FUSED
            return BM25().search(keyword, top=top)

    assert ids(Hybrid(Keywords(), Dense(Planted())).search(data, top=2)) == {"q": ["far", "near"]}
