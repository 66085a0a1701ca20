"""Embeddings equal the library's own, in the order asked, with prompts, and each text is embedded once."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from embexp import cache
from embexp.cache import kept_in
from embexp.encoding import encoder as encoding, parts, tokens
from embexp.encoding.encoder import Encoder
from embexp.encoding.tokens import count_truncated, token_lengths
from embexp.errors import UserError
from embexp.models.embedding_model import Static, Transformer
from embexp.rows.shapes import Rows
from embexp.training import fine_tuning as training
from tests.conftest import TOPICS
from tests.tiny import tiny_transformer

PROMPTS = {"query": "query : ", "passage": "passage : "}
TEXTS = ["the apple", "a question about the size of a very large horse and its colour", "igloo", "bread is known", "?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_transformer(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def load(folder):
    return lambda **options: Transformer(path=str(folder), **{"dtype": "float32", **options}).load([])


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_rows_equal_the_librarys_encode_in_the_order_of_the_texts(folder, load):
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    assert Encoder(load()).passages(TEXTS) == pytest.approx(expected, abs=1e-5)


def test_rows_do_not_depend_on_how_texts_are_cut_into_parts(load, monkeypatch):
    texts = [" ".join(["the apple is known"] * (1 + number % 7)) + f" {number}" for number in range(30)]
    model = load()
    whole = Encoder(model).passages(texts)
    shapes = []
    model.model[0].register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0]["input_ids"].shape)))
    monkeypatch.setattr("embexp.encoding.parts.TOKENS", 40)
    monkeypatch.setattr(parts, "TOKENISED", 8)
    monkeypatch.setattr(parts, "AHEAD", 2)
    assert Encoder(model).passages(texts) == pytest.approx(whole, abs=1e-6)
    assert len(shapes) > 10
    assert sum(rows for rows, _ in shapes) == 30
    assert all(rows * tokens <= 40 for rows, tokens in shapes)


def test_an_error_in_a_part_is_raised_and_the_threads_are_as_before(load):
    model = load()
    model.model[1].register_forward_pre_hook(lambda *_: 1 / 0)
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        Encoder(model).passages(TEXTS)
    assert torch.get_num_threads() == before


def test_prompts_are_put_before_queries_and_before_passages(folder, load):
    plain, encoder = SentenceTransformer(str(folder), device="cpu"), Encoder(load(prompts=PROMPTS))
    assert encoder.queries(TEXTS) == pytest.approx(plain.encode([f"query : {text}" for text in TEXTS]), abs=1e-5)
    assert encoder.passages(TEXTS) == pytest.approx(plain.encode([f"passage : {text}" for text in TEXTS]), abs=1e-5)
    assert np.abs(encoder.queries(TEXTS) - encoder.passages(TEXTS)).max() > 1e-3


def test_bfloat16_changes_embeddings_by_noise_only_and_leaves_unit_float32(load):
    exact = Encoder(load()).passages(TEXTS)
    rough = Encoder(load(dtype="bfloat16")).passages(TEXTS)
    assert (exact * rough).sum(axis=1).min() > 0.999
    assert np.abs(exact - rough).max() > 1e-6  # bfloat16 was in fact used
    assert rough.dtype == np.float32
    assert np.linalg.norm(rough, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)


def test_each_text_is_embedded_once_per_prompt(load, monkeypatch):
    asked = []
    embedded = encoding.embedded
    monkeypatch.setattr(
        encoding,
        "embedded",
        lambda model, texts, *rest, **task: asked.append(texts) or embedded(model, texts, *rest, **task),
    )
    encoder = Encoder(load(prompts=PROMPTS))
    first = encoder.passages(["the apple", "bread", "the apple"])
    again = encoder.passages(["bread", "the chair", "the apple"])
    encoder.queries(["bread"])
    assert asked == [["the apple", "bread"], ["the chair"], ["bread"]]
    assert np.array_equal(first[[1, 0]], again[[0, 2]])


def test_what_is_remembered_is_given_out_and_not_copied(load):
    encoder = Encoder(load())
    rows = encoder.passages(TEXTS)
    assert np.shares_memory(encoder.passages(TEXTS), rows)
    assert np.shares_memory(encoder.passages(TEXTS[1:3]), rows[1:3])
    assert np.array_equal(encoder.passages(TEXTS[1:3]), rows[1:3])
    more = encoder.passages(["the horse", *TEXTS[::-1], "the chair", "the horse"])
    assert np.array_equal(more[1:6], rows[::-1])
    assert np.array_equal(more[[0, 6, 7]], encoder.passages(["the horse", "the chair", "the horse"]))
    assert np.array_equal(encoder.passages(["the chair"]), more[[6]])
    assert encoder.passages([]).shape == (0, 32)


def test_a_corpus_with_repeated_texts_is_given_out_as_it_is_kept_a_memory_map_too(load, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MAPPED_FROM", 100)
    texts = ["the apple", *TEXTS, "igloo", "the apple"]
    model = load()
    with kept_in(tmp_path):
        for _ in range(2):
            encoder = Encoder(model, content=model.origin["content"])
            rows = encoder.passages(texts)
            assert isinstance(rows, np.memmap)
            assert np.shares_memory(encoder.passages(texts), rows)
            assert np.array_equal(rows, encoder.passages(TEXTS)[[0, 0, 1, 2, 3, 4, 2, 0]])
            more = encoder.passages(["bread", "igloo", "bread", "?"])  # bread is new
            assert np.array_equal(more[[1, 3]], rows[[3, 5]])
            assert np.array_equal(more[[0, 2]], encoder.passages(["bread", "bread"]))


def test_nan_and_collapse_are_seen_in_every_part_of_many_rows(monkeypatch):
    monkeypatch.setattr(encoding, "ROWS_AT_ONCE", 2)
    rows = np.eye(5, dtype=np.float32)
    # only the first part is all equal
    encoding._refuse_unusable(np.vstack([rows[[0, 0]], rows]), different=7, beside=rows[0])
    with pytest.raises(UserError, match="all 5 texts the same"):
        encoding._refuse_unusable(np.tile(rows[0], (5, 1)), different=5, beside=rows[0])
    rows[4, 0] = np.nan
    with pytest.raises(UserError, match="NaN or infinite embeddings for 1 of 5 texts"):
        encoding._refuse_unusable(rows, different=5, beside=rows[0])


def test_embeddings_kept_are_not_those_of_a_model_whose_pooling_alone_changed(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    pooling = other / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace('"mean"', '"cls"'))

    def embedded(place):
        model = Transformer(path=str(place), dtype="float32").load([])
        return Encoder(model, content=model.origin["content"]).passages(TEXTS)

    with kept_in(tmp_path / "cache"):
        first, second = embedded(folder), embedded(other)
        assert np.array_equal(embedded(folder), first)
    assert np.abs(first - second).max() > 1e-2
    assert second == pytest.approx(SentenceTransformer(str(other), device="cpu").encode(TEXTS), abs=1e-5)


def test_encoding_leaves_a_model_in_training_in_training(load):
    model = load()
    model.model.train()
    first = Encoder(model).passages(TEXTS)
    assert model.model.training
    assert np.array_equal(first, Encoder(model).passages(TEXTS))  # dropout was off meanwhile


def test_two_new_texts_that_read_alike_are_no_collapse(load):
    encoder = Encoder(load())
    encoder.passages(["the apple", "the bread"])
    rows = encoder.queries(["Red apple?", "red apple?"])
    assert rows[0] == pytest.approx(rows[1], abs=1e-6)


def test_one_question_asked_three_times_is_no_collapse(load):
    assert len(Encoder(load()).queries(["the apple"] * 3)) == 3


@pytest.mark.parametrize("full", ["query", "passage"])
def test_texts_that_a_prompt_leaves_no_room_for_are_refused(load, full):
    words = "the size and colour of the apple : "  # with [CLS] more than 8 tokens hold
    encoder = Encoder(load(prompts={"query": "", "passage": "", full: words}, max_seq_length=8))
    usual, filled = encoder.passages, encoder.queries
    if full == "passage":
        usual, filled = filled, usual
    usual(TEXTS)
    with pytest.raises(UserError, match=r"all 5 texts the same embedding.*a prompt may fill model\.max_seq_length"):
        filled(TEXTS)
    filled(TEXTS[:2])  # two may be alike
    with pytest.raises(UserError, match="all 3 texts the same embedding"):
        filled(TEXTS)  # an earlier one and three more may not


def test_where_embeddings_are_compared_is_known_without_the_model(load):
    model = replace(load(), loaded=None)  # asked for, it would fail
    assert Encoder(model).device == torch.device("cpu")


def test_a_transformer_that_gives_one_vector_for_all_is_refused(load):
    model = load()
    with torch.no_grad():
        model.model[0].auto_model.encoder.layer[-1].output.LayerNorm.weight.zero_()
        model.model[0].auto_model.encoder.layer[-1].output.LayerNorm.bias.fill_(1.0)
    with pytest.raises(UserError, match="all 5 texts the same embedding"):
        Encoder(model).passages(TEXTS)


def test_lengths_of_many_texts_by_their_words_are_those_of_the_texts_whole(load, monkeypatch):
    model = load(prompts=PROMPTS, max_seq_length=20)
    texts = [f"the {word}, {word}s and\n the size of  it: {place}." * (place % 5) for place, word in enumerate(TOPICS)]
    columns = {"anchor": ["apple", "", *TOPICS[2:]], "positive": texts}
    rows = Rows(columns, TOPICS, [()] * len(TOPICS))
    whole = training._lengths(model, rows)
    assert len(set(whole.tolist())) > 2
    for at_once in (3, 9):  # in parts, the last of them a rest of one
        monkeypatch.setattr(tokens, "TEXTS_AT_ONCE", at_once)
        assert training._lengths(model, rows).tolist() == whole.tolist()


def test_token_lengths_count_prompt_and_special_tokens_before_truncation(load, caplog):
    model = load(prompts=PROMPTS, max_seq_length=8)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        lengths = token_lengths(model, ["the apple", "the apple " * 5], model.passage_prompt)
    assert lengths == [6, 14]  # [CLS] passage : the apple [SEP]
    assert not caplog.records
    assert token_lengths(model, [], "") == []


def unloadable():
    raise AssertionError("the model was loaded")


def test_lengths_that_are_kept_and_those_of_no_texts_load_no_model(load, tmp_path, monkeypatch):
    loaded = load(prompts=PROMPTS)
    kept = replace(loaded, loaded=unloadable)
    other = replace(kept, origin={**loaded.origin, "content": "another model's"})
    monkeypatch.setattr(tokens, "TEXTS_AT_ONCE", 4)
    assert token_lengths(kept, [], PROMPTS["query"]) == []
    with kept_in(tmp_path):
        few, many = token_lengths(loaded, TEXTS[:3], "passage : "), tokens.lengths(loaded, TEXTS, "passage : ")
        assert token_lengths(kept, TEXTS[:3], "passage : ") == few
        assert tokens.lengths(kept, TEXTS, "passage : ").tolist() == many.tolist()
        for model, prompt in ((kept, "query : "), (other, "passage : ")):
            with pytest.raises(AssertionError, match="was loaded"):
                token_lengths(model, TEXTS[:3], prompt)


def test_passages_longer_than_the_model_reads_are_counted(toy, load):
    # [CLS] the apple is known for its apple colour and size [SEP] has 12 tokens
    assert count_truncated(load(max_seq_length=12), toy) == 0
    assert count_truncated(load(max_seq_length=11), toy) == 10


def test_a_static_model_has_unit_rows_and_truncates_nothing(toy):
    model = Static(dimension=8, vocabulary=200).load(toy.corpus.values())
    rows = Encoder(model).passages(list(toy.corpus.values()))
    assert rows == pytest.approx(unit(model.model.encode(list(toy.corpus.values()))), abs=1e-6)
    assert count_truncated(model, toy) == 0
