"""Adapters behind a frozen base: where they start, what they train, and what is saved of them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Pooling

from embexp import stamp
from embexp.config.experiment import mistakes_in
from embexp.encoding.encoder import Encoder
from embexp.errors import UserError
from embexp.export import exporters
from embexp.models.adapters import adapter_of, layers, whole
from embexp.models.embedding_model import Transformer
from embexp.models.facts import facts_of
from embexp.reporting import usage
from embexp.reporting.card import _usage
from embexp.rows.negatives import draw_random
from embexp.rows.shapes import to_rows
from embexp.training.fine_tuning import Task, train
from embexp.training.tuning import save
from tests.attempts import Ending, at_file_event, attempt, configured
from tests.conftest import toy_set
from tests.test_config import composed
from tests.tiny import tiny_transformer

KINDS = ["linear", "mlp", "query_linear"]
MNRL = {
    "_target_": "sentence_transformers.sentence_transformer.losses.MultipleNegativesRankingLoss",
    "_partial_": True,
}
PROMPTS = {"query": "query: ", "passage": "passage: "}
TOY = toy_set()
QUERIES, PASSAGES = list(TOY.queries.values()), list(TOY.corpus.values())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_transformer(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def without_normalize(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "without"
    parts = [part for part in SentenceTransformer(str(tiny), device="cpu") if not isinstance(part, Normalize)]
    assert isinstance(parts[-1], Pooling)
    SentenceTransformer(modules=parts, device="cpu").save_pretrained(str(folder))
    return folder


def rows():
    return to_rows(TOY, "triplet", negatives=partial(draw_random, per_query=1), seed=0)


def adapter(folder, kind, **options):
    base = Transformer(path=str(folder), adapter=kind, prompts=PROMPTS, **options).load([])
    return adapter_of(base, Encoder(base), rows())


def trained(model, folder, *, steps=6):
    task = Task(
        rows(), TOY, loss=MNRL, allowed_packages=[],
        arguments={"per_device_train_batch_size": 8, "max_steps": steps, "num_train_epochs": 1, "learning_rate": 0.01}
        | {"eval_strategy": "no", "eval_steps": 2, "logging_steps": 1},
        metric="score", seed=0, folder=folder, made_from="test",
    )  # fmt: skip
    assert train(model, task, dev_metrics=dict, tracker=None).steps == steps
    return model


def dense(model):
    return [part for part in model.modules() if isinstance(part, Dense)]


@pytest.mark.parametrize("kind", KINDS)
def test_before_training_an_adapter_embeds_as_its_base_does(tiny, kind):
    model = adapter(tiny, kind)
    base, found = Encoder(model.base), Encoder(model)
    assert found.queries(QUERIES) == pytest.approx(base.queries(QUERIES), abs=1e-6)
    assert found.passages(PASSAGES) == pytest.approx(base.passages(PASSAGES), abs=1e-6)
    # the prompts are the base's: with both alike the vectors would be other ones
    assert abs(base.queries(PASSAGES) - base.passages(PASSAGES)).max() > 0.01


def test_an_mlp_is_two_residual_layers():
    # W = 2, b = 1; V = 0, c = 3: y = 1 + gelu(2 * 1 + 1), z = y + gelu(3), with gelu(3) = 3 * 0.99865 = 2.99595
    first, second, _ = layers("mlp", dimensions=1)
    with torch.no_grad():
        for layer, weight, bias in ((first, 2.0, 1.0), (second, 0.0, 3.0)):
            layer.linear.weight.fill_(weight)
            layer.linear.bias.fill_(bias)
    found = second(first({"sentence_embedding": torch.ones(1, 1)}))["sentence_embedding"]
    assert float(found.detach()) == pytest.approx(1 + 2.99595 + 2.99595, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_trained_on_vectors_it_is_what_it_would_be_with_the_base_in_the_loop(tiny, tmp_path, kind):
    on_vectors = trained(adapter(tiny, kind), tmp_path / "vectors")
    base = Transformer(path=str(tiny), prompts=PROMPTS, dropout=0.0).load([])
    frozen = base.model.requires_grad_(False).eval()
    model = SentenceTransformer(modules=[*frozen, *layers(kind, dimensions=32)], device="cpu")
    in_the_loop = replace(base, loaded=lambda: model, facts=replace(facts_of(model), routed=kind == "query_linear"))
    trained(in_the_loop, tmp_path / "loop")
    assert len(dense(model)) == len(dense(on_vectors.model)) > 0
    for one, other in zip(dense(model), dense(on_vectors.model), strict=True):
        for name, weights in one.state_dict().items():
            assert other.state_dict()[name].numpy() == pytest.approx(weights.numpy(), abs=2e-5)
    moved = abs(dense(model)[0].linear.weight - dense(layers(kind, dimensions=32)[0])[0].linear.weight).max()
    assert moved > 0.02


def test_each_text_goes_through_the_base_once(tiny, tmp_path):
    base = Transformer(path=str(tiny), adapter="linear").load([])
    texts = []
    base.model[0].register_forward_hook(lambda module, inputs, output: texts.append(len(output["attention_mask"])))
    trained(adapter_of(base, Encoder(base), rows()), tmp_path / "run", steps=20)
    assert sum(texts) == len(QUERIES) + len(PASSAGES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_is_an_ordinary_model_where_embexp_is_not(tiny, tmp_path, kind):
    model = trained(adapter(tiny, kind), tmp_path / "run")
    save(model, tmp_path / "model", run="a run")
    right = {"queries": Encoder(model).queries(QUERIES), "passages": Encoder(model).passages(PASSAGES)}
    np.savez(tmp_path / "right.npz", **right)
    (tmp_path / "texts.json").write_text(json.dumps([QUERIES, PASSAGES]))
    code = """
