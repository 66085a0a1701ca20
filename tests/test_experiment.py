"""What a run does and leaves: its folder, its scores, its verdict, its failures."""

import gc
import json
import shutil
import sys
import weakref
from types import ModuleType

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from embexp import experiment
from embexp.encoding.encoder import Encoder
from embexp.reporting.report import HEADLINE
from embexp.results.keys import KEYS
from embexp.training import fine_tuning as training
from embexp.training.trainer import Trainer
from tests.command import QUICK, separate
from tests.tiny import tiny_transformer


def test_a_run_leaves_the_folder_that_the_design_names(embexp, sources):
    run = embexp(*QUICK, *sources["pairs"])
    assert set(KEYS) <= run.result.keys()
    names = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*")}
    assert {
        ".hydra/config.yaml", "embexp.log", "result.json", "metrics.jsonl", "report.md", "model/model.safetensors",
        "retrieval/base.test.trec", "retrieval/tuned.test.trec", "retrieval/bm25.test.trec",
        "retrieval/qrels.test.tsv", "retrieval/per_query.parquet",
    } <= names  # fmt: skip
    assert not any(name.startswith("checkpoints") or name.endswith((".bin", ".pt", ".partial")) for name in names)
    delta = run.result["delta"]["recall@10"]
    assert delta.keys() >= {"absolute", "relative", "ci_low", "ci_high", "p_value", "wins", "ties", "losses"}
    assert delta["wins"] + delta["ties"] + delta["losses"] == run.result["counts"]["queries"]["test"]
    for metric in HEADLINE:
        assert f"| {metric}" in run.output
    assert run.result["verdict"] in run.output


def test_a_test_set_of_few_documents_gives_no_verdict_and_says_so(embexp, sources):
    few = [*sources["pairs"], "dataset.split.test=0.1", "trainer.learning_rate=0.1", "trainer.max_steps=30"]
    run = embexp(*QUICK, *few)
    assert run.result["delta"]["recall@10"]["documents"] < 10
    assert run.result["verdict"] == "no difference"
    assert "too few for an interval to be trusted" in run.output


def test_the_scores_follow_from_the_files(embexp, sources):
    run = embexp(*QUICK, *sources["pairs"])
    frame = pd.read_parquet(run.folder / "retrieval" / "per_query.parquet")
    for arm in ("base", "tuned", "bm25"):
        assert frame[f"{arm}.mrr@10"].mean() == pytest.approx(run.result[arm]["test"]["mrr@10"])
    lines = [line.split() for line in (run.folder / "retrieval" / "base.test.trec").read_text().splitlines()]
    assert {line[0] for line in lines} == set(frame["query_id"])
    assert all(len(line) == 6 and line[1] == "Q0" and line[5] == "base" for line in lines)


def test_the_tuned_model_loads_with_plain_sentence_transformers_and_gives_the_same_scores(embexp, sources):
    from sentence_transformers import SentenceTransformer

    run = embexp(*QUICK, *sources["pairs"], "trainer.learning_rate=0.1", "trainer.max_steps=20")
    model = SentenceTransformer(str(run.folder / "model"))
    again = embexp("model=local", f"model.path={run.folder / 'model'}", "trainer=none", "logger=none", "limit=24",
                   *sources["pairs"])  # fmt: skip
    assert again.result["base"]["test"] == pytest.approx(run.result["tuned"]["test"])
    assert again.result["base"]["test"] != run.result["base"]["test"]
    assert model.encode("anything").shape == (16,)


def test_without_a_trainer_only_base_and_bm25_are_measured(embexp, sources):
    run = embexp("model=static", "trainer=none", "logger=none", *sources["pairs"])
    assert run.result["tuned"] is None
    assert run.result["verdict"] is None
    assert run.result["bm25"]["test"]["recall@10"] > 0.9
    assert "Base model only" in run.output
    assert not (run.folder / "model").exists()


