import json
import shutil

import pandas as pd
import pytest
import yaml

from embexp import result as results
from embexp.checks import CONFIG_FOLDER
from embexp.report import HEADLINE
from tests.command import QUICK, REPOSITORY
from tests.tiny import tiny_cross_encoder, tiny_transformer

PUBMEDQA = REPOSITORY.parent / "shared" / "data" / "PubMedQA"
FILES = {path.stem: yaml.safe_load(path.read_text()) for path in (CONFIG_FOLDER / "loss").glob("*.yaml")}
AROUND_ANOTHER = {"matryoshka": ["loss.dims=[8,4]"], "global_orthogonal": []}
LOSSES = [(loss, shape) for loss in sorted(FILES) if loss not in AROUND_ANOTHER for shape in FILES[loss]["accepts"]]


@pytest.fixture
def sources(tmp_path, pairs_file):
    """The arguments that choose each kind of data set, on small data in this folder."""
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    documents = sorted({(row["group"], row["passage"]) for row in rows})
    (beir / "corpus.jsonl").write_text("".join(json.dumps({"_id": d, "text": p}) + "\n" for d, p in documents))
    queries = [json.dumps({"_id": f"q{i}", "text": row["query"]}) + "\n" for i, row in enumerate(rows)]
    (beir / "queries.jsonl").write_text("".join(queries))
    qrels = "".join(f"q{i}\t{row['group']}\t1\n" for i, row in enumerate(rows))
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    copy = tmp_path / "PubMedQA" / "pqa_labeled"
    copy.mkdir(parents=True)
    context = [{"contexts": [f"part one of {row['passage']}", f"part two of {row['passage']}"]} for row in rows]
    frame = {"pubid": range(len(rows)), "question": [row["query"] for row in rows], "context": context}
    pd.DataFrame(frame).to_parquet(copy / "train-00000-of-00001.parquet")
    return {
        "pairs": ["dataset=pairs", f"dataset.path={pairs_file}", "dataset.columns.group=group"],
        "beir": ["dataset=beir", f"dataset.path={beir}"],
        "pubmedqa": ["dataset=pubmedqa", f"dataset.path={copy.parent}"],
        "docstrings": ["dataset=docstrings", "dataset.packages=[json,logging,email]"],
    }


@pytest.mark.parametrize("loss", ["mnrl", "triplet", "cosent", "margin_mse"])  # one of each shape
@pytest.mark.parametrize("dataset", ["pairs", "beir", "pubmedqa", "docstrings"])
def test_every_shape_is_made_from_every_data_set(embexp, sources, loss, dataset):
    run = embexp(*QUICK, f"loss={loss}", *sources[dataset])
    assert run.code == 0, run.output
    assert run.result["status"] == "completed"
    assert run.result["counts"]["steps"] == 4
    assert run.result["tuned"]["test"].keys() == run.result["base"]["test"].keys()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tiny_transformer(tmp_path_factory.mktemp("tiny"))
    return ["model=local", f"model.path={folder}", "trainer=smoke", "logger=none"]


FEW_STEPS = ["trainer.max_steps=2", "trainer.eval_strategy=no", "limit=12"]


@pytest.mark.parametrize(("loss", "shape"), LOSSES)
def test_every_loss_trains_on_every_shape_that_it_accepts(embexp, sources, tiny, loss, shape):
    model = tiny if FILES[loss].get("needs") else QUICK
    run = embexp(*model, *FEW_STEPS, *sources["pairs"], f"loss={loss}", f"loss.shape={shape}", "negatives.per_query=2")
    assert run.code == 0, run.output
    assert run.result["counts"]["steps"] == 2


def test_a_static_model_from_a_folder_is_refused_as_it_loads_by_a_loss_that_needs_a_transformer(embexp, sources):
    trained = embexp(*QUICK, *sources["pairs"])
    run = embexp("model=local", f"model.path={trained.folder / 'model'}", "trainer=smoke", "logger=none", "loss=gist",
                 *sources["pairs"])  # fmt: skip
    assert run.code == 1
    assert "this loss needs a transformer, and the model " in run.output
    assert run.result["bm25"] is None  # nothing was measured before


