"""A reranker is trained on the run's questions, decided on by dev, kept, and measured against what it re-orders."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder

from embexp.errors import UserError
from embexp.evaluation.evaluators import Evaluation
from embexp.evaluation.significance import Scores
from embexp.reporting import usage
from embexp.reranking import reranker
from embexp.reranking.reordering import Reranked, Trained
from embexp.reranking.training import Looks, train
from embexp.rows.negatives import draw_random
from embexp.rows.shapes import Rows, to_rows
from embexp.rows.teachers import CrossEncoderScores
from embexp.search import cli as search
from tests.conftest import TOPICS, toy_set
from tests.tiny import tiny_cross_encoder, tiny_transformer

NO_LOOKS = Looks(lambda model: 0.0, 0, "")


def settings(**changed):
    chosen = {
        "negatives": draw_random, "num_train_epochs": 1, "per_device_train_batch_size": 10, "learning_rate": 0.01,
        "warmup_steps": 0.1, "weight_decay": 0.01, "evaluation_share": 0.2, "looks": 4, "dropout": 0.0,
    }  # fmt: skip
    return Trained(**(chosen | changed))


def trained(start, to, *, looks=NO_LOOKS, seed=0, **changed):
    """What `train` says, after training on 20 questions with an answer and a negative each: 4 steps."""
    data = toy_set()
    rows = to_rows(data, "labelled_pair", negatives=partial(draw_random, per_query=1), seed=0)
    return train(start, rows, data, settings(**changed), looks=looks, seed=seed, bfloat16=False, to=to)


def weights(folder):
    return load_file(folder / "model.safetensors")


def differ(one, other):
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_transformer(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def run(embexp, tiny, pairs):
    """A run on small data with a tiny transformer."""

    def command(*words):
        chosen = ["model=local", f"model.path={tiny}", "logger=none", "dataset=pairs", f"dataset.path={pairs}"]
        chosen += ["dataset.columns.group=group", "limit=24", "paraphrase=null"]
        return embexp(*(word for word in chosen if not words[0].startswith("resume=")), *words)

    return command


def test_training_twice_gives_the_same_weights_and_another_seed_others(tiny, tmp_path):
    said = trained(tiny, tmp_path / "one", dropout=None)
    new = ["classifier.bias", "classifier.weight"]  # a whole BERT, with its pooler, that has only embedded
    assert said == {"pairs": 40, "steps": 4, "best_step": None, "new": new}
    torch.manual_seed(7)  # what was drawn before must not matter
    trained(tiny, tmp_path / "two", dropout=None)
    trained(tiny, tmp_path / "other", dropout=None, seed=1)
    one, two, other = (weights(tmp_path / name) for name in ("one", "two", "other"))
    assert differ(one, two) == []
    assert "classifier.weight" in differ(one, other)


@pytest.mark.parametrize("right", ["apple", "bread"])  # so that no luck in the first weights is enough
def test_training_puts_what_is_labelled_1_above_the_rest(tiny, tmp_path, right):
    passages = [f"{word} {other}" for word in ("apple", "bread") for other in TOPICS[2:]] * 4
    labels = [int(passage.startswith(right)) for passage in passages]
    rows = Rows({"text_a": ["question"] * 64, "text_b": passages, "label": labels}, ["q"] * 64, [()] * 64)
    chosen, made = settings(num_train_epochs=4, learning_rate=0.003, per_device_train_batch_size=16), tmp_path / "made"
    train(tiny, rows, toy_set(), chosen, looks=NO_LOOKS, seed=0, bfloat16=False, to=made)
    apples, breads = CrossEncoderScores(str(made), setting="loss.teacher")(["question"] * 16, passages[:16]).reshape(
        2, 8
    )
    assert apples.min() > breads.max() if right == "apple" else breads.min() > apples.max()


def test_the_weights_of_the_best_look_at_dev_are_kept_and_the_later_of_equals(tiny, tmp_path):
    seen, scores = [], iter([0.25, 0.5, 0.5, 0.0])

    def score(model):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(scores)

    said = trained(tiny, tmp_path / "made", looks=Looks(score, 4, "dev"))
    assert said["best_step"] == 3
    kept = CrossEncoder(str(tmp_path / "made"), device="cpu", local_files_only=True).state_dict()
    assert differ(kept, seen[2]) == []
    assert differ(kept, seen[3])


def test_the_last_weights_are_kept_where_the_last_look_is_the_best(tiny, tmp_path):
    seen = []
    said = trained(tiny, tmp_path / "made", looks=Looks(lambda model: seen.append(model) or len(seen), 2, "dev"))
    assert said["best_step"] == 4
    assert len(seen) == 2
    assert differ(weights(tmp_path / "made"), seen[0].transformers_model.state_dict()) == []


def test_a_loss_that_is_no_number_ends_the_training_and_says_at_which_step(tiny, tmp_path):
    with pytest.raises(UserError, match=r"the reranker's training diverged at step 2: the loss is nan"):
        trained(tiny, tmp_path / "made", learning_rate=1e30, warmup_steps=0)
    assert not (tmp_path / "made" / "model.safetensors").exists()


def without(folder, part, *, to):
    """A copy of a model's folder that lacks the weights whose name holds a part."""
    shutil.copytree(folder, to)
    kept = {name: value for name, value in weights(folder).items() if part not in name}
    save_file(kept, to / "model.safetensors", metadata={"format": "pt"})
    return to


