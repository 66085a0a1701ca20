"""Shares of the way from base to tuned weights: what they are, which is chosen, and what is left of the model."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embexp.config.experiment import mistakes_in
from embexp.encoding.encoder import Encoder
from embexp.experiment import splits_of
from embexp.forgetting.merging import SHARES, Mixture, Scored, better, merge, shares_of, weights_of
from embexp.models.adapters import adapter_of
from embexp.models.embedding_model import Static, Transformer
from embexp.models.low_rank import low_rank
from embexp.rows.negatives import draw_random
from embexp.rows.shapes import to_rows
from tests.conftest import TOPICS, toy_set
from tests.test_config import composed
from tests.tiny import tiny_transformer

TOY = toy_set()
TEXTS = list(TOY.corpus.values())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_transformer(tmp_path_factory.mktemp("tiny") / "tiny")


def static():
    """Weights of 1 before training and of 3 after it."""
    model = Static(dimension=8).load(TOPICS)
    (weights,) = model.model.parameters()
    torch.nn.init.ones_(weights)
    before = weights_of(model)
    torch.nn.init.constant_(weights, 3.0)
    return model, weights, Mixture(model, before)


def test_a_share_of_the_change_lies_that_far_between_before_and_after():
    model, weights, mixture = static()
    for share, value in [(0.25, 1.5), (1.0, 3.0), (0.0, 1.0), (0.5, 2.0)]:
        assert mixture.take(share) is model
        assert torch.all(weights == value)


def test_all_and_nothing_of_the_change_are_the_weights_themselves_to_the_last_bit(tiny):
    model = Transformer(path=str(tiny)).load([])
    before = weights_of(model)
    with torch.no_grad():
        for weights in model.model.parameters():
            weights.mul_(1.1).add_(1e-3)
    after, mixture = weights_of(model), Mixture(model, before)
    for share, right in [(0.5, None), (0.0, before), (1.0, after)]:
        mixture.take(share)
        found = weights_of(model)
        if right is None:
            assert all(not torch.equal(found[name], after[name]) for name in found)
        else:
            assert all(torch.equal(found[name], right[name]) for name in right)


@pytest.mark.parametrize(
    ("scores", "at_least", "chosen"),
    [
        # the best on dev; among equals the smaller change, the base itself too
        ({0: (0.5, None), 0.5: (0.7, None), 1: (0.6, None)}, None, 0.5),
        ({0: (0.5, None), 0.5: (0.7, None), 1: (0.7, None)}, None, 0.5),
        ({0: (0.7, None), 0.5: (0.7, None), 1: (0.7, None)}, None, 0),
        # on the guard 0.78 is asked for: 1 has less, so that 0.5 is chosen though dev likes 1 more
        ({0: (0.5, 0.80), 0.5: (0.7, 0.78), 1: (0.9, 0.77)}, 0.78, 0.5),
        ({0: (0.5, 0.80), 0.5: (0.7, 0.78), 1: (0.9, 0.77)}, None, 1),
        # none has it: the one that loses least
        ({0.5: (0.7, 0.76), 1: (0.9, 0.70)}, 0.78, 0.5),
        ({0.5: (0.7, 0.78 - 1e-12), 1: (0.9, 0.70)}, 0.78, 0.5),
    ],
)
def test_dev_chooses_among_the_shares_that_lose_little_enough(scores, at_least, chosen):
    scored = {share: Scored(*pair) for share, pair in scores.items()}
    for other in set(scored) - {chosen}:
        assert better(chosen, other, scored, guard_at_least=at_least)
        assert not better(other, chosen, scored, guard_at_least=at_least)


@pytest.mark.parametrize(("dev", "chosen"), [({0: 1, 0.5: 3, 1: 2}, 0.5), ({0: 3, 0.5: 2, 1: 1}, 0), ({1: 2}, 1)])
def test_the_model_is_left_with_the_chosen_share_and_its_encoder_embeds_so(dev, chosen):
    model, weights, mixture = static()
    weights.data += torch.arange(8.0)  # so that embeddings differ by share
    mixture = Mixture(model, {name: torch.ones_like(value) for name, value in weights_of(model).items()})
    tuned, seen = Encoder(model), []

    def on_dev(arm):
        arm.encoder.passages(TOPICS[:1])
        seen.append(weights[0, 0].item())
        return dev[(seen[-1] - 1) / 2]

    encoder, told = merge(mixture, tuned, shares=list(dev), on_dev=on_dev, guard=None)
    assert seen == sorted(seen, reverse=True)
    assert weights[0, 0].item() == 1 + 2 * chosen
    assert told["chosen"] == chosen
    assert told["shares"][f"{chosen:g}"] == {"dev": max(dev.values()), "guard": None}
    assert (encoder is tuned) == (chosen == 1)
    fresh = Encoder(model).passages(TOPICS[:1])
    assert np.array_equal(encoder.passages(TOPICS[:1]), fresh)


def test_what_the_setting_says():
    assert shares_of(True) == SHARES == (0, 0.25, 0.5, 0.75, 1)
    assert shares_of(None) == shares_of(False) == ()
    assert shares_of([1, 0.5]) == (1.0, 0.5)


@pytest.mark.parametrize("kind", ["linear", "mlp", "query_linear"])
def test_nothing_of_an_adapters_change_is_its_base(tiny, kind):
    base = Transformer(path=str(tiny), adapter=kind).load([])
    encoder = Encoder(base)
    head = adapter_of(base, encoder, to_rows(TOY, "pair", negatives=draw_random, seed=0))
    before = weights_of(head)
    with torch.no_grad():
        for weights in head.model.parameters():
            weights.add_(0.1 * torch.randn_like(weights))
    mixture = Mixture(head, before)
    found = {share: mixture.encoder(share).queries(TEXTS) for share in (1.0, 0.5, 0.0)}
    assert found[0.0] == pytest.approx(encoder.queries(TEXTS), abs=1e-6)
    moved = {share: abs(found[share] - found[0.0]).max() for share in (0.5, 1.0)}
    assert 0.001 < moved[0.5] < moved[1.0]


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed (the extra embexp[lora])")
def test_low_rank_updates_are_mixed_once_they_are_part_of_the_weights(tiny):
    model = Transformer(path=str(tiny), peft="lora").load([])
    base, before = Encoder(model).passages(TEXTS), weights_of(model)
    with low_rank(model, seed=0), torch.no_grad():
        for name, weights in model.model.named_parameters():
            if "lora_" in name:
                weights.fill_(0.1)
    mixture = Mixture(model, before)
    after = weights_of(model)
    mixture.take(0.5)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert {name.split(".")[-2] for name in changed} == {"query", "value"}
    for name in changed:
        right = (before[name] + after[name]) / 2
        assert model.model.state_dict()[name].numpy() == pytest.approx(right.numpy(), abs=1e-6)
    assert np.array_equal(mixture.encoder(0.0).passages(TEXTS), base)


def test_shares_that_are_none_are_refused():
    config = composed()
    for merged in ([0.5, 1.5], [], ["half"], [True]):
        (problem,) = mistakes_in({**config, "merge": merged})
        assert "must be true, or a list of shares of the change from 0 to 1, such as [0.5,1]" in problem
    (problem,) = mistakes_in({**config, "merge": "half"})
    assert problem.startswith("merge='half' must be true, a list")
    assert mistakes_in({**config, "merge": [0, 0.5]}) == mistakes_in({**config, "merge": False}) == []


def test_a_merged_run_saves_and_scores_the_share_and_keeps_the_scores_of_all_of_the_change(embexp, sources):
    quick = ["model=static", "model.dimension=16", "trainer=smoke", "logger=none", *sources["pairs"]]
    run = embexp(*quick, "trainer.learning_rate=0.1", "trainer.max_steps=20", "merge=[0.5]", "keep_checkpoints=true",
                 "arms=[hybrid]")  # fmt: skip
    assert run.code == 0, run.output
    merged = run.result["merge"]
    assert merged["chosen"] == 0.5
    assert merged["shares"] == {"0.5": {"dev": run.result["tuned"]["dev"]["recall@10"], "guard": None}}
    assert run.result["fully_tuned"]["test"] != run.result["tuned"]["test"] != run.result["base"]["test"]
    arms = run.result["arms"]
    assert list(arms) == ["bm25", "base", "hybrid_base", "tuned", "fully_tuned", "hybrid_tuned"]
    assert {side: arms["fully_tuned"][side] for side in ("dev", "test")} == run.result["fully_tuned"]
    assert arms["fully_tuned"]["cost"]["query_ms"] == arms["tuned"]["cost"]["query_ms"]  # one network
    assert arms["fully_tuned"]["cost"]["training_s"] <= arms["tuned"]["cost"]["training_s"]
    best = run.folder / "checkpoints" / f"checkpoint-{run.result['counts']['best_step']}"
    (tuned,), (saved,) = (load_file(folder / "model.safetensors").values() for folder in (best, run.folder / "model"))
    base = Static(dimension=16).load(splits_of(run.result["config"]).tokenizer_texts)
    assert torch.equal(saved, torch.lerp(*base.model.parameters(), tuned, 0.5))
    assert "0.5 of the change is kept" in run.output
