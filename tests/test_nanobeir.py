"""NanoBEIR from a local copy in the Hub's layout, and its mean as the library's own evaluator has it."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest

from embexp.datasets.nanobeir import load
from embexp.encoding.encoder import Encoder
from embexp.errors import UserError
from embexp.evaluation.evaluators import Retrieval
from embexp.evaluation.search import Dense
from embexp.forgetting.guard import averaged, guard_of
from embexp.models.embedding_model import Static
from embexp.preparing import data_of
from tests.conftest import TOPICS
from tests.test_config import composed


def write(folder, name, *, corpus, queries, qrels):
    """One subset, as `Dataset.push_to_hub` writes it."""
    tables = {
        "corpus": {"_id": list(corpus), "text": list(corpus.values())},
        "queries": {"_id": list(queries), "text": list(queries.values())},
        "qrels": {"query-id": [query for query, _ in qrels], "corpus-id": [passage for _, passage in qrels]},
    }
    for kind, columns in tables.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        pd.DataFrame(columns).to_parquet(folder / kind / f"{name}-00000-of-00001.parquet")


@pytest.fixture
def copy(tmp_path):
    """NanoNQ with three queries, NanoMSMARCO with one; passages have the same ids in both."""
    folder = tmp_path / "NanoBEIR-en"
    corpus = {f"p{place}": f"all about the {topic}" for place, topic in enumerate(TOPICS)} | {"p10": "", "p11": "apple"}
    asked = {"q0": "the apple", "q1": "the bread", "q2": "the chair", "q3": "nobody knows", "q4": "the daisy"}
    qrels = [("q0", "p0"), ("q0", "p10"), ("q1", "p1"), ("q2", "p2"), ("q2", "p3"), ("q4", "p10")]
    write(folder, "NanoNQ", corpus=corpus, queries=asked, qrels=qrels)
    write(folder, "NanoMSMARCO", corpus={"p0": "of horses", "p1": "of flutes"}, queries={"q0": "the flute"},
          qrels=[("q0", ["p0"])])  # fmt: skip
    return folder


def test_a_subset_has_its_queries_with_an_answer_its_corpus_and_nothing_to_train_on(copy):
    splits = load(path=str(copy), subsets=["NanoNQ"])
    assert not splits.train.queries
    assert not splits.dev.queries
    assert splits.apart == ()
    assert splits.test.queries == {"NanoNQ:q0": "the apple", "NanoNQ:q1": "the bread", "NanoNQ:q2": "the chair"}
    assert splits.test.qrels["NanoNQ:q2"] == {"NanoNQ:p2": 1, "NanoNQ:p3": 1}
    assert splits.test.qrels["NanoNQ:q0"] == {"NanoNQ:p0": 1}  # the other relevant one has no text
    assert len(splits.test.corpus) == 11
    assert splits.notes == {"passages without a text": 1}
    assert splits.origin == {"path": str(copy), "subsets": "NanoNQ", "commit": None}


def test_several_subsets_keep_a_corpus_each(copy):
    splits = load(path=str(copy), subsets=["NanoNQ", "NanoMSMARCO"])
    assert [len(data.corpus) for data in splits.apart] == [11, 2]
    assert [len(data.queries) for data in splits.apart] == [3, 1]
    assert len(splits.test.corpus) == 13
    assert splits.apart[1].qrels == {"NanoMSMARCO:q0": {"NanoMSMARCO:p0": 1}}  # a list of answers


def test_what_is_not_there_is_named_with_what_is(copy, tmp_path):
    for subsets, words in [
        (["NanoNQ", "nq"], r"dataset\.subsets has nq; NanoBEIR has NanoArguAna, .*NanoTouche2020$"),
        ([], r"dataset\.subsets is empty; NanoBEIR has"),
        (["NanoFEVER"], r"has no corpus/NanoFEVER-\*\.parquet; in corpus/ it has NanoMSMARCO, NanoNQ$"),
    ]:
        with pytest.raises(UserError, match=words):
            load(path=str(copy), subsets=subsets)
    with pytest.raises(UserError, match=r"is not a folder; name a local copy of NanoBEIR or a Hub data set"):
        load(path=str(tmp_path / "nowhere"), subsets=["NanoNQ"])


def test_without_the_hub_a_run_says_which_setting_names_a_copy():
    with pytest.raises(UserError) as refused:
        guard_of(composed("dataset@guard_dataset=nanobeir"), None, {}, None, tests=True)
    assert "sentence-transformers/NanoBEIR-en can't be had" in str(refused.value)
    assert str(refused.value).endswith(
        "Set guard_dataset.path= to a local copy in the same layout (<path>/corpus/NanoMSMARCO-*.parquet)"
    )


def test_a_run_of_its_own_is_measured_on_one_subset(copy):
    words = ["dataset=nanobeir", f"dataset.path={copy}", "trainer=none", "dataset.subsets=[NanoNQ,NanoMSMARCO]"]
    with pytest.raises(
        UserError, match=r"is 2 sets with a corpus of their own.*dataset\.subsets=\[NanoNQ\] trainer=none"
    ):
        data_of(composed(*words), {})


def test_the_mean_over_subsets_is_that_of_the_librarys_own_evaluator(tmp_path, monkeypatch):
    from sentence_transformers.sentence_transformer.evaluation import NanoBEIREvaluator

    folder, names = tmp_path / "copy", {"nq": "NanoNQ", "msmarco": "NanoMSMARCO"}
    for name, asked in (("NanoNQ", TOPICS[:3]), ("NanoMSMARCO", TOPICS[3:4])):
        corpus = {topic: f"all about the {topic} and a {other}" for topic, other in itertools.pairwise(TOPICS)}
        queries = {f"q{topic}": f"all about the {topic} or a {TOPICS[-1]}" for topic in asked}
        write(folder, name, corpus=corpus, queries=queries, qrels=[(f"q{topic}", topic) for topic in asked])
    splits = "".join(f"  - split: {name}\n    path: KIND/{name}-*\n" for name in names.values())
    kinds = ("corpus", "queries", "qrels")
    configs = "".join(f"- config_name: {kind}\n  data_files:\n{splits.replace('KIND', kind)}" for kind in kinds)
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    model = Static(dimension=32).load([f"all about the {topic}" for topic in TOPICS])
    theirs = NanoBEIREvaluator(list(names), dataset_id=str(folder), write_csv=False)(model.model)
    score, arm = Retrieval(k_values=[1, 3, 10]), Dense(Encoder(model))
    sets = load(path=str(folder), subsets=list(names.values())).apart
    ours = averaged([score(arm, data, negatives=None, seed=0) for data in sets]).metrics
    assert 0 < ours["recall@1"] < 1
    for metric in ("recall@1", "recall@3", "mrr@10", "ndcg@10"):
        assert ours[metric] == pytest.approx(theirs[f"NanoBEIR_mean_cosine_{metric}"])