def test_a_model_that_lacks_more_than_its_last_layer_is_refused(tiny, tmp_path):
    broken = without(tiny, "layer.1.output.dense.weight", to=tmp_path / "broken")
    with pytest.raises(UserError, match=r"lacks weights; random ones .*layer\.1\.output\.dense"):
        trained(broken, tmp_path / "made")


def test_a_pooler_may_be_new_where_the_last_layer_is_and_not_in_a_cross_encoder(tiny, tmp_path):
    said = trained(without(tiny, "pooler", to=tmp_path / "embeds"), tmp_path / "made")
    assert [name for name in said["new"] if "pooler" in name] == ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]
    judge = without(tiny_cross_encoder(tmp_path / "judge"), "pooler", to=tmp_path / "broken")
    with pytest.raises(UserError, match=r"lacks weights; random ones .*pooler\.dense"):
        trained(judge, tmp_path / "other")


class Ranks:
    """An arm of which nothing is asked but to be searched."""

    encoder = None

    def search(self, data, *, top):
        self.asked = len(data.queries), top


def planned(monkeypatch, *, dev, pairs, metric="recall@10", **changed):
    """(looks, queries at each, passages of each) for so many dev queries and pairs to train on."""
    first, asked = Ranks(), []
    monkeypatch.setattr(reranker, "Reranked", lambda found, scorer, depth: asked.append(depth))

    def evaluated(arm, data):
        return Evaluation({metric: Scores(list(data.queries), [0.5] * len(data.queries))})

    data = toy_set(questions=dev // 10)
    looks = reranker._looks(Looks, settings(**changed), first, data, evaluated, metric=metric, pairs=pairs)
    return (looks.most, *first.asked) if looks.most else (0,)


def test_looks_at_dev_cost_their_share_of_the_training(monkeypatch):
    # a pair in training costs three in scoring: 0.2 of 3 * 2 epochs * 10,000 pairs are 12,000, 600 queries of 20
    chosen = {"dev": 200, "pairs": 10_000, "num_train_epochs": 2}
    assert planned(monkeypatch, **chosen) == (4, 150, 20)
    assert planned(monkeypatch, **chosen | {"pairs": 5000}) == (3, 100, 20)
    assert planned(monkeypatch, **chosen | {"dev": 20}) == (4, 20, 20)
    assert planned(monkeypatch, **chosen, metric="ndcg@30") == (2, 120, 50)  # 60 were deeper than the reranker goes
    assert planned(monkeypatch, **chosen | {"pairs": 3000}) == (0,)  # a single look would choose between nothing


def test_a_run_trains_a_reranker_measures_it_and_another_run_learns_from_it(run):
    first = run("trainer=none", "reranker=trained", "reranker.num_train_epochs=3", "reranker.weight=1")
    found = first.result["reranker"]
    assert found.keys() >= {"dev", "test", "delta", "path", "depth", "of", "verdict", "pairs", "steps", "negatives"}
    spent = first.result["seconds"]
    assert found["seconds"] == {"ready": spent["reranker"], "scoring": spent["reranked"]}
    assert (found["path"], found["of"], found["pairs"]) == ("reranker", "base", 24 + 24 * 4)
    queries = first.result["counts"]["queries"]["test"]
    base = first.result["base"]["test"]
    assert found["test"]["recall@100"] == base["recall@100"]  # nothing is found that was not there
    assert found["delta"]["recall@1"]["absolute"] == pytest.approx(found["test"]["recall@1"] - base["recall@1"])
    assert found["delta"]["recall@1"]["queries"] == queries
    frame = pd.read_parquet(first.folder / "retrieval" / "per_query.parquet")
    assert frame["reranked.mrr@10"].mean() == pytest.approx(found["test"]["mrr@10"])
    assert "| test      |  base | base + reranker |" in first.output
    assert first.output.count("base + reranker") == (first.folder / "report.md").read_text().count("base + reranker")
    assert "base + reranker" in (first.folder / "report.html").read_text()
    ranked = [line.split() for line in (first.folder / "retrieval" / "reranked.test.trec").read_text().splitlines()]
    scores = [float(line[4]) for line in ranked if line[0] == ranked[0][0]]
    assert scores == sorted(scores, reverse=True)
    assert sum(score >= 0 for score in scores) == 50
    assert {line[5] for line in ranked} == {"reranked"}
    card = (first.folder / "reranker" / "README.md").read_text()
    assert "| test      |  base | base + reranker |" in card
    assert str(first.folder) not in card
    lines = {}
    exec(usage.reranker_lines(1.0).replace(usage.RERANKER_FOLDER, str(first.folder / "reranker")), lines)
    assert sorted(lines["ranked"]) == ["Go to the lobby.", "Open Settings and choose Security."]
    assert lines["order"].tolist() == np.argsort(-lines["judged"]).tolist()
    teacher = f"loss.teacher={first.folder / 'reranker'}"
    second = run("loss=margin_mse", teacher, "negatives.per_query=2", "trainer=smoke")
    assert second.result["status"] == "completed", second.output
    assert second.result["fingerprint"]["helpers"]["loss.teacher"]["path"] == str(first.folder / "reranker")


def test_a_run_that_is_killed_while_the_reranker_trains_goes_on_to_the_same_weights(run, monkeypatch):
    def killed_when_asked(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reranker, "CrossEncoderScores", killed_when_asked)
        killed = run("trainer=smoke", "reranker=trained")
    made = [killed.folder / name for name in ("model", "reranker")]
    before = [weights(folder) for folder in made]
    assert not (killed.folder / "result.json").exists()
    shutil.rmtree(made[1])
    again = run(f"resume={killed.folder}")
    assert again.code == 0, again.output
    assert "going on from step 4" in again.output
    assert json.loads((killed.folder / "result.json").read_text())["reranker"]["of"] == "tuned"
    assert [differ(weights(folder), former) for folder, former in zip(made, before, strict=True)] == [[], []]


def test_a_pretrained_one_re_orders_without_training(run, tmp_path):
    judge = tiny_cross_encoder(tmp_path / "judge")
    found = run("trainer=none", "reranker=pretrained", f"reranker.path={judge}", "reranker.depth=5").result
    assert found["reranker"]["path"] == str(judge)
    assert found["reranker"]["depth"] == 5
    assert found["fingerprint"]["helpers"]["reranker.path"]["content"]
    for side in ("dev", "test"):
        assert found["reranker"][side]["recall@5"] == found["base"][side]["recall@5"]  # the same five, in another order


def test_dev_chooses_the_weight_and_search_and_card_use_it(run, tmp_path):
    found = run("trainer=none", "reranker=trained", "reranker.num_train_epochs=1", "reranker.depth=5")
    reranked = found.result["reranker"]
    assert reranked["weights"][f"{reranked['weight']:g}"] == max(reranked["weights"].values())
    assert reranked["dev"]["recall@10"] == reranked["weights"][f"{reranked['weight']:g}"]
    assert reranked["dev"]["recall@10"] >= found.result["base"]["dev"]["recall@10"]  # weight 0 is one of them
    assert f"Its scores have the weight {reranked['weight']:g}, the best on dev, those of the search" in found.output
    card = (found.folder / "reranker" / "README.md").read_text()
    assert usage.reranker_lines(reranked["weight"]) in card
    for weight, order in ((0.2, [0, 1]), (0.8, [1, 0])):  # the search has 0.41 before 0.38
        lines = {}
        source = usage.reranker_lines(weight).replace(usage.RERANKER_FOLDER, str(found.folder / "reranker"))
        stand_in = "judged = np.array([0.1, 0.9])\n\n"
        exec(re.sub(r"judged = .*\n\n", stand_in, source), lines)
        assert lines["order"].tolist() == order


def test_a_search_with_a_reranker_of_no_weight_says_so(run, capfd):
    found = run("trainer=none", "reranker=trained", "reranker.num_train_epochs=1", "reranker.weight=0")
    assert found.result["reranker"]["test"] == found.result["base"]["test"]
    search.main([str(found.folder), "what is it?", "--rerank", "--model", "base"])
    said = capfd.readouterr()
    assert "the weight 0, so its order is that of the search" in said.err
    assert "reranked" in said.out


def test_without_dev_nothing_chooses_a_weight_which_is_said():
    result = {"reranker": {"dev": None}, "notes": [], "metric": "recall@1", "tuned": None, "base": {"dev": None}}
    arm = Reranked(Ranks(), scorer=None, depth=5)
    config = {"reranker": {"weight": None}, "metric": "recall@1"}
    found = reranker._weighed(arm, config, {"test": toy_set()}, evaluated=None, result=result)
    assert found._weight == 1
    assert (result["reranker"]["weight"], result["reranker"]["weights"]) == (1, None)
    assert result["notes"] == [reranker.NO_DEV]
    reranker._say_if_worse(result)  # nothing to compare
    assert result["notes"] == [reranker.NO_DEV]
    reranker._weighed(arm, {"reranker": {"weight": 0.3}}, {"test": toy_set()}, evaluated=None, result=result)
    assert result["reranker"]["weight"] == 0.3


def test_a_pretrained_one_that_can_not_be_had_fails_at_once_and_says_what_to_do(run):
    words = ["trainer=none", "reranker=pretrained"]
    ended = run(*words)
    assert ended.code == 1
    assert "Set reranker.path= to a local folder that holds the model" in ended.output
    assert "reading data" not in ended.output
