"""Fewer padded tokens in a step, the same gradients."""

import random
import threading

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import (
    AdaptiveLayerLoss,
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)

from embexp.data.retrieval_set import RetrievalSet
from embexp.models.embedding_model import Transformer
from embexp.rows.negatives import draw_random
from embexp.rows.shapes import to_rows
from embexp.tracking import Tracker
from embexp.training.fast_steps import parts_of_like_length
from embexp.training.fine_tuning import Task, train
from tests.tiny import tiny_cross_encoder, tiny_qwen, tiny_transformer

LIBRARY = "sentence_transformers.sentence_transformer.losses"
WORDS = ["the", "size", "and", "colour", "is", "known", "for", "its", "question"]
QUERIES = [" ".join(WORDS[: 1 + row % 3]) for row in range(40)]
PASSAGES = [" ".join(WORDS[(row + place) % 9] for place in range(1 + row * 7 % 50)) for row in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_transformer(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def model(folder):
    return SentenceTransformer(str(folder), device="cpu").eval()  # no dropout, so that two passes can be equal


def widths(model, run):
    """The shapes (rows, tokens) that reach the transformer."""
    shapes = []
    hook = model[0].register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0]["input_ids"].shape)))
    run()
    hook.remove()
    return shapes


def step(model, loss):
    model.zero_grad()
    random.seed(0)  # a loss may draw the layers that it looks at
    value = loss([model.preprocess(QUERIES), model.preprocess(PASSAGES)], None)
    value.backward()
    return value.item(), {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }


LOSSES = {
    "mnrl": MultipleNegativesRankingLoss,
    "cached": lambda model: CachedMultipleNegativesRankingLoss(model, mini_batch_size=20),
    "matryoshka": lambda model: MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), [32, 16]),
    "adaptive layers": lambda model: AdaptiveLayerLoss(model, MultipleNegativesRankingLoss(model)),
}


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_loss_and_gradients_are_those_of_one_pass(model, make):
    loss = make(model.double())  # in float32 sums in another order differ by up to 3e-5 of a gradient
    value, gradients = step(model, loss)
    with parts_of_like_length(model):
        found, parts = step(model, loss)
    assert found == pytest.approx(value, abs=1e-12)
    assert parts.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(parts[name], gradient, rtol=0, atol=1e-12)


def test_a_cross_encoders_loss_and_gradients_are_those_of_one_pass(tmp_path):
    model = CrossEncoder(str(tiny_cross_encoder(tmp_path / "tiny")), device="cpu").eval().double()
    loss, labels = BinaryCrossEntropyLoss(model), torch.tensor([row % 3 == 0 for row in range(40)])

    def stepped():
        model.zero_grad()
        value = loss([QUERIES, PASSAGES], labels)
        value.backward()
        return value.item(), {name: weight.grad.clone() for name, weight in model.named_parameters()}

    value, gradients = stepped()
    found = []
    with parts_of_like_length(model, tokens=100, output="scores"):
        shapes = widths(model, lambda: found.append(stepped()))
    assert len(shapes) > 5
    assert found[0][0] == pytest.approx(value, abs=1e-12)
    assert all(torch.allclose(found[0][1][name], gradient, atol=1e-12) for name, gradient in gradients.items())


def test_each_part_is_as_wide_as_its_own_longest_text(model):
    texts = ["the size", "the", "the size and colour is known", "the size and"]  # 4, 3, 8 and 5 tokens with both ends
    features = model.preprocess(texts)
    assert widths(model, lambda: model(dict(features))) == [(4, 8)]
    with parts_of_like_length(model, tokens=10):
        assert sorted(widths(model, lambda: model(dict(features)))) == [(1, 3), (1, 8), (2, 5)]


def test_embeddings_come_back_in_the_order_of_the_texts(model):
    whole = model(model.preprocess(PASSAGES))["sentence_embedding"]
    with parts_of_like_length(model, tokens=60):
        parts = model(model.preprocess(PASSAGES))["sentence_embedding"]
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


def test_padding_on_the_left_is_cut_on_the_left(model):
    model.tokenizer.padding_side = "left"
    with parts_of_like_length(model, tokens=1):  # a text to a part
        parts = model(model.preprocess(PASSAGES))["sentence_embedding"]
    alone = torch.cat([model(model.preprocess([text]))["sentence_embedding"] for text in PASSAGES])
    torch.testing.assert_close(parts, alone, rtol=0, atol=1e-6)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_two_threads_give_bit_for_bit_the_same_gradients_each_time(model, two_threads):
    def gradients():
        with parts_of_like_length(model, tokens=60):
            return step(model, MultipleNegativesRankingLoss(model))

    value, first = gradients()
    for _ in range(5):
        again, second = gradients()
        assert again == value
        assert all(torch.equal(second[name], first[name]) for name in first)


