"""The model card says what was measured and how to use the model, and gives nothing away."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from embexp import stamp
from embexp.reporting import card, usage
from tests.command import QUICK
from tests.tiny import tiny_transformer

E5 = ["model.prompts={query: 'query: ', passage: 'passage: '}"]


@pytest.fixture
def run(embexp, sources, tmp_path):
    tiny_transformer(tmp_path / "secret-place" / "tiny")
    model = ["model=local", f"model.path={tmp_path / 'secret-place' / 'tiny'}", "trainer=smoke", "logger=none"]
    done = embexp(*model, *E5, "trainer.learning_rate=1e-3", *sources["pairs"])
    assert done.code == 0, done.output
    return done


def test_the_front_matter_has_test_scores_with_their_intervals_as_a_hub_reads_them(run):
    data = ModelCard.load(run.folder / "model" / "README.md").data
    assert data.library_name == "sentence-transformers"
    assert data.pipeline_tag == "sentence-similarity"
    assert data.base_model is None  # it was in a local folder
    by_slice = {(result.metric_type, result.dataset_config): result for result in data.eval_results}
    whole = by_slice["recall@10", None]
    delta = run.result["delta"]["recall@10"]
    assert whole.metric_value == pytest.approx(run.result["tuned"]["test"]["recall@10"], abs=1e-4)
    assert whole.metric_args["base"] == pytest.approx(run.result["base"]["test"]["recall@10"], abs=1e-4)
    assert whole.metric_args["interval_95"] == pytest.approx([delta["ci_low"], delta["ci_high"]], abs=1e-4)
    assert whole.dataset_args["queries"] == run.result["counts"]["queries"]["test"]
    assert whole.dataset_args["sha256"] == run.result["fingerprint"]["test"]
    assert whole.dataset_split == "test"


def test_the_text_has_verdict_prompts_loss_counts_digests_and_versions(run):
    text = (run.folder / "model" / "README.md").read_text()
    found, stamped = run.result["fingerprint"], stamp.of_model(run.folder / "model")
    for words in [
        f"Verdict: {run.result['verdict']}. recall@10", "every query follows `query: `", "MultipleNegativesRankingLoss",
        "scale 20.0", "learning_rate: 0.001", f"{run.result['counts']['train_rows']:,} rows, 4 steps",
        found["train"], found["test"], found["corpus"], found["model"]["content"], stamped["content"],
        run.result["versions"]["torch"],
    ]:  # fmt: skip
        assert words in text


def test_no_text_of_the_data_and_no_path_of_the_machine_is_in_it(run, tmp_path, pairs_file):
    written = (run.folder / "model" / "README.md").read_text() + (run.folder / "model" / "embexp.json").read_text()
    for row in map(json.loads, pairs_file.read_text().splitlines()):
        for text in (row["query"], row["passage"], row["group"]):
            assert text not in written
    assert str(tmp_path) not in written
    assert "secret-place" not in written
    assert "pairs.jsonl" not in written


def test_sentence_transformers_loads_the_folder_and_hands_the_card_on_as_it_is(run, tmp_path):
    model = SentenceTransformer(str(run.folder / "model"), local_files_only=True)
    assert model.model_card_data.model is model
    model.save_pretrained(str(tmp_path / "copy"))  # what a push uploads
    assert (tmp_path / "copy" / "README.md").read_text() == (run.folder / "model" / "README.md").read_text()


def test_the_lines_for_sentence_transformers_run_and_use_the_prompts(run):
    code = usage.lines({"query": "query: ", "passage": "passage: "})["sentence-transformers"]
    assert code in (run.folder / "model" / "README.md").read_text()
    names = {}
    exec(code.replace(usage.MODEL, str(run.folder / "model")), names)
    plain = names["model"].encode(["query: How do I reset my password?"], normalize_embeddings=True)
    assert names["queries"] == pytest.approx(plain, abs=1e-6)
    without = names["model"].encode(["How do I reset my password?"], normalize_embeddings=True)
    assert names["queries"] != pytest.approx(without, abs=1e-3)


def test_a_base_on_the_hub_and_its_commit_are_named(run):
    result = json.loads((run.folder / "result.json").read_text())
    result["fingerprint"]["model"] |= {"path": "BAAI/bge-small-en-v1.5@main", "commit": "5c38ec7c"}
    result["fingerprint"]["helpers"] = {"loss.guide": {"path": "/home/me/guide", "commit": None, "content": "c0ffee"}}
    result["config"]["loss"] |= {"guide": "/home/me/guide", "file": "/home/me/x"}
    names = {"model": "bge-small", "loss": "gist", "dataset": "pairs"}
    text = card.card(result, names, stamp.of_model(run.folder / "model"))
    assert "\nbase_model: BAAI/bge-small-en-v1.5\n" in text
    assert "at commit 5c38ec7c" in text
    assert "loss.guide: content `c0ffee`" in text
    assert "/home/me" not in text


def test_a_card_that_cannot_be_made_is_said_and_the_run_stays_complete(embexp, sources, monkeypatch):
    monkeypatch.setattr(card, "card", lambda *_: 1 / 0)
    done = embexp(*QUICK, *sources["pairs"])
    assert done.code == 0
    assert done.result["status"] == "completed"
    assert "the model card can't be written (ZeroDivisionError: division by zero)" in done.output
    assert not (done.folder / "model" / "README.md").exists()


def test_a_failed_run_and_one_without_training_have_no_card(embexp, sources):
    base = embexp(*QUICK[:2], "trainer=none", "logger=none", *sources["pairs"])
    assert base.code == 0
    assert not (base.folder / "model").exists()
    failed = embexp(*QUICK, *sources["pairs"], "trainer.learning_rate=1e30")
    assert failed.code == 1
    assert not list(failed.folder.rglob("README.md"))


def test_a_complete_run_that_is_resumed_gets_its_card_again(embexp, sources):
    done = embexp(*QUICK, *sources["pairs"])
    before = (done.folder / "model" / "README.md").read_text()
    (done.folder / "model" / "README.md").unlink()
    assert embexp(f"resume={done.folder}").code == 0
    assert (done.folder / "model" / "README.md").read_text() == before
