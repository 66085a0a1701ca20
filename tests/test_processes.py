"""Several processes do what one does: the same losses, weights, embeddings and scores; and they end together."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import psutil
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch.distributed import FileStore, TCPStore

from embexp.config.components import build
from embexp.config.experiment import mistakes_in
from embexp.encoding import embedding
from embexp.encoding.encoder import Encoder
from embexp.errors import Pruned, UserError
from embexp.forgetting.merging import Mixture, weights_of
from embexp.models.embedding_model import Transformer
from embexp.parallel import machine
from embexp.parallel.joining import joined
from embexp.parallel.machine import Launched, agreed, launched
from embexp.parallel.shares import _own_randomness, rows_by_process, same_weights, shared
from embexp.rows.negatives import draw_random
from embexp.rows.shapes import to_rows
from embexp.tracking import Tracker
from embexp.training.checkpoints import Checkpoint
from embexp.training.fine_tuning import Task, train
from tests.attempts import configured
from tests.command import REPOSITORY, hear_interrupts
from tests.conftest import toy_set
from tests.test_resume import wait_for
from tests.tiny import tiny_transformer

LIBRARY = "sentence_transformers.sentence_transformer.losses"
PROBED = ["the apple", "a query about the grape and its colour", "its size", "question 1 about the igloo"]


def embeds_by_itself(model):
    """A loss that goes round the model's forward."""

    class Loss(MultipleNegativesRankingLoss):
        def forward(self, features, labels):
            return sum(self.model[0](dict(each))["token_embeddings"].mean() for each in features)

    return Loss(model)