def test_several_parts_are_under_way_at_once(model, two_threads):
    met = threading.Barrier(2, timeout=20)  # broken, and so an error, when one part waits for the other
    hook = model[0].register_forward_pre_hook(lambda *_: (met.wait(), None)[1])
    with parts_of_like_length(model, tokens=20):  # 4 + 4 + 5 tokens, then 5 + 5
        model(model.preprocess(["the size", "the size", "the size and", "the size and", "the size and"]))
    hook.remove()


def test_with_a_dropout_inside_the_attention_function_one_part_comes_after_the_other(tmp_path, two_threads):
    qwen = SentenceTransformer(str(tiny_qwen(tmp_path / "qwen", attention_dropout=0.2)), device="cpu").train()
    threads = set()
    hook = qwen[0].register_forward_pre_hook(lambda *_: (threads.add(threading.get_ident()), None)[1])
    with parts_of_like_length(qwen, tokens=20):
        qwen(qwen.preprocess(PASSAGES))
    hook.remove()
    assert threads == {threading.get_ident()}


class Shifted(torch.nn.Module):
    """Adds the sum of two weights, for both of which autograd returns one and the same gradient."""

    def __init__(self):
        super().__init__()
        self.one, self.other = (torch.nn.Parameter(torch.zeros(32)) for _ in range(2))

    def forward(self, features):
        return {**features, "sentence_embedding": features["sentence_embedding"] + (self.one + self.other)}


def test_one_gradient_that_autograd_returns_for_two_weights_is_added_once_to_each(model, two_threads):
    model.append(Shifted())
    loss = MultipleNegativesRankingLoss(model.double())
    _, gradients = step(model, loss)
    with parts_of_like_length(model, tokens=60):
        _, parts = step(model, loss)
    for name in ("3.one", "3.other"):
        torch.testing.assert_close(parts[name], gradients[name], rtol=0, atol=1e-12)


def test_tables_of_words_get_plain_gradients_and_keep_their_setting(model):
    with parts_of_like_length(model, tokens=60):
        step(model, MultipleNegativesRankingLoss(model))
    words = model[0].auto_model.embeddings.word_embeddings
    assert not words.weight.grad.is_sparse
    assert not words.sparse
    unseen = model.tokenizer.convert_tokens_to_ids("igloo")
    assert words.weight.grad[unseen].abs().max() == 0


def test_weights_that_are_not_trained_get_no_gradient(model):
    for weights in model[0].auto_model.embeddings.parameters():
        weights.requires_grad = False
    with parts_of_like_length(model, tokens=60):
        _, gradients = step(model, MultipleNegativesRankingLoss(model))
    assert gradients
    assert not any("embeddings" in name for name in gradients)


def test_the_forward_that_was_there_before_is_there_after(model):
    with parts_of_like_length(model):
        assert "forward" in vars(model)
    assert "forward" not in vars(model)
    accelerated = model.forward = lambda features: {"sentence_embedding": torch.zeros(1)}
    with parts_of_like_length(model):
        pass
    assert model.forward is accelerated


def train_once(folder, tmp_path, loss, *, dropout=None, **parameters):
    """The shapes that reach the transformer in one step on 24 pairs, without the look for NaN at the end."""
    words = [f"{first}{second}" for first in "abcdef" for second in "ghij"]
    data = RetrievalSet(
        {f"q{word}": f"question {word}" for word in words},
        {f"p{word}": f"the {word} is known" for word in words},
        {f"q{word}": {f"p{word}": 1} for word in words},
        {f"p{word}": word for word in words},
    )
    embedding_model = Transformer(path=str(folder), dropout=dropout).load([])

    def trained():
        train(
            embedding_model,
            Task(
                to_rows(data, "pair", negatives=draw_random, seed=0),
                data,
                loss={"_target_": f"{LIBRARY}.{loss}", "_partial_": True, **parameters},
                allowed_packages=[],
                arguments={"per_device_train_batch_size": 24, "max_steps": 1, "eval_strategy": "no"}
                | {"use_cpu": True, "num_train_epochs": 1, "logging_steps": 1},
                metric="recall@10",
                seed=0,
                folder=tmp_path,
                made_from="test",
            ),
            dev_metrics=dict,
            tracker=Tracker(tmp_path, None),
        )

    return widths(embedding_model.model, trained)[:-1]


def test_training_on_a_cpu_embeds_in_parts(folder, tmp_path, two_threads):
    shapes = train_once(folder, tmp_path, "MultipleNegativesRankingLoss")
    assert [rows for rows, _ in shapes] == [12, 12, 12, 12]  # 24 queries, then 24 passages, in one batch


def test_cached_gradients_come_from_the_parts_that_were_embedded_at_first(folder, tmp_path, two_threads):
    cached = "CachedMultipleNegativesRankingLoss"
    shapes = train_once(folder, tmp_path, cached, mini_batch_size=20, dropout=0.5)  # whose draws differ in other parts
    first, again = shapes[: len(shapes) // 2], shapes[len(shapes) // 2 :]
    assert [rows for rows, _ in first] == [10, 10, 2, 2, 10, 10, 2, 2]
    assert again == first