import json, sys
import numpy as np
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("model", device="cpu")
queries, passages = json.load(open("texts.json"))
found = model.encode_query(queries), model.encode_document(passages)
right = np.load("right.npz")
assert abs(found[0] - right["queries"]).max() < 1e-5, abs(found[0] - right["queries"]).max()
assert abs(found[1] - right["passages"]).max() < 1e-5
assert not any(name.split(".")[0] == "embexp" for name in sys.modules)
"""
    ended = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    again = Encoder(Transformer(path=str(tmp_path / "model")).load([]))
    assert again.queries(QUERIES) == pytest.approx(right["queries"], abs=1e-5)
    assert again.passages(PASSAGES) == pytest.approx(right["passages"], abs=1e-5)


@pytest.mark.parametrize("base", ["tiny", "without_normalize"])
def test_an_adapter_of_queries_leaves_passages_as_they_are_to_the_last_bit(base, request, tmp_path):
    folder = request.getfixturevalue(base)
    model = trained(adapter(folder, "query_linear"), tmp_path / "run")
    save(model, tmp_path / "model", run="a run")
    saved, before = (SentenceTransformer(str(path), device="cpu") for path in (tmp_path / "model", folder))
    passages = [PROMPTS["passage"] + text for text in PASSAGES]
    assert np.array_equal(saved.encode_document(PASSAGES), before.encode(passages))
    queries = [PROMPTS["query"] + text for text in QUERIES]
    assert abs(saved.encode_query(QUERIES) - before.encode(queries, normalize_embeddings=True)).max() > 0.01
    assert saved.encode_query(QUERIES) == pytest.approx(Encoder(model).queries(QUERIES), abs=1e-5)


def test_an_index_of_the_base_is_searched_with_an_adapter_of_queries_and_not_with_another(tiny, tmp_path):
    for kind in ("query_linear", "linear"):
        save(trained(adapter(tiny, kind), tmp_path / "run"), tmp_path / kind, run="a run")
    base = Transformer(path=str(tiny)).load([])
    index = {"content": base.origin["content"], "weights": base.origin["weights"], "dimensions": 32}
    index |= {"max_seq_length": 64, "prompts": {"query": "", "passage": "passage: "}, "run": "the base"}
    assert stamp.check(tmp_path / "query_linear", index)["routed"] is True
    for otherwise in ({"prompts": {}}, {"max_seq_length": 32}):  # the run read the base's passages with its own
        with pytest.raises(stamp.ReembedError, match=next(iter(otherwise))):
            stamp.check(tmp_path / "query_linear", index | otherwise)
    with pytest.raises(stamp.ReembedError, match="re-embed required"):
        stamp.check(tmp_path / "linear", index)


def test_the_lines_for_other_libraries_say_what_is_a_query_or_are_left_out():
    found = usage.lines(PROMPTS, routed=True)
    assert list(found) == ["sentence-transformers", "LangChain"]
    assert 'query_encode_kwargs={"task": "query", "prompt": "query: "' in found["LangChain"]
    assert 'encode_kwargs={"task": "document", "prompt": "passage: "' in found["LangChain"]
    assert "task" not in "".join(usage.lines(PROMPTS).values())
    card = _usage({"prompts": PROMPTS, "routed": True, "same_vectors_as": ["abc"]})
    assert "`encode` alone embeds passages" in card
    assert "an index made with the base needs nothing new" in card


def test_a_format_with_one_way_for_all_texts_is_refused_for_an_adapter_of_queries(tiny, tmp_path):
    save(adapter(tiny, "query_linear"), tmp_path / "model", run="a run")
    model = Transformer(path=str(tmp_path / "model")).load([])
    with pytest.raises(UserError, match="embeds queries otherwise than passages; format=fp16 takes any"):
        exporters.WRITERS["onnx"](model, tmp_path / "onnx")


def test_a_loss_that_needs_the_transformer_is_refused_for_an_adapter():
    (problem,) = mistakes_in(composed("model.adapter=linear", "loss=cached_mnrl"))
    assert "trained on the model's vectors, and this loss needs the transformer" in problem
    assert mistakes_in(composed("model.adapter=linear", "loss=cached_mnrl", "trainer=none")) == []
    (problem,) = mistakes_in(composed("model.adapter=quadratic"))
    assert problem == "model.adapter='quadratic' must be one of linear, mlp, query_linear or null"


def test_a_model_that_routes_is_trained_and_measured_by_its_two_ways(tiny, tmp_path):
    save(trained(adapter(tiny, "query_linear"), tmp_path / "run"), tmp_path / "model", run="a run")
    model = Transformer(path=str(tmp_path / "model"), prompts={"query": "", "passage": ""}).load([])
    encoder = Encoder(model)
    assert abs(encoder.queries(PASSAGES) - encoder.passages(PASSAGES)).max() > 0.01  # no prompt tells them apart
    before = dense(model.model)[0].linear.weight.detach().clone()
    trained(model, tmp_path / "again")
    assert abs(dense(model.model)[0].linear.weight - before).max() > 0.01


def test_a_killed_training_of_an_adapter_goes_on_to_the_same_weights(pairs, tiny, tmp_path):
    data = ["dataset=pairs", f"dataset.path={pairs}", "dataset.columns.group=group"]
    config = configured(
        *data, "model=local", f"model.path={tiny}", "model.adapter=mlp", "paraphrase=null", "trainer.max_steps=9"
    )
    assert attempt(config, tmp_path / "whole") == 0
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert result["counts"]["steps"] == 9
    assert attempt(config, tmp_path / "run", before=partial(at_file_event, 3, where="/checkpoint-6")) < 0
    (kept,) = {path.parent.name for path in (tmp_path / "run").glob("checkpoints/*4/trained.safetensors")}
    assert kept == "checkpoint-4"
    assert attempt(config, tmp_path / "run") == 0
    assert Ending.of(tmp_path / "run") == Ending.of(tmp_path / "whole")


def test_whole_gives_a_model_without_an_adapter_back(tiny):
    model = Transformer(path=str(tiny)).load([])
    assert whole(model) is model.model