@pytest.mark.parametrize("inner", ["mnrl", "cached_mnrl", "gist", "triplet", "cosent", "contrastive", "distill_kl"])
def test_matryoshka_takes_any_loss_inside_and_is_scored_at_every_dimension(embexp, sources, tiny, inner):
    run = embexp(*tiny, *FEW_STEPS, *sources["pairs"], "loss=matryoshka", f"loss@loss.inner={inner}", "loss.dims=[8,4]")
    assert run.code == 0, run.output
    for arm in ("base", "tuned"):
        assert {"recall@10", "dim8.recall@10", "dim4.recall@10", "dim4.ndcg@1"} <= run.result[arm]["test"].keys()
    assert "dim8.recall@10" not in run.result["bm25"]["test"]
    report = (run.folder / "report.md").read_text()
    assert "| recall@10 by dimensions" in report
    assert [line.split()[1] for line in report.split("by dimensions")[1].splitlines()[2:5]] == ["all", "8", "4"]


def test_a_dimension_above_the_models_is_refused(embexp, sources):
    run = embexp(*QUICK, *sources["pairs"], "loss=matryoshka", "loss.dims=[32]")
    assert run.code == 1
    assert "dimensions has 32; the model's embeddings have 16" in run.output


@pytest.mark.parametrize("inner", ["mnrl", "cosent", "margin_mse"])
def test_global_orthogonal_is_added_to_any_loss_of_shared_embeddings(embexp, sources, inner):
    chosen = ["loss=global_orthogonal", f"loss@loss.inner={inner}"]
    run = embexp(*QUICK, *FEW_STEPS, *sources["pairs"], *chosen)
    assert run.code == 0, run.output
    assert run.result["config"]["loss"]["shape"] == run.result["config"]["loss"]["inner"]["shape"]


@pytest.mark.parametrize("negatives", ["random", "bm25", "hard"])
def test_mnrl_takes_three_negatives_of_each_kind_and_they_are_counted(embexp, sources, negatives):
    chosen = ["loss=mnrl", "loss.shape=n_tuple", f"negatives={negatives}", "negatives.per_query=3"]
    run = embexp(*QUICK, *sources["pairs"], *chosen)
    assert run.code == 0, run.output
    counted = run.result["counts"]["negatives"]
    assert counted["drawn"] == 3 * run.result["counts"]["queries"]["train"]
    assert counted["second_look"] == {"random": "model", "bm25": "model", "hard": "bm25"}[negatives]
    assert counted["looked_at"] == counted["drawn"]
    assert 0 <= counted["doubtful"] <= 1
    for text in (run.output, (run.folder / "report.md").read_text()):
        assert f"Negatives: {counted['drawn']} found" in text


def test_pairs_train_without_negatives_and_labelled_pairs_without_any_are_refused(embexp, sources):
    run = embexp(*QUICK, *FEW_STEPS, *sources["pairs"], "negatives=none")
    assert run.code == 0, run.output
    assert run.result["counts"]["negatives"] is None
    refused = embexp(*QUICK, *FEW_STEPS, *sources["pairs"], "negatives=none", "loss=contrastive")
    assert refused.code == 1
    assert "all rows of shape labelled_pair have the same label" in refused.output


def test_a_cross_encoder_teaches_and_judges_negatives(embexp, sources, tmp_path):
    path = tiny_cross_encoder(tmp_path / "judge")
    chosen = ["loss=margin_mse", f"loss.teacher={path}", "negatives=hard", f"negatives.rescorer={path}"]
    run = embexp(*QUICK, *FEW_STEPS, *sources["pairs"], *chosen)
    assert run.code == 0, run.output
    assert run.result["counts"]["negatives"]["second_look"] == "bm25"
    own = embexp(*QUICK, *FEW_STEPS, *sources["pairs"], "loss=margin_mse")
    assert "no teacher named: the base model's own scores" in own.output
    missing = embexp(*QUICK, *FEW_STEPS, *sources["pairs"], "loss=margin_mse", "loss.teacher=nobody/nothing")
    assert missing.code == 1
    assert "Set loss.teacher= to a local folder" in missing.output


def test_a_run_leaves_the_folder_that_the_design_names(embexp, sources):
    run = embexp(*QUICK, *sources["pairs"])
    assert set(results.KEYS) <= run.result.keys()
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


