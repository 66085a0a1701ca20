"""What an arm costs: sizes by counting, times in turn, and finders that find what the arms rank."""

from __future__ import annotations

import json

import numpy as np
import pytest

from embexp.arms import costs as module
from embexp.arms.costs import Serving, costs, training_seconds
from embexp.arms.measured import NAMES
from embexp.encoding.encoder import Encoder
from embexp.evaluation.search import BM25, Dense, Hybrid, KeywordIndex
from embexp.models.embedding_model import Static
from embexp.reranking.reordering import Reranked
from tests.command import REPOSITORY
from tests.conftest import toy_set

TOY = toy_set()
PASSAGES, QUERIES = list(TOY.corpus.values()), list(TOY.queries.values())


@pytest.fixture(scope="module")
def model():
    return Static(dimension=8, vocabulary=200).load(PASSAGES)


@pytest.fixture(scope="module")
def vectors(model):
    return Encoder(model).passages(PASSAGES)


def by_length(queries, passages):
    """A scorer that likes short passages."""
    return np.array([1 / len(passage) for passage in passages], dtype=np.float32)


class Clock:
    """Each look at it is this much later than the one before."""

    def __init__(self, *steps):
        self.now, self.steps = 0.0, iter(steps)

    def __call__(self):
        self.now += next(self.steps, 0.0)
        return self.now


def test_the_index_is_the_vectors_and_the_arrays_of_bm25_and_a_hybrid_has_both(model, vectors):
    arms = {"bm25": Serving(None), "base": Serving(model), "hybrid": Serving(model, keyword=True)}
    found = costs(arms, TOY.corpus, QUERIES, vectors, seed=0)
    mib = {name: cost.index_mib for name, cost in found.items()}
    assert mib["base"] == pytest.approx(len(PASSAGES) * 8 * 4 / 2**20, abs=5e-4)
    assert mib["bm25"] == pytest.approx(KeywordIndex(TOY.corpus).nbytes / 2**20, abs=5e-4)
    assert mib["hybrid"] == pytest.approx(mib["base"] + mib["bm25"], abs=2e-3)
    assert found["hybrid"].index_s == pytest.approx(found["base"].index_s + found["bm25"].index_s, abs=2e-3)
    assert all(cost.query_ms > 0 for cost in found.values())


def test_embedding_a_sample_is_scaled_to_the_corpus(model, vectors, monkeypatch):
    monkeypatch.setattr(module, "PASSAGES", 4)
    monkeypatch.setattr(module, "_seconds_to_embed", lambda model, sample: 0.5 * len(sample))
    found = costs({"base": Serving(model)}, TOY.corpus, QUERIES, vectors, seed=0)
    assert found["base"].index_s == pytest.approx(0.5 * len(PASSAGES))


def test_arms_that_differ_in_their_weights_alone_cost_the_same(model, vectors, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "_in_turn", lambda finders, questions: asked.append(finders) or {
        key: [float(place)] for place, key in enumerate(finders, start=1)})  # fmt: skip
    arms = {"base": Serving(model), "tuned": Serving(model), "reranked": Serving(model, scorer=by_length)}
    found = costs(arms, TOY.corpus, QUERIES, vectors, seed=0)
    assert len(asked[0]) == 2
    assert found["base"] == found["tuned"]
    assert found["reranked"].query_ms == 2000


def test_questions_are_asked_in_turn_and_the_first_does_not_count(monkeypatch):
    heard = []
    finders = {(1,): lambda text, top: heard.append(("a", text)), (2,): lambda text, top: heard.append(("b", text))}
    monkeypatch.setattr(module.time, "perf_counter", Clock(0, 9, 0, 8, 0, 1, 0, 2, 0, 3, 0, 4))
    waited = module._in_turn(finders, ["x", "y", "z"])
    assert heard == [(arm, text) for text in "xyz" for arm in "ab"]
    assert waited == {(1,): [1, 3], (2,): [2, 4]}


def test_an_arm_that_takes_long_is_asked_fewer_questions(monkeypatch):
    monkeypatch.setattr(module.time, "perf_counter", Clock(*[0, 4] * 30))
    waited = module._in_turn({(1,): lambda text, top: None}, list("abcdefghijkl"))
    assert waited == {(1,): [4.0] * 5}  # beside the first


def test_the_page_says_how_many_questions_are_asked_and_how_many_arms_are_compared():
    page = " ".join((REPOSITORY / "docs" / "arms.md").read_text().split())
    arms = set(NAMES) - {"fully_tuned"}  # stands for merged where the tuned model is merged itself
    counted = {6: "sixth", 7: "seven"}
    assert f"Up to {counted[len(arms) - 1]} arms are each held against the best" in page
    assert f"up to {module.QUESTIONS + 1} questions to each arm. One that has taken {module.ENOUGH_S:g} s" in page
    assert f"not before its {counted[module.FEWEST + 1]} question" in page


@pytest.mark.parametrize("name", ["bm25", "base", "hybrid", "reranked"])
def test_a_finder_finds_what_its_arm_ranks(model, vectors, name):
    dense = Dense(Encoder(model))
    arm, serving = {
        "bm25": (BM25(), Serving(None)),
        "base": (dense, Serving(model)),
        "hybrid": (Hybrid(BM25(), dense), Serving(model, keyword=True)),
        "reranked": (Reranked(dense, by_length, depth=3), Serving(model, scorer=by_length, depth=3)),
    }[name]
    find = module._finder(serving, KeywordIndex(TOY.corpus), PASSAGES, vectors)
    ids, ranking = list(TOY.corpus), arm.search(TOY, top=3)
    for query, text in TOY.queries.items():
        hits = [score for _, score in ranking[query]]
        best = ids[find(text, 3)[0]]
        assert best in [passage for passage, score in ranking[query] if score == hits[0]]


def test_seconds_of_training_are_those_between_lines_also_where_a_killed_run_went_on(tmp_path):
    # 8 s, killed; the clock starts anew, and 12 s pass before the first line: 4 s
    first = [{"step": step, "seconds": seconds} for step, seconds in ((0, 2.0), (1, 5.0), (2, 10.0))]
    lines = [*first, *({"step": step, "seconds": seconds, "attempt": 2} for step, seconds in ((3, 12.0), (4, 16.0)))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert training_seconds(tmp_path / "metrics.jsonl") == 8.0 + 4.0
