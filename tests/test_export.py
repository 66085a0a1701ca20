"""An export is measured again on the run's test set, kept only if it loses little, and stamped for its index."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from embexp import export, exporters, runtimes, stamp
from embexp.errors import UserError
from embexp.finished import Finished
from embexp.stamp import ReembedError
from tests.command import QUICK, REPOSITORY
from tests.tiny import tiny_transformer

TEXTS = ["please explain to me the meaning of waa", "wbc"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory, pairs):
    """A run of a small transformer with prompts."""
    folder = tmp_path_factory.mktemp("ran")
    shutil.copy(pairs, folder / "pairs.jsonl")
    tiny_transformer(folder / "tiny")
    chosen = ["model=local", "model.path=tiny", "model.prompts={query: 'query: ', passage: 'passage: '}", *QUICK[2:]]
    data = [
        "dataset=pairs",
        "dataset.path=pairs.jsonl",
        "dataset.columns.group=group",
        "trainer.learning_rate=1e-3",
        "paraphrase=null",
    ]
    call = [sys.executable, "-m", "embexp", *chosen, *data, f"hydra.run.dir={folder / 'run'}"]
    ended = subprocess.run(call, cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "run"


@pytest.fixture
def exported(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(run, name, *words, code=0):
        capfd.readouterr()
        try:
            export.main([str(run), f"format={name}", "out=made", *words])
            ended = 0
        except SystemExit as end:
            ended = end.code
        out, err = capfd.readouterr()
        assert ended == code, out + err
        return tmp_path / "made", out if not code else err

    return call


def needs(name):
    for package in exporters.FORMATS[name].needs:
        pytest.importorskip(package, reason=f"{package} is not installed (the extra embexp[export])")


def embedded(folder, texts):
    """As a query, by whatever serves this export."""
    if (folder / "model.safetensors").exists():
        model = SentenceTransformer(str(folder), model_kwargs={"dtype": torch.float32})
        return model.encode_query(texts, normalize_embeddings=True)
    return runtimes.load(folder).encode_query(texts)


@pytest.mark.parametrize("name", exporters.FORMATS)
def test_an_export_embeds_as_the_model_does_and_its_scores_stand_beside_it(ran, exported, name):
    needs(name)
    folder, out = exported(ran, name, "max_loss=0.2")
    report, result = json.loads((folder / "export.json").read_text()), json.loads((ran / "result.json").read_text())
    assert report["before"] == pytest.approx(result["tuned"]["test"])
    metric = report["metric"]
    delta = report["delta"][metric]
    assert delta["absolute"] == pytest.approx(report["after"][metric] - report["before"][metric])
    assert delta["ci_low"] <= delta["absolute"] <= delta["ci_high"]
    assert report["queries"] == result["counts"]["queries"]["test"]
    assert f"| {metric}" in out

    original = SentenceTransformer(str(ran / "model")).encode_query(TEXTS, normalize_embeddings=True)
    found = embedded(folder, TEXTS)
    assert np.einsum("ij,ij->i", original, found) == pytest.approx([1, 1], abs=0.05 if name == "onnx_int8" else 1e-4)
    assert report["least_cosine"] > (0.9 if name == "onnx_int8" else 0.999)
    if name != "onnx_int8":
        assert stamp.check(folder, ran / "model" / "embexp.json")["format"] == name
        assert "needs no new embeddings" in out
    card = (folder / "README.md").read_text()
    assert f"This is an export ({name})" in card
    assert card.startswith((ran / "model" / "README.md").read_text()[:200])


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_texts_of_any_length_and_number_are_embedded_alike_alone_and_together(ran, exported, name):
    needs(name)
    model = runtimes.load(exported(ran, name)[0])
    texts = ["a", "the apple is known", "word " * 200]  # the last is cut at 64 tokens
    together = model.encode_document(texts)
    alone = np.concatenate([model.encode_document([text]) for text in texts])
    right = SentenceTransformer(str(ran / "model")).encode_document(texts, normalize_embeddings=True)
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx(right, abs=1e-5)
    assert model.encode_document([]).shape == (0, 32)


def test_half_precision_halves_the_weights(ran, exported):
    folder, _ = exported(ran, "fp16")
    ratio = (folder / "model.safetensors").stat().st_size / (ran / "model" / "model.safetensors").stat().st_size
    assert 0.45 < ratio < 0.6


@pytest.fixture
def broken(monkeypatch):
    """fp16, but its weights are noise."""

    def write(model, folder):
        torch.manual_seed(0)
        with torch.no_grad():
            for weights in model.model.parameters():
                weights.copy_(torch.randn_like(weights))
        model.model.save_pretrained(str(folder), create_model_card=False)

    monkeypatch.setitem(exporters.FORMATS, "fp16", replace(exporters.FORMATS["fp16"], write=write))


def test_an_export_that_loses_too_much_is_not_kept(broken, ran, exported):
    folder, error = exported(ran, "fp16", code=1)
    assert "more than max_loss=0.01, and is not kept" in error
    assert "| recall@10" in error
    assert not folder.exists()
    assert list(folder.parent.iterdir()) == []


def test_an_export_with_other_vectors_needs_an_index_of_its_own(broken, ran, exported):
    folder, out = exported(ran, "fp16", "max_loss=1")
    assert "embed all passages with it" in out
    with pytest.raises(ReembedError):
        stamp.check(folder, ran / "model" / "embexp.json")
    report = json.loads((folder / "export.json").read_text())
    assert report["after"]["mrr@10"] < report["before"]["mrr@10"]


def test_a_static_model_is_halved_and_no_graph_is_made_of_it(embexp, sources, exported, monkeypatch):
    done = embexp(*QUICK, *sources["pairs"])
    exported(done.folder, "fp16", "max_loss=0.2")
    shutil.rmtree("made")
    monkeypatch.setitem(exporters.FORMATS, "onnx", replace(exporters.FORMATS["onnx"], needs=()))
    assert "this format is for transformers" in exported(done.folder, "onnx", code=1)[1]


def test_a_writer_that_changes_its_model_leaves_the_one_that_is_measured_as_it_was(ran, exported, monkeypatch):
    loaded, real = [], Finished.tuned
    monkeypatch.setattr(Finished, "tuned", lambda run: loaded.append(real(run)) or loaded[-1])
    exported(ran, "fp16")
    model, encoder = loaded[0]
    assert {weights.dtype for weights in model.model.parameters()} == {torch.float32}
    right = SentenceTransformer(str(ran / "model")).encode_query(TEXTS, normalize_embeddings=True)
    assert np.abs(encoder.queries(TEXTS) - right).max() < 1e-6  # which the cache keeps under the original's name


def test_a_missing_package_and_an_unknown_format_are_named(monkeypatch):
    monkeypatch.setattr(exporters.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=r"format=openvino needs openvino: pip install \.\[export\]"):
        exporters.refuse_missing("openvino")
    with pytest.raises(UserError, match=r"format=tflite; there are fp16: half the size"):
        exporters.refuse_missing("tflite")


def test_all_mistakes_of_a_command_line_are_told_together(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(UserError) as found:
        export.ordered([f"out={tmp_path / 'there'}", "max_los=0.1", "max_loss=lots", "changed_data=maybe"])
    starts = ["there is no max_los=; did you mean max_loss?", "name one run, there are 0", "format= must be set",
              "max_loss=lots must be a number", "changed_data=maybe", f"out={tmp_path / 'there'} is there"]  # fmt: skip
    assert [problem.startswith(start) for problem, start in zip(found.value.problems, starts, strict=True)] == [
        True
    ] * 6


def test_help_and_no_words_show_the_usage(capsys):
    for words, code in ((["--help"], 0), ([], 1)):
        with pytest.raises(SystemExit) as end:
            export.main(words)
        assert end.value.code == code
        assert "python -m embexp.export RUN format=FORMAT" in capsys.readouterr().out


def test_serving_an_export_loads_no_torch():
    code = "import sys, embexp.runtimes; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert ended.stdout.strip() == "False"


def test_a_folder_without_a_graph_is_refused_by_the_runtime(ran, tmp_path):
    with pytest.raises(UserError, match="SentenceTransformer loads it"):
        runtimes.load(ran / "model")