@pytest.mark.parametrize("trainer", ["smoke", "none"])
def test_random_vectors_of_the_base_are_said_beside_the_verdict_and_in_the_report(embexp, sources, trainer):
    run = embexp("model=static", "model.dimension=16", f"trainer={trainer}", "logger=none", *sources["pairs"])
    words = "Note: the base model's vectors are random, so that being better than it says little; compare with BM25."
    assert words in run.output.split("on test (")[1]
    assert words in (run.folder / "report.md").read_text()
    if trainer == "smoke":
        trained = embexp("model=local", f"model.path={run.folder / 'model'}", "trainer=none", "logger=none",
                         *sources["pairs"])  # fmt: skip
        assert trained.result["notes"] == []
        assert "Note: " not in trained.output


@pytest.mark.parametrize(("learning_rate", "last"), [("1e-3", "Verdict: "), ("1e30", "embexp: training diverged")])
def test_how_to_upload_an_offline_run_comes_after_the_verdict_or_the_error(
    embexp, sources, monkeypatch, learning_rate, last
):
    pytest.importorskip("wandb", reason="needs the extra embexp[wandb]")
    monkeypatch.setitem(sys.modules, "openai", ModuleType("openai"))  # for which wandb advertises another product
    chosen = ["logger=wandb", "logger.mode=offline", f"trainer.learning_rate={learning_rate}"]
    run = embexp(*QUICK[:-1], *chosen, *sources["pairs"])
    before, _, after = run.output.partition("to upload this run: wandb sync ")
    assert last in before
    (kept,) = run.folder.glob("wandb/offline-run-*")
    assert after.split() == [str(kept)]


def test_several_evaluators_measure_together(embexp, sources):
    chosen = "evaluator=[retrieval,similarity,binary_classification,triplet]"
    run = embexp(*QUICK, *sources["pairs"], chosen, "metric=triplet.cosine_accuracy")
    assert run.code == 0, run.output
    delta = run.result["delta"]
    for metric in ("recall@10", "similarity.spearman_cosine", "binary_classification.cosine_ap"):
        assert delta[metric]["ci_low"] <= delta[metric]["absolute"] <= delta[metric]["ci_high"]
    assert "triplet.cosine_accuracy" in run.output


def test_the_same_seed_gives_the_same_model_and_another_seed_another(embexp, sources):
    scores = [embexp(*QUICK, *sources["pairs"], f"seed={seed}") for seed in (1, 1, 2)]
    weights = [(run.folder / "model" / "model.safetensors").read_bytes() for run in scores]
    assert weights[0] == weights[1] != weights[2]
    assert scores[0].result["base"] == scores[2].result["base"]  # the split and the base do not depend on it
    assert scores[0].result["fingerprint"] == scores[2].result["fingerprint"]


def test_dev_metrics_and_losses_are_recorded_from_the_base_on(embexp, sources):
    run = embexp(*QUICK, *sources["pairs"])
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    dev = [line for line in lines if "dev/recall@10" in line]
    assert dev[0]["step"] == 0
    assert dev[-1]["step"] == 4
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4]


def test_a_tuned_model_worse_than_the_base_on_dev_is_said_first(embexp, sources):
    trained = embexp(
        *QUICK, *sources["pairs"], "trainer.learning_rate=0.1", "trainer.max_steps=30", "model.dimension=64"
    )
    run = embexp("model=local", f"model.path={trained.folder / 'model'}", "logger=none", "trainer=smoke",
                 "trainer.learning_rate=30", "trainer.eval_strategy=no", *sources["pairs"])  # fmt: skip
    assert run.code == 0, run.output
    assert run.result["tuned"]["dev"]["recall@10"] < run.result["base"]["dev"]["recall@10"]
    report = (run.folder / "report.md").read_text()
    assert report.splitlines()[2].startswith("**The tuned model is worse than the base on dev**")
    assert "trainer.learning_rate=1e-5" in report


def test_a_loss_that_is_looked_at_later_names_the_step_that_was_wrong(embexp, sources, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "looks_at_each_loss", False)  # as on a GPU
    tiny_transformer(tmp_path / "tiny")
    wild = [
        "trainer.learning_rate=1e38",
        "trainer.max_grad_norm=0",
        "trainer.warmup_steps=0",
        "trainer.logging_steps=4",
    ]
    model = ["model=local", f"model.path={tmp_path / 'tiny'}", "trainer=smoke", "logger=none"]
    run = embexp(*model, *sources["pairs"], *wild, "trainer.max_steps=5", "trainer.eval_strategy=no")
    assert run.code == 1
    assert "training diverged at step 2: the loss is nan" in run.output