def node(target, **parameters):
    return {"_target_": target, "_partial_": True, **parameters}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_transformer(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def two():
    """Two processes that stay together for several trainings."""
    with joined(2, None) as processes:
        yield processes
    assert followers() == []


def followers(of=None):
    """The followers that are at work for a process, this one unless another is named."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[2:4] == ["-m", "embexp.parallel.follower"] and words[-1] == str(of or os.getpid()):
            found.append(process)
    return found


def loaded(processes, target, **parameters):
    """A model that all processes hold, as the experiment loads it, in float64."""
    source = {
        "_target_": "tests.named.Doubled",
        "inner": {"_target_": f"embexp.models.embedding_model.{target}", **parameters},
    }
    texts = [*toy_set().corpus.values(), *toy_set().queries.values()]
    model = build(source, allowed=["tests"]).load(texts)
    if processes is not None:
        processes.tell("model", node=source, allowed_packages=["tests"], texts=texts)
        same_weights(model.model, processes)
    return replace(model, processes=processes)


def trained(model, folder, *, loss, shape="pair", data=None, resume_from=None, watch=None, **arguments):
    """(loss of each step and dev's scores, final weights) of a training on 20 questions in batches of 7."""
    data = data or toy_set()
    rows = to_rows(data, shape, negatives=partial(draw_random, per_query=1), seed=0)
    folder.mkdir(exist_ok=True)
    always = {"per_device_train_batch_size": 7, "num_train_epochs": 2, "learning_rate": 1e-3, "logging_steps": 1}
    task = Task(
        rows,
        data,
        loss=loss,
        allowed_packages=["tests"],
        arguments={**always, "eval_strategy": "steps", "eval_steps": 2, "save_total_limit": 1, **arguments},
        metric="probe@1",
        seed=0,
        folder=folder,
        made_from="test",
        early_stopping=2,
        looks_per_epoch=watch and watch.looks,
        resume_from=resume_from,
    )

    def scored():
        random.random()  # a library may draw while process 0 scores, and the losses draw on
        return {"probe@1": float(Encoder(model).queries(PROBED)[:, 0].sum())}

    if model.processes is not None:
        model.processes.tell("train", task=task, cache=False)
    train(model, task, dev_metrics=scored, tracker=Tracker(folder, None), watch=watch)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    values = [(line["step"], key, line[key]) for line in lines for key in line if key.startswith(("train/", "dev/"))]
    return values, {name: weights.clone() for name, weights in model.model.state_dict().items()}


PLAIN = node(f"{LIBRARY}.MultipleNegativesRankingLoss")
CROWDED = toy_set(documents=3, questions=7)  # seven questions on a passage: conflicts that no batch of 7 can avoid
CASES = {
    "mnrl": {"loss": PLAIN},
    "mnrl with negatives, gradients accumulated": {"loss": PLAIN, "shape": "triplet", "gradient_accumulation_steps": 2},
    "masked conflicts": {"loss": PLAIN, "data": CROWDED},
    # 7 rows in parts of 3 leave a part of one row, of which one process has none
    "cached mnrl": {"loss": node(f"{LIBRARY}.CachedMultipleNegativesRankingLoss", mini_batch_size=3)},
    "cached mnrl, masked": {
        "loss": node(f"{LIBRARY}.CachedMultipleNegativesRankingLoss", mini_batch_size=3),
        "data": CROWDED,
    },
    "triplet": {"loss": node(f"{LIBRARY}.TripletLoss", triplet_margin=2.0), "shape": "triplet"},
    "online contrastive": {"loss": node(f"{LIBRARY}.OnlineContrastiveLoss"), "shape": "labelled_pair"},
    "gist": {"loss": node("embexp.training.losses.gist", margin=0.1)},
    "matryoshka, one dimension a step": {
        "loss": node("embexp.training.losses.matryoshka", inner=PLAIN, dims=[16, 8], n_dims_per_step=1)
    },
    "adaptive layers": {"loss": node("tests.named.adaptive_layers")},
    # by plain descent, since Adam would not notice a gradient that is twice as long
    "a parameter of the loss": {"loss": node("tests.named.LearnedScale"), "optim": "sgd", "learning_rate": 0.1},
}


def compare(kind, two, tmp_path, parameters, **case):
    alone, weights = trained(loaded(None, kind, **parameters), tmp_path / "one", **case)
    found, together = trained(loaded(two, kind, **parameters), tmp_path / "two", **case)
    assert [value[:2] for value in found] == [value[:2] for value in alone]
    assert [key for _, key, _ in alone].count("train/loss") >= 3
    for (step, key, value), (_, _, expected) in zip(found, alone, strict=True):  # embeddings are float32
        assert value == pytest.approx(expected, rel=1e-5 if key.startswith("dev/") else 1e-10), (step, key)
    assert weights.keys() == together.keys()
    for name, expected in weights.items():
        torch.testing.assert_close(together[name], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_loss_and_weight_is_that_of_one_process(case, folder, two, tmp_path):
    compare("Transformer", two, tmp_path, {"path": str(folder), "dropout": 0}, **case)


def test_a_static_model_trains_together_too(two, tmp_path):
    compare("Static", two, tmp_path, {"dimension": 8}, loss=PLAIN)


def test_texts_are_embedded_as_by_one_process_and_each_makes_its_share(folder, two):
    texts = [f"{'the size of ' * (number % 5)}{number}" for number in range(23)]
    model = loaded(two, "Transformer", path=str(folder))
    expected = Encoder(replace(model, processes=None)).passages(texts)
    shapes = []
    hook = model.model[0].register_forward_pre_hook(lambda _, inputs: shapes.append(len(inputs[0]["input_ids"])))
    found = Encoder(model).passages(texts)
    hook.remove()
    np.testing.assert_allclose(found, expected, atol=1e-6)  # in parts of other sizes
    assert sum(shapes) == 12  # of 23 texts


def test_all_processes_take_the_share_of_the_change_that_the_first_takes(folder, two):
    model = loaded(two, "Transformer", path=str(folder))
    before = {name: torch.zeros_like(value) for name, value in weights_of(model).items()}
    mixture = Mixture(model, before)
    found = mixture.encoder(0.5).passages(PROBED)
    np.testing.assert_allclose(found, Encoder(replace(model, processes=None)).passages(PROBED), atol=1e-6)
    assert abs(found - mixture.encoder(1.0).passages(PROBED)).max() > 0.001


@pytest.mark.parametrize("number", [0, 1, 2, 7])  # of seven, three at a time for each of two, the last is alone
def test_a_few_texts_are_embedded_though_a_process_gets_none(folder, two, monkeypatch, number):
    monkeypatch.setattr(embedding, "TOLD", 3)
    model = loaded(two, "Transformer", path=str(folder))
    texts = [f"the {fruit}" for fruit in ("apple", "bread", "cherry", "date", "elm", "fig", "grape")][:number]
    expected = Encoder(replace(model, processes=None)).queries(texts)
    assert expected.shape == (number, model.model.get_embedding_dimension())
    np.testing.assert_allclose(Encoder(model).queries(texts), expected, atol=1e-6)


def test_a_process_trains_on_one_gpu_though_it_sees_two(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    class Split(torch.nn.DataParallel):
        def __init__(self, *_, **__):
            pytest.fail("the batch is split")

    monkeypatch.setattr(torch.nn, "DataParallel", Split)
    trained(loaded(None, "Static", dimension=8), tmp_path / "one", loss=PLAIN, use_cpu=False)
    assert "DataParallel" not in caplog.text  # nor does the library say so


def test_rows_are_shared_out_by_tokens_and_everyone_has_one():
    def features(*lengths):
        mask = torch.zeros(len(lengths), 9, dtype=torch.int64)
        for row, length in enumerate(lengths):
            mask[row, :length] = 1
        return {"input_ids": mask, "attention_mask": mask}

    order, numbers = rows_by_process(features(8, 1, 2, 3, 2), 2)  # 8 of 16 tokens are in one row
    assert (order.tolist(), numbers) == ([1, 2, 4, 3, 0], [4, 1])
    assert rows_by_process(features(9, 1, 1), 3)[1] == [1, 1, 1]
    assert rows_by_process(features(5, 5), 3)[1] == [1, 1, 0]
    static = {"input_ids": torch.arange(10), "offsets": torch.tensor([0, 6, 7, 9])}  # 6, 1, 2 and 1 tokens, in place
    assert rows_by_process(static, 2)[1] == [1, 3]
    packed = {"input_ids": torch.arange(10)[None], "cu_seq_lens_q": torch.tensor([0, 2, 3, 5, 10])}
    assert rows_by_process(packed, 2)[1] == [3, 1]


def test_processes_draw_different_dropout_from_a_generator_that_moves_on_alike():
    def draws(rank):
        torch.manual_seed(7)
        with _own_randomness(torch.device("cpu"), rank):
            own = torch.rand(5).tolist()
        return own, torch.rand(1).item()

    (first, after_first), (second, after_second) = draws(0), draws(1)
    assert first != second
    assert after_first == after_second
    assert draws(1) == (second, after_second)  # so a resumed run draws what it would have drawn


def test_a_loss_that_goes_round_the_models_forward_is_refused(folder):
    class Alone:
        rank, count = 0, 2

    model = Transformer(path=str(folder)).load([]).model
    features = model.preprocess(["the apple", "the bread"])
    with shared([model], Alone()), pytest.raises(UserError, match="its own way"):
        embeds_by_itself(model)([features], None)
    assert "forward" not in vars(model)


def orphans():
    """Followers whose process 0 has ended."""
    found = {process: process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])}
    parents = {
        process: int(words[-1]) for process, words in found.items() if words[2:4] == ["-m", "embexp.parallel.follower"]
    }
    return [process for process, parent in parents.items() if not psutil.pid_exists(parent)]


def gone(condition):
    until = time.monotonic() + 60
    while condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def own(pairs, folder, *more):
    data = ["dataset=pairs", f"dataset.path={pairs}", "dataset.columns.group=group", "paraphrase=null"]
    return [*data, "model=local", f"model.path={folder}", "trainer.processes=2", *more]


def test_going_on_from_a_checkpoint_they_end_bit_equal_dropout_included(folder, two, tmp_path):
    def ending(name, **options):
        model = loaded(two, "Transformer", path=str(folder), dropout=0.3)
        return trained(model, tmp_path / name, loss=PLAIN, save_total_limit=9, **options)

    values, weights = ending("whole")
    kept = "checkpoints/checkpoint-2"
    shutil.copytree(tmp_path / "whole" / kept, tmp_path / "again" / kept)
    second = Checkpoint(tmp_path / "again" / kept, ended=False)
    again, other = ending("again", resume_from=second)
    assert again == [value for value in values if value[0] > 2]
    assert all(torch.equal(other[name], expected) for name, expected in weights.items())


def test_a_pruned_run_ends_its_followers(folder, tmp_path):
    before, looked = followers(), []

    class Watching:
        looks, scores_test = 2, False

        def report(self, metrics, look):
            looked.append(look)
            if look == 3:
                raise Pruned("enough")

    def run():
        with joined(2, None) as processes:
            model = loaded(processes, "Transformer", path=str(folder))
            trained(model, tmp_path / "run", loss=PLAIN, watch=Watching())

    with pytest.raises(Pruned, match="enough"):
        run()
    assert looked == [1, 2, 3]
    assert followers() == before


PARENT = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-P", "-m", "embexp.parallel.follower", sys.argv[1], "1", "2", str(os.getpid())])
time.sleep(100)
"""


def test_a_follower_ends_soon_when_process_0_is_killed(tmp_path):
    store = FileStore(str(tmp_path / "store"), 2)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], cwd=REPOSITORY)
    gone(lambda: not store.check(["ready/1"]))
    (follower,) = followers(parent.pid)
    parent.kill()
    parent.wait()
    gone(lambda: psutil.pid_exists(follower.pid))


@pytest.fixture
def long_run(pairs, tmp_path):
    """A run of two processes on the command line, once it has a checkpoint."""
    command = ["dataset=pairs", "model=static", "trainer=smoke", "trainer.max_steps=600", "trainer.eval_steps=100"]
    command += [f"dataset.path={pairs}", "dataset.columns.group=group", "logger=none", "limit=null"]
    started = subprocess.Popen(
        [sys.executable, "-m", "embexp", *command, "trainer.processes=2", f"hydra.run.dir={tmp_path / 'run'}"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=hear_interrupts,
    )  # fmt: skip
    wait_for(lambda: list(tmp_path.glob("run/checkpoints/*/complete.json")), started)
    yield started
    started.kill()
    started.wait()


def test_a_follower_that_is_killed_ends_the_run_which_can_be_resumed_by_one_process(long_run, embexp, tmp_path):
    (follower,) = followers(long_run.pid)
    follower.kill()
    output, _ = long_run.communicate(timeout=60)
    assert long_run.returncode == 1, output
    assert "process 1 of 2 ended with SIGKILL" in output
    assert f"resume={tmp_path / 'run'}" in output
    assert "Traceback" not in output
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed"
    assert "SIGKILL" in result["error"]
    assert list(tmp_path.glob("run/checkpoints/*/complete.json"))
    gone(orphans)
    resumed = embexp(f"resume={tmp_path / 'run'}", "trainer.processes=1")
    assert resumed.code == 0, resumed.output
    assert "going on from step" in resumed.output


def test_ctrl_c_ends_all_quietly(long_run, tmp_path):
    assert len(followers(long_run.pid)) == 1
    long_run.send_signal(signal.SIGINT)
    output, _ = long_run.communicate(timeout=60)
    assert long_run.returncode == 1
    assert f"interrupted; no result was written. To go on: python -m embexp resume={tmp_path / 'run'}" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "result.json").exists()
    gone(orphans)


def torchrun(*arguments, **options):
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "embexp"]
    return subprocess.run(
        [*call, *arguments], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, **options,
    )  # fmt: skip


def test_torchrun_makes_one_run_with_the_scores_of_one_process(embexp, pairs, folder, tmp_path):
    few = ["model.dropout=0", "trainer=smoke", "limit=null", "trainer.max_steps=6"]
    words = [word for word in own(pairs, folder, *few) if word != "trainer.processes=2"]
    ended = torchrun(*words, "hydra.run.dir=ranks", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["ranks"]
    assert len(list((tmp_path / "ranks" / "wandb").glob("offline-run-*"))) == 1
    together = json.loads((tmp_path / "ranks" / "result.json").read_text())
    alone = embexp(*words, "logger=none").result
    for key in ("base", "tuned", "delta", "verdict", "counts", "fingerprint"):
        assert together[key] == alone[key], key
    assert (together["config"]["trainer"]["processes"], alone["config"]["trainer"]["processes"]) == (2, 1)
    assert ended.stdout.count("\ntraining: ") == 1


TOLD = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
TOLD |= {"MASTER_PORT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}


def test_what_torchrun_said_is_taken_out_of_the_environment():
    environment = {**TOLD, "PATH": "/bin"}
    assert launched(environment) == Launched(rank=0, count=2, address="127.0.0.1", port=1, attempt=0)
    assert environment == {"PATH": "/bin"}
    assert launched(environment) is None
    assert launched({**TOLD, "WORLD_SIZE": "1"}) is None


def test_processes_on_several_machines_or_of_another_launcher_are_refused():
    with pytest.raises(UserError, match="share one machine"):
        launched({**TOLD, "WORLD_SIZE": "4"})
    with pytest.raises(UserError, match="not by torchrun"):
        launched({**TOLD, "TORCHELASTIC_USE_AGENT_STORE": "False"})


def test_torchrun_takes_no_multirun_and_no_other_number(embexp, monkeypatch):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in {**TOLD, "MASTER_PORT": str(store.port)}.items():
        monkeypatch.setenv(name, value)
    ended = embexp("-m", "loss=mnrl,triplet")
    assert ended.code == 1
    assert "leave torchrun out, and add trainer.processes=2" in ended.output
    assert store.check(["embexp0/over"])  # so that the others end
    for name, value in {**TOLD, "MASTER_PORT": str(store.port)}.items():
        monkeypatch.setenv(name, value)
    ended = embexp("trainer.processes=3", "logger=none")
    assert (ended.code, "torchrun has started 2" in ended.output) == (1, True)


def test_the_config_says_how_many_processes_torchrun_has_started():
    started = Launched(rank=0, count=2, address="127.0.0.1", port=1, attempt=0)
    config = configured("trainer.processes=1")
    assert agreed(config, started)["trainer"]["processes"] == 2
    assert agreed(config, None) is config
    assert agreed({**config, "trainer": None}, started)["trainer"] is None


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: ["0", "5"])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(UserError, match=r"trainer.processes=3: there are 2 GPUs"), joined(3, None):
        pass


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.processes=0", "trainer.processes=0 must be at least 1"),
        ("trainer.processes=many", "must be a whole number"),
        ("+trainer.torch_compile=true", "trainer.torch_compile can't be combined with trainer.processes=2"),
    ],
)
def test_what_processes_can_be_is_checked_at_once(override, words):
    found = mistakes_in(configured("trainer.processes=2", override))
    assert len(found) == 1
    assert words in found[0]
