"""Model folders that could run code or reach outside are refused before anything is loaded; sound ones pass."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from embexp.errors import UserError
from embexp.models import sources as model_sources
from embexp.models.embedding_model import Transformer
from embexp.models.folder import refuse_unsafe
from embexp.rows.teachers import CrossEncoderScores
from tests.tiny import tiny_cross_encoder, tiny_transformer


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return tiny_transformer(tmp_path_factory.mktemp("sound") / "tiny")


@pytest.fixture
def folder(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "tiny"))


def change(file, **values):
    content = json.loads(file.read_text()) if file.exists() else {}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({**content, **values}))


def module(folder, **values):
    modules = json.loads((folder / "modules.json").read_text())
    modules[1] |= values
    (folder / "modules.json").write_text(json.dumps(modules))


def refused(folder):
    with pytest.raises(UserError) as refusal:
        refuse_unsafe(folder, "model.path=x")
    assert all(problem.startswith("model.path=x: ") for problem in refusal.value.problems)
    return str(refusal.value)


def test_a_sound_folder_passes(folder):
    change(folder / "2_Dense" / "config.json", activation_function="torch.nn.modules.activation.Tanh")
    change(folder / "config.json", activation_function="gelu_new")  # a name, as transformers has it
    change(folder / "sentence_bert_config.json", model_args={"torch_dtype": "float32"}, tokenizer_name_or_path=None)
    change(folder / "tokenizer_config.json", sp_model_kwargs={})
    (folder / "training_args.bin").write_bytes(b"")  # never read
    refuse_unsafe(folder, "x")
    Transformer(path=str(folder)).load([])


@pytest.mark.parametrize(
    "reference",
    ["evil.Model", "subprocess.Popen", "sentence_transformers.util.http_get", "sentence_transformersevil.Model", None,
     "sentence_transformers.sentence_transformer.modules.word_embeddings.torch"],
)  # fmt: skip
def test_module_classes_from_elsewhere_are_refused(folder, reference):
    module(folder, type=reference)
    assert f"modules.json names the class {reference!r}" in refused(folder)


@pytest.mark.parametrize("path", ["../other", "a/../../b", "/etc", "\\\\host\\share", "C:\\x", "..\\x", None])
def test_module_paths_that_leave_the_folder_are_refused(folder, path):
    module(folder, path=path)
    assert f"modules.json names the path {path!r}" in refused(folder)


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("config.json", {"auto_map": {"AutoModel": "evil.Model"}}, "config.json has auto_map"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}, "has auto_map"),
        ("sentence_bert_config.json", {"model_args": {"trust_remote_code": True}}, "has trust_remote_code"),
        ("2_Dense/config.json", {"activation_function": "torch.hub.load"}, "names the activation 'torch.hub.load'"),
        ("2_Dense/config.json", {"activation_function": "evil.F"}, "names the activation 'evil.F'"),
        ("0_Router/router_config.json", {"types": {"q": "evil.Model"}}, "router_config.json names the class"),
        ("0_Router/router_config.json", {"types": {"../q": "x"}}, "router_config.json names the path '../q'"),
        ("wordembedding_config.json", {"tokenizer_class": "evil.Words"}, "names the class 'evil.Words'"),
        ("sentence_bert_config.json", {"model_args": {"use_safetensors": False}}, "has model_args.use_safetensors"),
        ("sentence_bert_config.json", {"model_kwargs": {"weights_only": False}}, "has model_kwargs.weights_only"),
        ("1_T/sentence_bert_config.json", {"tokenizer_args": {"tokenizer_file": "/x"}}, "_args.tokenizer_file"),
        ("sentence_bert_config.json", {"processor_kwargs": {"subfolder": ".."}}, "has processor_kwargs.subfolder"),
        ("sentence_bert_config.json", {"config_args": {"gguf_file": "x.gguf"}}, "has config_args.gguf_file"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"x": 1}}}, "has processing_kwargs.text.x"),
        ("sentence_bert_config.json", {"tokenizer_name_or_path": "/else/where"}, "has tokenizer_name_or_path"),
        ("config.json", {"gguf_file": "/else/where.gguf"}, "has gguf_file, which reads '/else/where.gguf'"),
        ("adapter_config.json", {"base_model_name_or_path": "/else/where"}, "is an adapter of '/else/where'"),
        ("config.json", {"_attn_implementation": "someone/kernel"}, "attention code from elsewhere"),
        ("model.safetensors.index.json", {"weight_map": {"w": "../w.safetensors"}}, "names the path"),
    ],
)
def test_configs_that_name_code_or_files_from_elsewhere_are_refused(folder, file, values, words):
    change(folder / file, **values)
    assert words in refused(folder)


def test_a_pickle_in_a_module_without_safetensors_is_refused_and_not_read(folder, tmp_path):
    (folder / "1_Pooling" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    assert "1_Pooling/pytorch_model.bin may be a pickle" in refused(folder)
    with pytest.raises(UserError, match="may be a pickle"):
        Transformer(path=str(folder))
    (folder / "1_Pooling" / "model.safetensors").write_bytes(b"")  # beside one it is not read, whatever the files say
    refuse_unsafe(folder, "x")


class Evil:
    def __init__(self, marker):
        self._marker = marker

    def __reduce__(self):
        return Path.touch, (self._marker,)


@pytest.mark.parametrize("arguments", ["model_args", "model_kwargs"])
def test_a_pickle_beside_safetensors_is_not_read_even_when_the_folder_asks_and_passed_the_look(
    folder, tmp_path, monkeypatch, arguments
):
    judge = tiny_cross_encoder(tmp_path / "judge")
    for place in (folder, judge):
        torch.save(Evil(tmp_path / "ran"), place / "pytorch_model.bin")
        change(place / "sentence_bert_config.json", **{arguments: {"use_safetensors": False, "weights_only": False}})
    assert f"has {arguments}.use_safetensors, which may change what is read" in refused(folder)
    monkeypatch.setattr(model_sources, "refuse_unsafe", lambda *_: None)
    Transformer(path=str(folder)).load([])
    CrossEncoderScores(str(judge), setting="loss.teacher")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["sentence_bert_config.json", "1_Pooling/config.json"])
def test_a_key_that_the_library_does_not_know_is_refused_naming_the_file(folder, file):
    change(folder / file, of_a_later_version=True)
    with pytest.raises(UserError, match=rf"{file} has 'of_a_later_version', which the installed sentence-transformers"):
        Transformer(path=str(folder)).load([])


def test_a_key_that_the_library_does_not_know_is_refused_in_a_cross_encoder_too(tmp_path):
    judge = tiny_cross_encoder(tmp_path / "judge")
    change(judge / "sentence_bert_config.json", of_a_later_version=True)
    with pytest.raises(UserError, match=r"loss.teacher=.*sentence_bert_config.json has 'of_a_later_version'"):
        CrossEncoderScores(str(judge), setting="loss.teacher")


def test_links_out_of_the_folder_are_refused(folder, tmp_path):
    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "config.json").symlink_to("../config.json")
    assert "config.json is a link that leads out" in refused(folder)


def test_a_snapshot_of_the_hubs_cache_links_to_its_own_blobs_only(folder, tmp_path):
    repository = tmp_path / "models--a--b"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    snapshot = folder.rename(repository / "snapshots" / "c0ffee")
    (snapshot / "config.json").rename(repository / "blobs" / "abc")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    refuse_unsafe(snapshot, "x")
    (tmp_path / "secret").write_text("{}")
    (snapshot / "other.json").symlink_to("../../../secret")
    assert "other.json is a link that leads out" in refused(snapshot)