@pytest.mark.parametrize(
    ("evaluated", "rate", "steps", "words"),
    [
        ("no", "1e38", 4, "training diverged at step 2: the loss is nan"),
        ("no", "1e30", 1, "training diverged at step 1: the model gives NaN"),  # nothing comes after the last step
        ("no", "1e38", 1, "training diverged at step 1: weights are infinite"),
        ("steps", "1e38", 4, "training diverged at step 1: the model gives NaN"),
    ],
)
def test_a_diverging_training_fails_with_its_step_and_leaves_a_result(
    embexp, sources, tmp_path, evaluated, rate, steps, words
):
    tiny_transformer(tmp_path / "tiny")
    wild = [f"trainer.learning_rate={rate}", "trainer.max_grad_norm=0", "trainer.warmup_steps=0"]
    when = [f"trainer.max_steps={steps}", f"trainer.eval_strategy={evaluated}", "trainer.eval_steps=1"]
    model = ["model=local", f"model.path={tmp_path / 'tiny'}", "trainer=smoke", "logger=none"]
    run = embexp(*model, *sources["pairs"], *wild, *when)
    assert run.code == 1
    assert words in run.output
    assert "Traceback" not in run.output
    assert run.result["status"] == "failed"
    assert words in run.result["error"]
    assert not (run.folder / "model").exists()
    assert run.result["base"]["test"]["recall@10"] >= 0
    assert run.result["tuned"] is None
    assert set(KEYS) <= run.result.keys()
    report = (run.folder / "report.md").read_text()
    assert "This run failed: training diverged" in report
    assert "Verdict" not in report
    assert "No training was asked for" not in report


def test_the_default_model_with_another_path_is_not_silently_the_packaged_one(embexp, sources):
    run = embexp("model.path=/nowhere/my-model", "trainer=none", "logger=none", *sources["pairs"])
    assert run.code == 1
    assert "model.path=/nowhere/my-model is not a folder" in run.output


def test_a_folder_that_holds_a_run_is_not_written_over(embexp, sources):
    first = embexp(*QUICK, *sources["pairs"])
    before = (first.folder / "result.json").read_text()
    again = embexp(*QUICK, *sources["pairs"], f"hydra.run.dir={first.folder}")
    assert again.code == 1 or again.folder != first.folder
    assert (first.folder / "result.json").read_text() == before


def test_a_full_run_keeps_checkpoints_when_asked(embexp, sources):
    run = embexp(*QUICK, *sources["pairs"], "keep_checkpoints=true")
    kept = sorted(path.name for path in (run.folder / "checkpoints").glob("checkpoint-*"))
    assert kept == ["checkpoint-2", "checkpoint-4"]
    shutil.rmtree(run.folder)


def test_while_training_no_embeddings_of_the_base_are_held(embexp, sources, monkeypatch):
    encoders, seen = weakref.WeakSet(), []
    made, train = Encoder.__init__, training.train

    def counted(self, *arguments, **options):
        encoders.add(self)
        made(self, *arguments, **options)

    def watched(*arguments, **options):
        gc.collect()
        seen.append(len(encoders))
        return train(*arguments, **options)

    monkeypatch.setattr(Encoder, "__init__", counted)
    monkeypatch.setattr(training, "train", watched)
    run = embexp(*QUICK, *sources["pairs"], "evaluator=[retrieval,similarity]")
    assert seen == [0]
    first = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 0
    assert first["dev/similarity.spearman_cosine"] == run.result["base"]["dev"]["similarity.spearman_cosine"]


def test_checkpoints_come_as_often_as_configured_though_dev_is_looked_at_less(embexp, sources):
    every = ["trainer.max_steps=8", "trainer.eval_steps=2", "trainer.save_total_limit=9", "keep_checkpoints=true"]
    run = embexp(*QUICK, *sources["pairs"], *every, "trainer.evaluation_share=1e-9")
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "dev/recall@10" in line] == [0, 8]  # the base, and the look at the end
    checkpoints = run.folder.glob("checkpoints/checkpoint-*/complete.json")
    assert sorted(path.parent.name for path in checkpoints) == [f"checkpoint-{step}" for step in (2, 4, 6, 8)]
    assert run.result["counts"]["best_step"] == 8


