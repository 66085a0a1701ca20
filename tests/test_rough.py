"""Search by way of bytes finds what plain float32 search finds; its bound holds, and a broken one is noticed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from embexp.data.retrieval_set import RetrievalSet
from embexp.evaluation import rough
from embexp.evaluation.ranking import GROUP
from embexp.evaluation.search import nearest


def set_of(passages, queries):
    qrels = {f"q{row}": {f"p{row % passages:04}": 1} for row in range(queries)}
    texts = {f"p{place:04}": "a text" for place in reversed(range(passages))}  # ids run against places
    return RetrievalSet(dict.fromkeys(qrels, "a question"), texts, qrels, {})


def vectors(kind, rows, dimensions, rng):
    """Rows of one kind, of length 1."""
    found = rng.normal(size=(rows, dimensions)).astype(np.float32)
    if kind == "clustered":
        found = found[rng.integers(0, min(3, rows), rows)] + 0.01 * found
    elif kind == "duplicates":
        found = found[rng.integers(0, max(1, rows // 4), rows)]
    elif kind == "equal":
        found[:] = found[0]
    elif kind == "outlier":
        found[:, 0] += 50
    elif kind == "zeros":
        found[:, dimensions // 2 :] = 0
    elif kind == "spikes":
        found = 1e-20 * found
        found[np.arange(rows), rng.integers(0, dimensions, rows)] = 1
    return found / np.linalg.norm(found, axis=1, keepdims=True)


pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")  # pytest sets the module's filter back
KINDS = ["random", "clustered", "duplicates", "equal", "outlier", "zeros", "spikes"]


def through_bytes(patch, data, queries, passages, *, top, **options):
    """Ranked with limits after a tile of one group, in small tiles, on any processor."""
    patch.setattr(rough, "pays", lambda *_, **__: True)
    patch.setattr(rough, "PASSAGES_AT_ONCE", GROUP)
    patch.setattr(rough, "QUERIES_AT_ONCE", 5)
    patch.setattr(rough, "FIRST_PASSAGES", GROUP)
    patch.setattr("embexp.evaluation.search.PASSAGES_AT_ONCE", 4 * GROUP)
    return nearest(data, queries, passages, top=top, **options)


def assert_ranks_as_plain_sorting(data, found, queries, passages):
    """By scores in float64 up to float32's rounding; passages of equal rows by id, the relevant one last."""
    true = queries.astype(np.float64) @ passages.T.astype(np.float64)
    ids = list(data.corpus)
    for row, (query, hits) in enumerate(found.items()):
        places = found.places[row][found.places[row] >= 0]
        assert len(set(places.tolist())) == len(places) == min(found.places.shape[1], len(ids))
        assert found.scores[row][: len(places)] == pytest.approx(true[row, places], abs=2e-6)
        assert true[row, places] == pytest.approx(np.sort(true[row])[::-1][: len(places)], abs=2e-6)
        relevant = ids.index(next(iter(data.qrels[query])))
        assert found.lowest[row] == pytest.approx(true[row, relevant], abs=2e-6)
        keys = [(-score, passage in data.qrels[query], passage) for passage, score in hits]
        assert keys == sorted(keys)
        last = keys[-1]
        equal = np.flatnonzero((passages == passages[places[-1]]).all(axis=1))
        left_out = [ids[place] for place in equal if place not in places]
        assert all((last[0], passage in data.qrels[query], passage) > last for passage in left_out)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    passages=st.integers(1, 400),
    queries=st.integers(1, 12),
    dimensions=st.sampled_from([2, 7, 16, 65]),
    top=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_it_ranks_as_plain_sorting_does(kind, passages, queries, dimensions, top, seed):
    rng = np.random.default_rng(seed)
    right = vectors(kind, passages, dimensions, rng)
    left = np.concatenate([right[:1], vectors("random", queries, dimensions, rng)])[:queries]
    data = set_of(passages, queries)
    with pytest.MonkeyPatch.context() as patch:
        found = through_bytes(patch, data, left, right, top=top)
    assert_ranks_as_plain_sorting(data, found, left, right)


@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_the_places_that_float32_search_finds(monkeypatch, kind):
    rng = np.random.default_rng(1)
    right, left, data = vectors(kind, 700, 48, rng), vectors(kind, 9, 48, rng), set_of(700, 9)
    monkeypatch.setattr(rough, "pays", lambda *_, **__: False)
    plain = nearest(data, left, right, top=10)
    found = through_bytes(monkeypatch, data, left, right, top=10)
    assert found.scores == pytest.approx(plain.scores, abs=2e-6)
    if kind == "random":  # of the others scores lie as near to each other as float32's rounding
        assert (found.places == plain.places).all()


