"""An export is measured again on the run's test set, kept only if it loses little, and stamped for its index."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from embexp import runtimes, stamp
from embexp.errors import UserError
from embexp.export import cli as export, exporters, formats
from embexp.results.finished import Finished
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
    for package in formats.FORMATS[name].needs:
        pytest.importorskip(package, reason=f"{package} is not installed (the extra embexp[export])")


def embedded(folder, texts):
    """As a query, by whatever serves this export."""
    if (folder / "model.safetensors").exists():
        model = SentenceTransformer(str(folder), model_kwargs={"dtype": torch.float32})
        return model.encode_query(texts, normalize_embeddings=True)
    return runtimes.load(folder).encode_query(texts)


@pytest.mark.parametrize("name", formats.FORMATS)
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

    monkeypatch.setitem(exporters.WRITERS, "fp16", write)


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
    monkeypatch.setitem(formats.FORMATS, "onnx", replace(formats.FORMATS["onnx"], needs=()))
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
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda package: None)
    assert formats.problem("openvino") == "format=openvino needs openvino: pip install .[export]"
    assert formats.problem("tflite").startswith("format=tflite; there are fp16: half the size")
    assert formats.problem("fp16") == ""
    assert exporters.WRITERS.keys() == formats.FORMATS.keys()


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


def test_a_format_is_checked_with_the_other_mistakes_and_without_torch(tmp_path):
    code = (
        "import re, sys; from embexp import errors; from embexp.export import cli as export\n"
        "try: export.ordered(['format=tflite', 'max_loss=lots', 'out=x'])\n"
        "except errors.UserError as e: print([re.split('[; ]', p)[0] for p in e.problems], 'torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert ended.stdout == "['name', 'format=tflite', 'max_loss=lots'] False\n", ended.stderr


def test_versions_are_those_of_the_packages_that_a_module_comes_from(monkeypatch):
    from embexp.export import exported as module

    comes_from = {
        "torch": ["torch"],
        "onnx": ["onnx"],
        "onnxscript": ["onnxscript"],
        "onnxruntime": ["onnxruntime-gpu"],
    }
    monkeypatch.setattr(module.importlib.metadata, "packages_distributions", lambda: comes_from)
    monkeypatch.setattr(module.importlib.metadata, "version", lambda package: f"of {package}")
    assert module._versions("onnx")["onnxruntime-gpu"] == "of onnxruntime-gpu"


def stamped(folder, file):
    """An export's folder without a model in it."""
    (folder / file).parent.mkdir(parents=True)
    (folder / file).touch()
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    settings = {"dimensions": 2, "max_seq_length": 8, "prompts": {"query": "", "passage": ""}, "run": "1"}
    stamp.write(folder, **settings, format="")
    return folder


def test_onnx_runs_on_the_cpu_unless_a_provider_that_is_there_is_chosen(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    chosen = []

    class Session:
        def __init__(self, file, providers):
            chosen.append(providers)

        def get_inputs(self):
            return []

    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    folder = stamped(tmp_path, "onnx/model.onnx")
    runtimes.load(folder)
    runtimes.load(folder, providers=there)
    assert chosen == [["CPUExecutionProvider"], there]
    with pytest.raises(UserError, match="this onnxruntime has no TensorrtExecutionProvider; it has CUDA"):
        runtimes.load(folder, providers=["TensorrtExecutionProvider"])


def test_threads_share_an_openvino_model(tmp_path):
    openvino = pytest.importorskip("openvino")
    from openvino import opset13 as opset

    inputs = [opset.parameter([-1, -1], np.int64, name=name) for name in ("input_ids", "attention_mask")]
    product = opset.convert(opset.multiply(*inputs), "f32")
    vectors = opset.matmul(product, product, False, True)  # (texts, texts): something that takes a while
    vectors.output(0).get_tensor().set_names({"sentence_embedding"})
    folder = stamped(tmp_path, "openvino/openvino_model.xml")
    openvino.save_model(openvino.Model([vectors], inputs), str(folder / "openvino" / "openvino_model.xml"))
    model = runtimes.load(folder)

    def embed(number):
        tokens = np.full((400, 400), number, dtype=np.int64)
        return model.run({"input_ids": tokens, "attention_mask": np.ones_like(tokens)})[0, 0]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(embed, range(64))) == [400 * number**2 for number in range(64)]


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
