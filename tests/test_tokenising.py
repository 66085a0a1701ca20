"""The fast way to a model's input gives what the library's way gives, or is not taken."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers

from embexp.encoding.tokenising import Preprocess, preprocessing, token_counts
from tests.tiny import tiny_transformer

TEXTS = ["one two three", "", "  Two\n", "three " * 400, "Ünïcode one", "one"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return SentenceTransformer(str(tiny_transformer(tmp_path_factory.mktemp("model"))), device="cpu")


def assert_same(found, usual):
    assert list(found) == list(usual)
    for name, value in usual.items():
        if torch.is_tensor(value):
            assert torch.equal(found[name], value), name
            assert found[name].dtype == value.dtype
        else:
            assert found[name] == value


@pytest.mark.parametrize("prompt", ["", "query: "])
def test_features_are_those_of_the_library(model, prompt, monkeypatch):
    usual = model.preprocess(TEXTS, prompt=prompt or None)
    preprocess = Preprocess(model, prompt)
    assert_same(preprocess(TEXTS), usual)
    monkeypatch.setattr(model, "preprocess", None)  # from now on the tokenizer alone
    assert_same(preprocess(TEXTS[::-1]), {k: v.flip(0) if torch.is_tensor(v) else v for k, v in usual.items()})


def test_training_reads_a_column_as_the_library_does(model):
    preprocess = preprocessing(model)
    for prompt in ("query: ", None, "query: "):
        assert_same(preprocess(TEXTS, prompt=prompt, task=None), model.preprocess(TEXTS, prompt=prompt))


def test_a_tokenizer_that_pads_on_the_left_is_left_to_the_library(model, monkeypatch):
    monkeypatch.setattr(model.tokenizer, "padding_side", "left")
    usual = model.preprocess(TEXTS)
    assert usual["attention_mask"][1, 0] == 0
    assert_same(Preprocess(model, "")(TEXTS), usual)


def test_a_model_that_reads_more_than_tokens_is_left_to_the_library(model, monkeypatch):
    usual = model.preprocess

    def with_more(texts, **arguments):
        return {**usual(texts, **arguments), "pixels": torch.zeros(len(texts), 3)}

    monkeypatch.setattr(model, "preprocess", with_more)
    assert Preprocess(model, "")(TEXTS)["pixels"].shape == (6, 3)


def test_the_tokenizer_is_left_as_it_was(model):
    model.preprocess(TEXTS)
    backend = model.tokenizer.backend_tokenizer
    before = backend.to_str()
    Preprocess(model, "")(TEXTS)
    token_counts(backend, TEXTS, special=True)
    assert backend.to_str() == before
    assert backend.padding is not None


def test_a_longer_text_is_counted_whole(model):
    usual = [len(ids) for ids in model.tokenizer(TEXTS, truncation=False, verbose=False)["input_ids"]]
    model.preprocess(TEXTS)  # which sets the tokenizer to cut and to pad
    counts = token_counts(model.tokenizer.backend_tokenizer, TEXTS, special=True)
    assert counts.tolist() == usual
    assert counts.max() >= 400


def test_words_are_counted_without_special_tokens():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert token_counts(tokenizer, ["a b", "", "b b a"], special=False).tolist() == [2, 0, 3]
    plain = SimpleNamespace(tokenizer=tokenizer, preprocess=lambda texts, prompt: {"input_ids": np.zeros(len(texts))})
    assert Preprocess(plain, "")(["a"])["input_ids"].tolist() == [
        0.0
    ]  # no transformer's tokenizer: the model's own way
