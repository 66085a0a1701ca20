"""Losses with a guide or with another loss inside: what they add, and what they must not own."""

from __future__ import annotations

import math

import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as library

from embexp.config.components import build
from embexp.errors import UserError
from embexp.training.losses import OWN_KEYS, gist, global_orthogonal, matryoshka
from tests.command import REPOSITORY
from tests.tiny import tiny_transformer

TEXTS = [["question about the apple", "bread"], ["the apple is known", "the bread is known"]]


@pytest.fixture
def folder(tmp_path):
    return tiny_transformer(tmp_path / "tiny")


@pytest.fixture
def model(folder):
    return SentenceTransformer(str(folder), device="cpu")


def features(model):
    return [model.preprocess(texts) for texts in TEXTS]


@pytest.mark.parametrize("name", ["margin_mse", "distill_kl"])
def test_a_teachers_scores_are_learned_by_cosines_so_that_the_length_of_embeddings_does_not_matter(model, name):
    node = yaml.safe_load((REPOSITORY / f"conf/loss/{name}.yaml").read_text())
    loss = build(node, allowed=[], without=OWN_KEYS)(model)
    columns = [torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]]), torch.tensor([[0.0, 2.0]])]  # 0.96 and 0.8
    teacher = torch.tensor([[0.9, 0.1]])
    value = float(loss.compute_loss_from_embeddings(columns, teacher))
    # the teacher is as good as sure; the student's softmax of gap 0.16 at temperature 0.05 is 1 / (1 + exp(-3.2))
    expected = {"margin_mse": (0.16 - 0.8) ** 2, "distill_kl": 0.05**2 * math.log(1 + math.exp(-3.2))}
    assert value == pytest.approx(expected[name], rel=1e-4)
    scaled = [factor * column for factor, column in zip((2.0, 3.0, 5.0), columns, strict=True)]
    assert float(loss.compute_loss_from_embeddings(scaled, teacher)) == pytest.approx(value)


@pytest.mark.parametrize("named", [False, True])
def test_a_guide_is_no_part_of_what_a_loss_owns_trains_or_switches(model, folder, named):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = gist(model, guide=str(folder) if named else None)
    own = {id(parameter) for parameter in model.parameters()}
    assert all(id(parameter) in own for parameter in loss.parameters())
    assert all(name.startswith("model.") for name in loss.state_dict())
    loss.train()
    assert not loss.guide.training
    optimizer = torch.optim.SGD(loss.parameters(), lr=10.0)
    loss(features(model), None).backward()
    optimizer.step()
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(before[name], value) for name, value in loss.guide.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loss.guide.parameters())


def test_a_guide_that_is_not_there_is_refused_with_the_setting(model):
    with pytest.raises(UserError, match=r"^loss.guide=/nowhere is not a folder\. Set loss.guide="):
        gist(model, guide="/nowhere")


def test_matryoshka_trains_the_whole_embedding_beside_the_dimensions_named(model):
    loss = matryoshka(model, inner=library.MultipleNegativesRankingLoss, dims=[4, 8])
    assert loss.matryoshka_dims == (32, 8, 4)
    with pytest.raises(UserError, match=r"loss\.dims has 64; the model's embeddings have 32 dimensions"):
        matryoshka(model, inner=library.MultipleNegativesRankingLoss, dims=[64, 8])


def test_global_orthogonal_is_the_inner_loss_plus_the_two_terms(model):
    model.eval()
    # no gradients: only the values are compared
    model.requires_grad_(False)
    both = global_orthogonal(model, inner=library.MultipleNegativesRankingLoss, mean_weight=2.0)
    inner = library.MultipleNegativesRankingLoss(model)(features(model), None)
    terms = library.GlobalOrthogonalRegularizationLoss(model, mean_weight=2.0)(features(model))
    assert float(both(features(model), None)) == pytest.approx(float(inner + sum(terms.values())), abs=1e-5)
    assert float(sum(terms.values())) > 0.01


def test_global_orthogonal_refuses_a_loss_that_keeps_its_embeddings_to_itself(model):
    with pytest.raises(UserError, match="CachedMultipleNegativesRankingLoss can't be combined with global_orthogonal"):
        global_orthogonal(model, inner=library.CachedMultipleNegativesRankingLoss)