def test_a_second_run_on_the_same_data_and_base_makes_nothing_anew(embexp, tmp_path):
    choices = [
        *QUICK,
        f"cache={tmp_path / 'kept'}",
        "loss=triplet",
        "negatives=hard",
        "dataset.packages=[json,logging,email]",
    ]
    first = embexp(*choices)
    entries = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*") if path.suffix != ".lock"}
    kinds = {path.parent.name for path in entries}
    assert kinds >= {"docstrings", "splits", "bm25", "embeddings", "negatives", "token_lengths"}
    second = embexp(*choices)
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*") if path.suffix != ".lock"}
    assert now == entries
    same = ("base", "tuned", "bm25", "delta", "counts", "fingerprint")
    assert {key: second.result[key] for key in same} == {key: first.result[key] for key in same}


def test_a_run_whose_cache_may_hold_nothing_leaves_it_empty_and_scores_the_same(embexp, tmp_path):
    choices = [*QUICK, "dataset.packages=[json,logging,email]", f"cache={tmp_path / 'kept'}"]
    tight, loose = embexp(*choices, "cache_size_gb=1e-6"), embexp(*choices)
    assert "of the cache removed, the longest unused" in tight.output
    assert "of the cache removed" not in loose.output
    assert tight.result["tuned"] == loose.result["tuned"]


def test_a_run_that_fails_leaves_the_cache_in_its_bounds_as_well(embexp, tmp_path, monkeypatch):
    monkeypatch.setattr("embexp.training.tuning.tune", lambda *_, **__: 1 / 0)
    choices = [*QUICK, "dataset.packages=[json,logging,email]", f"cache={tmp_path / 'kept'}"]
    failed = embexp(*choices, "cache_size_gb=1e-6")
    assert failed.result["status"] == "failed"
    assert "of the cache removed, the longest unused" in failed.output
    assert sum(path.stat().st_size for path in (tmp_path / "kept").rglob("*") if path.is_file()) <= 1000  # 1e-6 GB


def test_without_a_cache_the_scores_are_the_same(embexp, tmp_path):
    choices = [*QUICK, "negatives=hard", "loss=triplet", "dataset.packages=[json,logging,email]"]
    kept, made = embexp(*choices, f"cache={tmp_path / 'kept'}"), embexp(*choices, "cache=false")
    assert made.result["tuned"] == kept.result["tuned"]


def test_a_training_that_changes_no_score_is_noted(embexp, sources):
    run = embexp(*QUICK, *sources["pairs"], "trainer.learning_rate=1e-12")
    assert any("training has changed no score on dev" in note for note in run.result["notes"])
    assert "Note: training has changed no score on dev" in run.output


@pytest.mark.parametrize(("before", "after", "words"), [(1, 1, "recall@10 on dev is 1 already"), (0.5, 0.6, None)])
def test_a_base_that_is_at_the_top_is_not_said_to_have_been_trained_too_little(before, after, words):
    result = {"metric": "recall@10", "notes": [], "base": {"dev": {"recall@10": before}}, "merge": None}
    experiment._say_if_unmoved({**result, "tuned": {"dev": {"recall@10": after}}})
    assert len(result["notes"]) == (words is not None)
    assert all(words in note and "learning_rate" not in note for note in result["notes"])


def test_a_training_that_changes_scores_is_not(embexp, sources):
    run = embexp(*QUICK, *sources["pairs"], "trainer.learning_rate=0.1", "trainer.max_steps=20")
    assert run.result["tuned"]["dev"] != run.result["base"]["dev"]
    assert not any("changed no score" in note for note in run.result["notes"])


def test_processes_that_read_ahead_change_nothing(sources, tmp_path):
    tiny_transformer(tmp_path / "tiny")
    words = ["model=local", f"model.path={tmp_path / 'tiny'}", "trainer=smoke", "logger=none", *sources["pairs"]]
    for readers in (0, 2):
        ended = separate(
            *words, f"trainer.dataloader_num_workers={readers}", f"hydra.run.dir={readers}", folder=tmp_path
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
    one, other = (load_file(tmp_path / str(readers) / "model" / "model.safetensors") for readers in (0, 2))
    assert all(torch.equal(one[name], other[name]) for name in one)
