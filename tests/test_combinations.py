"""Whatever fits together trains: losses, shapes, negatives, teachers, data sets and models, by the real command."""

import json

import pytest
import yaml

from embexp.config.checks import CONFIG_FOLDER
from tests.command import QUICK, REPOSITORY
from tests.tiny import tiny_cross_encoder, tiny_transformer

PUBMEDQA = REPOSITORY.parent / "shared" / "data" / "PubMedQA"
FILES = {path.stem: yaml.safe_load(path.read_text()) for path in (CONFIG_FOLDER / "loss").glob("*.yaml")}
AROUND_ANOTHER = ["matryoshka", "global_orthogonal"]
LOSSES = [(loss, shape) for loss in sorted(FILES) if loss not in AROUND_ANOTHER for shape in FILES[loss]["accepts"]]


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


SECOND_LOOK = {"random": "model", "bm25": "model", "hard": "bm25", "both": None}


@pytest.mark.parametrize("negatives", SECOND_LOOK)
def test_mnrl_takes_three_negatives_of_each_kind_and_they_are_counted(embexp, sources, negatives):
    chosen = ["loss=mnrl", "loss.shape=n_tuple", f"negatives={negatives}", "negatives.per_query=3"]
    run = embexp(*QUICK, *sources["pairs"], *chosen)
    assert run.code == 0, run.output
    counted = run.result["counts"]["negatives"]
    assert counted["drawn"] == 3 * run.result["counts"]["queries"]["train"]
    assert counted["second_look"] == SECOND_LOOK[negatives]
    if SECOND_LOOK[negatives] is not None:
        assert counted["looked_at"] == counted["drawn"]
        assert 0 <= counted["doubtful"] <= 1
    for text in (run.output, (run.folder / "report.md").read_text()):
        assert f"Negatives: {counted['drawn']} found" in text


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (["negatives=hard"], "loss.shape=triplet uses them"),
        (["negatives.per_query=2"], "loss.shape=triplet uses them"),
        (["negatives=hard", "loss=global_orthogonal", "loss.accepts=[pair]"], "loss=triplet would use them"),
        ([], None),
        (["negatives=none"], None),
        (["negatives=hard", "loss.shape=triplet"], None),
    ],
)
def test_negatives_that_were_asked_for_and_are_not_used_are_said(embexp, sources, chosen, said):
    run = embexp(*QUICK, *FEW_STEPS, *sources["pairs"], *chosen)
    assert run.code == 0, run.output
    notes = [note for note in run.result["notes"] if "negatives" in note]
    assert len(notes) == (said is not None)
    for text in (*run.output.split("Verdict"), (run.folder / "report.md").read_text()):
        assert ("the negatives asked for are not used" in text) == (said is not None)
        assert said is None or said in text


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
    assert not any("teacher" in note for note in run.result["notes"])
    own = embexp(*QUICK, *FEW_STEPS, *sources["pairs"], "loss=margin_mse")
    (note,) = (note for note in own.result["notes"] if "teacher" in note)
    assert "the base model's own scores, which teaches it nothing new" in note
    assert f"Note: {note}." in own.output.split("Verdict")[1]
    assert f"Note: {note}." in (own.folder / "report.md").read_text()
    missing = embexp(*QUICK, *FEW_STEPS, *sources["pairs"], "loss=margin_mse", "loss.teacher=nobody/nothing")
    assert missing.code == 1
    assert "Set loss.teacher= to a local folder" in missing.output


@pytest.mark.parametrize("loss", ["margin_mse", "distill_kl"])
def test_gpl_learns_a_cross_encoders_margins_on_what_keywords_and_the_model_find(embexp, sources, tmp_path, loss):
    path = tiny_cross_encoder(tmp_path / "judge")
    chosen = ["experiment=gpl", f"loss={loss}", f"loss.teacher={path}"]
    run = embexp(*chosen, *QUICK, *FEW_STEPS, *sources["pairs"])
    assert run.code == 0, run.output
    assert run.result["counts"]["negatives"]["found_by"] == "both"
    assert run.result["counts"]["negatives"]["drawn"] == 4 * run.result["counts"]["queries"]["train"]
    assert run.result["fingerprint"]["helpers"]["loss.teacher"]["path"] == str(path)
    assert "by BM25 and the base model in turn" in (run.folder / "report.md").read_text()
    missing = embexp("experiment=gpl", *QUICK, *FEW_STEPS, *sources["pairs"])
    assert missing.code == 1
    assert "Set loss.teacher= to a local folder" in missing.output


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


@pytest.mark.skipif(not PUBMEDQA.is_dir(), reason="the copy of PubMedQA is not beside this checkout")
def test_pubmedqa_runs_from_a_local_copy(embexp):
    run = embexp(*QUICK, "dataset=pubmedqa", f"dataset.path={PUBMEDQA}", "dataset.name=pqa_labeled", "limit=null")
    assert run.result["counts"]["queries"] == {"train": 700, "dev": 100, "test": 200}
    assert run.result["counts"]["passages"] == {"train": 3358, "dev": 3358, "test": 3358}
