"""Evaluators give what the library's own give, and a query that can't be answered counts as zero."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from sentence_transformers.sentence_transformer.evaluation import (
    BinaryClassificationEvaluator,
    EmbeddingSimilarityEvaluator,
    TripletEvaluator,
)

from embexp.data.retrieval_set import RetrievalSet
from embexp.encoding.encoder import Encoder
from embexp.errors import UserError
from embexp.evaluation.evaluators import Evaluation, Pairs, Retrieval, evaluate
from embexp.evaluation.search import BM25, Dense
from embexp.models.embedding_model import Transformer
from embexp.rows.negatives import draw_random
from embexp.rows.shapes import to_rows
from tests.hits import ranking_of
from tests.tiny import tiny_transformer

NEGATIVES = partial(draw_random, per_query=2)
LIBRARY = {  # shape, evaluator, metrics
    "similarity": (
        "scored_pair",
        partial(EmbeddingSimilarityEvaluator, main_similarity="cosine"),
        ["spearman_cosine", "pearson_cosine"],
    ),
    "binary_classification": (
        "labelled_pair",
        partial(BinaryClassificationEvaluator, similarity_fn_names=["cosine"]),
        ["cosine_ap", "cosine_accuracy", "cosine_f1"],
    ),
    "triplet": ("triplet", partial(TripletEvaluator, main_similarity_function="cosine"), ["cosine_accuracy"]),
}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    folder = tiny_transformer(tmp_path_factory.mktemp("tiny"))
    return lambda **options: Transformer(path=str(folder), dtype="float32", **options).load([])


def pairs(name):
    shape, evaluator, metrics = LIBRARY[name]
    return Pairs(name, shape, metrics, evaluator)


@pytest.mark.parametrize("name", LIBRARY)
def test_pairs_equal_the_librarys_evaluator_on_the_model(toy, load, name):
    measure = pairs(name)
    model = load()
    found = measure(Dense(Encoder(model)), toy, negatives=NEGATIVES, seed=3).metrics
    columns = to_rows(toy, measure.shape, negatives=NEGATIVES, seed=3).columns.values()
    theirs = measure.evaluator(*map(list, columns))(model.model)
    assert found == pytest.approx({f"{name}.{metric}": theirs[metric] for metric in measure.metrics}, abs=1e-4)
    assert all(0 < abs(value) < 1 for value in found.values())  # a random model is neither perfect nor mute


def test_triplets_are_embedded_with_the_prompts_of_their_roles_as_the_library_does(toy, load):
    measure = pairs("triplet")
    prompted = load(prompts={"query": "the apple apple ", "passage": "question "})
    found = measure(Dense(Encoder(prompted)), toy, negatives=NEGATIVES, seed=3).metrics
    plain = measure(Dense(Encoder(load())), toy, negatives=NEGATIVES, seed=3).metrics
    columns = to_rows(toy, "triplet", negatives=NEGATIVES, seed=3).columns.values()
    assert found["triplet.cosine_accuracy"] == pytest.approx(
        measure.evaluator(*columns)(prompted.model)["cosine_accuracy"]
    )
    assert found != plain


def test_pairs_can_be_measured_again_on_some_rows(toy, load):
    measure = pairs("similarity")
    scores = measure(Dense(Encoder(load())), toy, negatives=NEGATIVES, seed=3).scores["similarity.spearman_cosine"]
    assert len(scores.query_ids) == 20 * (1 + 2)
    twice = np.tile(np.arange(60), 2)
    assert scores.over(twice) == pytest.approx(scores.score)
    assert scores.of_queries({"q0.0", "q1.0"}).score == pytest.approx(
        scores.over(np.flatnonzero([query in ("q0.0", "q1.0") for query in scores.query_ids]))
    )


def test_bm25_has_no_embeddings_and_so_no_scores_on_pairs(toy):
    measure = pairs("similarity")
    assert measure(BM25(), toy, negatives=NEGATIVES, seed=0) == Evaluation({})


def set_of(qrels, corpus="abcde"):
    return RetrievalSet(dict.fromkeys(qrels, "a question"), dict.fromkeys(corpus, "a text"), qrels, {})


def test_retrieval_scores_each_query_and_one_without_its_passage_zero():
    data = set_of({"q1": {"a": 1}, "q2": {"gone": 1}, "q3": {"b": 1, "gone": 2}})
    measured = Retrieval([1, 2]).measured(
        ranking_of({"q1": ["c", "a"], "q2": ["a", "b"], "q3": ["b", "c"]}, "abcde"), data
    )
    assert measured.scores["recall@2"].query_ids == ["q1", "q2", "q3"]
    assert measured.scores["recall@2"].values.tolist() == [1, 0, 1 / 2]
    assert measured.metrics["mrr@2"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert measured.metrics["recall@1"] == pytest.approx((0 + 0 + 1 / 2) / 3)
    assert len(measured.metrics) == 6 * 2


def test_a_query_that_found_nothing_is_scored_zero_and_not_dropped():
    measured = Retrieval([1]).measured(
        ranking_of({"q1": ["a"], "q2": []}, "abcde"), set_of({"q1": {"a": 1}, "q2": {"b": 1}, "q3": {"c": 1}})
    )
    assert measured.scores["accuracy@1"].values.tolist() == [1, 0, 0]


def test_the_whole_chain_ranks_and_measures_by_keyword(toy):
    found = evaluate([Retrieval([1, 3])], BM25(), toy, negatives=NEGATIVES, seed=0)
    assert found.metrics["recall@1"] == 1.0  # each question names its passage's topic
    assert found.ranking["q3.0"][0][0] == "p3"


def test_during_training_dev_keeps_all_relevant_passages_and_the_nearest_others():
    data = set_of({"q1": {"a": 1, "gone": 1}, "q2": {"e": 2, "b": 0}})
    base = Evaluation({}, ranking_of({"q1": ["b", "a", "c"], "q2": ["b", "a", "d"]}, "abcde"))
    part = Retrieval([1], training_distractors=1).during_training(base, data)(data)
    assert list(part.corpus) == ["a", "b", "e"]
    assert part.qrels == data.qrels  # a passage that is missing stays a miss
    choice = Retrieval([1], training_distractors=2).during_training(base, data)
    assert list(choice(data).corpus) == ["a", "b", "c", "e"]
    assert list(choice(data, at_most=1).corpus) == ["a", "b", "e"]
    assert list(choice(data, at_most=3).corpus) == ["a", "b", "c", "e"]  # as configured is the most
    assert list(choice(data.with_queries(["q2"]), at_most=2).corpus) == ["a", "b", "e"]
    assert Retrieval([1], training_distractors=None).during_training(base, data)(data) is data


def test_any_part_of_dev_is_chosen_as_by_hand_and_the_ranking_is_looked_at_once():
    rng = np.random.default_rng(0)
    corpus = [f"p{place}" for place in rng.permutation(40)]
    hits = {f"q{row}": [corpus[place] for place in rng.permutation(40)[: rng.integers(1, 8)]] for row in range(30)}
    qrels = {query: {corpus[place]: int(place) % 3 for place in rng.integers(0, 40, 3)} for query in hits}
    data, base = set_of(qrels, corpus), Evaluation({}, ranking_of(hits, corpus))
    choice = Retrieval([8], training_distractors=4).during_training(base, data)
    base.ranking.places[:] = -1
    for queries, most in ((30, 4), (30, 1), (11, 2), (1, 3)):
        part = data.with_queries(sorted(hits)[:queries])
        expected = {passage for query in part.queries for passage in part.relevant(query)}
        for query in part.queries:
            expected |= set([passage for passage in hits[query] if passage not in data.relevant(query)][:most])
        assert list(choice(part, at_most=most).corpus) == [passage for passage in corpus if passage in expected]


def test_more_hard_passages_than_a_ranking_holds_are_said_to_be_fewer(caplog):
    Retrieval([1, 10], training_distractors=10)
    assert not caplog.messages
    Retrieval([1, 3], training_distractors=10)
    (message,) = caplog.messages
    assert "training_distractors=10: the base model's ranking holds 3 passages" in message
    assert "lower it, or raise k_values" in message


def test_two_evaluators_are_reported_together(toy, load):
    measure = pairs("similarity")
    found = evaluate([measure, Retrieval([1])], Dense(Encoder(load())), toy, negatives=NEGATIVES, seed=0)
    assert {"similarity.spearman_cosine", "recall@1"} <= found.metrics.keys()
    assert set(found.ranking) == set(toy.queries)


def test_retrieval_is_scored_again_with_embeddings_cut_to_each_dimension():
    # whole, the query is nearest to a (0.6 + 0.64 of 1); by its first dimension alone all three are equal
    class Planes:
        dimensions, identity, device = 2, None, "cpu"

        def queries(self, texts):
            return np.array([[0.6, 0.8]], dtype=np.float32)

        def passages(self, texts):
            return np.array([[0.6, 0.8], [0.8, 0.6], [1.0, 0.0]], dtype=np.float32)

    data = set_of({"q": {"a": 1}}, corpus="abc")
    found = Retrieval([1], dimensions=[1, 2])(Dense(Planes()), data, negatives=NEGATIVES, seed=0)
    assert found.metrics["recall@1"] == found.metrics["dim2.recall@1"] == 1.0
    assert found.metrics["dim1.recall@1"] == 0.0  # a tie never flatters
    assert len(found.metrics) == 3 * 6
    assert found.ranking["q"][0][0] == "a"


def test_bm25_has_no_dimensions(toy):
    measured = Retrieval([1], dimensions=[64])(BM25(), toy, negatives=NEGATIVES, seed=0)
    assert not any(name.startswith("dim") for name in measured.metrics)


def test_more_dimensions_than_the_model_has_are_refused(toy, load):
    with pytest.raises(UserError, match="dimensions has 33; the model's embeddings have 32"):
        Retrieval([1], dimensions=[33])(Dense(Encoder(load())), toy, negatives=NEGATIVES, seed=0)