def test_a_loss_is_added_by_one_file(embexp, sources, tmp_path):
    own = tmp_path / "my_conf" / "loss"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(
        "_target_: sentence_transformers.sentence_transformer.losses.MegaBatchMarginLoss\n"
        "_partial_: true\nshape: pair\naccepts: [pair]\nuse_mini_batched_version: false\n"
    )
    run = embexp("--config-dir", str(own.parent), "loss=mine", *QUICK, *sources["pairs"])
    assert run.code == 0, run.output
    assert run.result["config"]["loss"]["_target_"].endswith("MegaBatchMarginLoss")


@pytest.mark.parametrize(("shape", "rows"), [("pair", 24), ("triplet", 48), ("n_tuple", 24)])
def test_mnrl_also_reads_given_negatives(embexp, sources, shape, rows):
    run = embexp(*QUICK, *sources["pairs"], f"loss.shape={shape}", "negatives.per_query=2")
    assert run.code == 0, run.output
    assert run.result["counts"]["train_rows"] == rows


def test_a_transformer_trains_with_its_prompts(embexp, sources, tmp_path):
    tiny_transformer(tmp_path / "tiny")
    run = embexp("model=local", f"model.path={tmp_path / 'tiny'}", "trainer=smoke", "logger=none", *sources["pairs"],
                 "model.prompts={query: 'ask ', passage: 'text '}", "model.max_seq_length=12",
                 "paraphrase=null")  # fmt: skip
    assert run.code == 0, run.output
    saved = json.loads((run.folder / "model" / "config_sentence_transformers.json").read_text())
    assert saved["prompts"]["query"] == "ask "
    assert saved["prompts"]["document"] == "text "


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


@pytest.mark.parametrize(
    ("evaluated", "words"),
    [("no", "training diverged at step 2: the loss is nan"), ("steps", "training diverged at step 1: the model gives")],
)
def test_a_diverging_training_fails_with_its_step_and_leaves_a_result(embexp, sources, tmp_path, evaluated, words):
    tiny_transformer(tmp_path / "tiny")
    run = embexp("model=local", f"model.path={tmp_path / 'tiny'}", "trainer=smoke", "logger=none", *sources["pairs"],
                 "trainer.learning_rate=1e38", "trainer.max_grad_norm=0", "trainer.warmup_steps=0",
                 f"trainer.eval_strategy={evaluated}", "trainer.eval_steps=1")  # fmt: skip
    assert run.code == 1
    assert words in run.output
    assert "Traceback" not in run.output
    assert run.result["status"] == "failed"
    assert words in run.result["error"]
    assert run.result["base"]["test"]["recall@10"] >= 0
    assert run.result["tuned"] is None
    assert set(results.KEYS) <= run.result.keys()
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


@pytest.mark.skipif(not PUBMEDQA.is_dir(), reason="the copy of PubMedQA is not beside this checkout")
def test_pubmedqa_runs_from_a_local_copy(embexp):
    run = embexp(*QUICK, "dataset=pubmedqa", f"dataset.path={PUBMEDQA}", "dataset.name=pqa_labeled", "limit=null")
    assert run.result["counts"]["queries"] == {"train": 700, "dev": 100, "test": 200}
    assert run.result["counts"]["passages"] == {"train": 3358, "dev": 3358, "test": 3358}


def test_a_full_run_keeps_checkpoints_when_asked(embexp, sources):
    run = embexp(*QUICK, *sources["pairs"], "keep_checkpoints=true")
    kept = sorted(path.name for path in (run.folder / "checkpoints").glob("checkpoint-*"))
    assert kept == ["checkpoint-2", "checkpoint-4"]
    shutil.rmtree(run.folder)


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
    assert kinds >= {"docstrings", "splits", "leaks", "bm25", "embeddings", "negatives", "token_lengths"}
    second = embexp(*choices)
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*") if path.suffix != ".lock"}
    assert now == entries
    same = ("base", "tuned", "bm25", "delta", "counts", "fingerprint")
    assert {key: second.result[key] for key in same} == {key: first.result[key] for key in same}


def test_without_a_cache_the_scores_are_the_same(embexp, tmp_path):
    choices = [*QUICK, "negatives=hard", "loss=triplet", "dataset.packages=[json,logging,email]"]
    kept, made = embexp(*choices, f"cache={tmp_path / 'kept'}"), embexp(*choices, "cache=false")
    assert made.result["tuned"] == kept.result["tuned"]