def test_of_equal_passages_far_apart_the_relevant_one_comes_last_and_all_score_alike(monkeypatch):
    right = vectors("random", 300, 48, np.random.default_rng(2))
    right[[3, 150, 299]] = right[20]
    found = through_bytes(monkeypatch, data := set_of(300, 1), right[[20]], right, top=4)
    first = next(iter(data.qrels["q0"]))
    same = sorted(list(data.corpus)[place] for place in (3, 20, 150, 299))
    assert [passage for passage, _ in found["q0"]] == [passage for passage in same if passage != first] + (
        [first] if first in same else []
    )
    assert len({score for _, score in found["q0"]}) == 1


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.sampled_from(KINDS), st.integers(0, 1000), st.sampled_from([1e-18, 1e-3, 1, 1e3]))
def test_no_product_of_bytes_lies_below_what_its_score_asks_for(kind, other, seed, length):
    rng = np.random.default_rng(seed)
    left = torch.from_numpy(vectors(kind, 6, 33, rng) * np.float32(length))
    right = torch.from_numpy(vectors(other, 64, 33, rng))
    queries, groups = rough.rounded(left, group=1), rough.rounded(right, group=GROUP)
    products = queries.numbers.long() @ groups.numbers.long().T
    for place, scores in enumerate((left @ right.T).T):  # each pair's own score as the limit
        least = rough.least_products(scores, queries, groups)[:, place // GROUP]
        assert (products[:, place] >= least).all()


def test_a_bound_without_the_remainders_loses_passages(monkeypatch):
    rng = np.random.default_rng(3)
    right, left, data = vectors("random", 3000, 16, rng), vectors("random", 20, 16, rng), set_of(3000, 20)
    true = np.sort(left @ right.T, axis=1)[:, ::-1][:, :10]
    monkeypatch.setattr(rough, "rounded", with_error(rough.rounded, 1.0))
    assert through_bytes(monkeypatch, data, left, right, top=10).scores == pytest.approx(true, abs=2e-6)
    monkeypatch.setattr(rough, "rounded", with_error(rough.rounded, -1.0))
    assert through_bytes(monkeypatch, data, left, right, top=10).scores != pytest.approx(true, abs=2e-6)


def with_error(rounded, times):
    """`rounded` with remainders taken to be so many times as long."""

    def changed(rows, **options):
        found = rounded(rows, **options)
        return rough.Rounded(found.numbers, found.scale, found.length, found.error * times, found.whole)

    return changed


def test_few_pairs_are_left_to_score_in_float32(monkeypatch):
    rng = np.random.default_rng(4)
    right, left, scored = vectors("random", 6000, 64, rng), vectors("random", 8, 64, rng), []
    exact = rough.exact
    monkeypatch.setattr(rough, "exact", lambda *pairs: scored.append(len(pairs[2])) or exact(*pairs))
    through_bytes(monkeypatch, set_of(6000, 8), left, right, top=5)
    assert 40 <= sum(scored) < 0.05 * 8 * 6000


@pytest.mark.parametrize(
    ("has", "passages", "top", "device", "pays"),
    [
        ({"avx512_vnni": True}, 200_000, 100, "cpu", True),
        ({"avx512_vnni": False, "avx2": True}, 200_000, 100, "cpu", False),
        ({"neon": True}, 200_000, 100, "cpu", False),
        ({"avx512_vnni": True}, 200_000, 100, "cuda", False),
        ({"avx512_vnni": True}, 2_000, 100, "cpu", False),
        ({"avx512_vnni": True}, 200_000, 1000, "cpu", False),
    ],
)
def test_bytes_are_multiplied_where_the_processor_is_fast_at_it(monkeypatch, has, passages, top, device, pays):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: has)
    assert rough.pays(passages, top=top, device=device) is pays


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_out_of_the_ranking_is_not_ranked_and_rules_nothing_out(kind, monkeypatch):
    rng = np.random.default_rng(3)
    passages, queries = vectors(kind, 300, 16, rng), vectors("random", 12, 16, rng)
    data = set_of(300, 12)
    whole = nearest(data, queries, passages, top=40)
    # the best of every query, all in the first tile of some
    without = {query: [passage for passage, _ in hits[:25]] for query, hits in whole.items()}
    plain = nearest(data, queries, passages, top=10, without=without)
    found = through_bytes(monkeypatch, data, queries, passages, top=10, without=without)
    for query in data.queries:
        assert not {passage for passage, _ in found[query]} & set(without[query])
        assert [score for _, score in found[query]] == pytest.approx([score for _, score in plain[query]], abs=1e-6)
    np.testing.assert_allclose(found.lowest, plain.lowest, atol=1e-6)
