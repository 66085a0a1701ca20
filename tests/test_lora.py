"""Low-rank updates of a transformer: what is trained, what is left of them, and what is said without peft."""

from __future__ import annotations

import importlib.util
import json
from functools import partial

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from embexp.config.experiment import mistakes_in
from embexp.encoding.encoder import Encoder
from embexp.errors import UserError
from embexp.models.embedding_model import Static, Transformer
from embexp.models.lora import INSTALL, Lora
from embexp.models.low_rank import low_rank
from embexp.training.tuning import save
from tests.attempts import Ending, at_file_event, attempt, configured
from tests.conftest import TOPICS
from tests.test_adapters import PASSAGES, trained
from tests.test_config import composed
from tests.tiny import tiny_transformer

needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="peft is not installed (the extra embexp[lora])"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_transformer(tmp_path_factory.mktemp("tiny") / "tiny")


def load(folder, **lora):
    return Transformer(path=str(folder), peft="lora", lora=Lora(**lora)).load([])


@needs_peft
def test_at_first_the_model_is_as_it_was_and_only_the_new_matrices_are_trained(tiny):
    model = load(tiny, rank=4)
    before = Encoder(model).passages(PASSAGES)
    with low_rank(model, seed=0):
        assert np.array_equal(Encoder(model).passages(PASSAGES), before)
        trains = {name: tuple(each.shape) for name, each in model.model.named_parameters() if each.requires_grad}
    # two layers of 32 dimensions, of each query and value, of each A (4 x 32) and B (32 x 4)
    assert sorted(trains.values()) == [(4, 32)] * 4 + [(32, 4)] * 4
    assert {name.split(".")[-4] for name in trains} == {"query", "value"}


@needs_peft
def test_the_trained_model_has_the_parts_and_the_vectors_that_it_was_trained_to(tiny, tmp_path):
    model = load(tiny, rank=4, target_modules=["dense"])
    weights = {name: value.clone() for name, value in model.model.state_dict().items()}
    before = Encoder(model).passages(PASSAGES)
    with low_rank(model, seed=0):
        trained(model, tmp_path / "run")
        unmerged = Encoder(model).passages(PASSAGES)
    assert list(model.model.state_dict()) == list(weights)
    changed = {
        name.split(".")[-2] for name, value in model.model.state_dict().items() if (value != weights[name]).any()
    }
    assert changed == {"dense"}
    assert Encoder(model).passages(PASSAGES) == pytest.approx(unmerged, abs=1e-5)
    assert abs(unmerged - before).max() > 0.01
    assert all(value.requires_grad for value in model.model.parameters())
    save(model, tmp_path / "model", run="a run")
    assert not list((tmp_path / "model").rglob("adapter*"))
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert loaded.encode(PASSAGES, normalize_embeddings=True) == pytest.approx(unmerged, abs=1e-5)


@needs_peft
def test_the_seed_decides_what_the_matrices_start_as(tiny):
    model, found = load(tiny), []
    for seed in (1, 1, 2):
        with low_rank(model, seed=seed):
            found.append(next(each.clone() for name, each in model.model.named_parameters() if "lora_A" in name))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@needs_peft
def test_layers_that_the_model_has_not_are_refused_with_those_that_it_has(tiny):
    words = r"target_modules=\['q_proj'\].*Name some of the model's: .*key, .*query"
    with pytest.raises(UserError, match=words), low_rank(load(tiny, target_modules=["q_proj"]), seed=0):
        pass


@needs_peft
def test_a_model_without_a_transformer_is_refused(tiny, tmp_path):
    static = Static(dimension=8).load(TOPICS)
    save(static, tmp_path / "static", run="a run")
    words = r"is for transformers, and the model .* has none; set model\.peft=null"
    with pytest.raises(UserError, match=words), low_rank(load(tmp_path / "static"), seed=0):
        pass


@needs_peft
def test_a_killed_training_goes_on_to_the_same_weights(pairs, tiny, tmp_path):
    data = ["dataset=pairs", f"dataset.path={pairs}", "dataset.columns.group=group"]
    config = configured(
        *data, "model=local", f"model.path={tiny}", "model.peft=lora", "paraphrase=null", "trainer.max_steps=9"
    )
    assert attempt(config, tmp_path / "whole") == 0
    assert json.loads((tmp_path / "whole" / "result.json").read_text())["counts"]["steps"] == 9
    assert attempt(config, tmp_path / "run", before=partial(at_file_event, 3, where="/checkpoint-6")) < 0
    assert [file.parent.name for file in (tmp_path / "run").glob("checkpoints/*4/trained.safetensors")]
    assert attempt(config, tmp_path / "run") == 0
    assert Ending.of(tmp_path / "run") == Ending.of(tmp_path / "whole")


def test_without_peft_a_run_ends_before_it_has_begun(tiny, monkeypatch):
    usual = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: usual(name, *more) if name != "peft" else None)
    with pytest.raises(UserError) as raised:
        Transformer(path=str(tiny), peft="lora")
    assert str(raised.value) == INSTALL
    assert Transformer(path=str(tiny), lora=Lora()).load([]).lora is None


def test_numbers_that_make_no_matrix_and_an_adapter_beside_are_refused():
    with pytest.raises(UserError, match="rank=0, alpha=32"):
        Lora(rank=0)
    (problem,) = mistakes_in(composed("model.peft=lora", "model.adapter=mlp"))
    assert problem.startswith("model.adapter=mlp leaves the model as it is, and model.peft=lora does not")
    (problem,) = mistakes_in(composed("model.lora.rank=many"))
    assert problem == "model.lora.rank='many' must be a whole number"
