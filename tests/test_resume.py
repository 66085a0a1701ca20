"""A run that is killed anywhere and resumed ends as if it had never stopped, to the last bit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from embexp.resume import arguments_of, group_of
from embexp.rows import negatives
from embexp.rows.teachers import Cosines
from tests.attempts import QUICK, Ending, at_file_event, attempt, configured, counting_file_events
from tests.command import REPOSITORY, hear_interrupts, separate
from tests.tiny import tiny_transformer


def config_for(kind: str, pairs: Path, folder: Path) -> dict:
    data = ["dataset=pairs", f"dataset.path={pairs}", "dataset.columns.group=group"]
    if kind == "static":
        return configured(*data, "model=static", "model.dimension=16")
    if kind == "own parameters":
        config = configured(*data, "model=static", "model.dimension=16", "allowed_packages=[tests]")
        target = {"_target_": "tests.named.LearnedScale", "_partial_": True}
        return {**config, "loss": {**target, "shape": "pair", "accepts": ["pair"]}}
    if kind == "early stopping":
        more = ["trainer.early_stopping=1", "trainer.learning_rate=1e-12", "trainer.max_steps=40"]
        return configured(*data, "model=static", "model.dimension=16", *more)
    if kind == "fewer looks than checkpoints":
        more = ["trainer.evaluation_share=1e-9", "trainer.max_steps=9", "trainer.learning_rate=0.1"]
        return configured(*data, "model=static", "model.dimension=16", *more)
    tiny = folder / "tiny"
    if not tiny.exists():
        tiny_transformer(tiny)
    epochs = [
        "trainer.max_steps=-1",
        "trainer.num_train_epochs=3",
        "trainer.eval_steps=5",
        "trainer.lr_scheduler_type=cosine",
    ]
    return configured(*data, "model=local", f"model.path={tiny}", "model.dropout=0.2", "paraphrase=null", *epochs)


KINDS = [
    "static", "own parameters", "early stopping", "fewer looks than checkpoints",
    "transformer with dropout, three epochs",
]  # fmt: skip


@pytest.fixture(scope="module")
def reference(pairs, tmp_path_factory):
    """kind -> (config, ending of a run that was never stopped, its seconds, how many file events it had)."""
    made: dict = {}

    def get(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("reference")
            config = config_for(kind, pairs, folder)
            assert attempt(config, folder / "run", before=partial(counting_file_events, folder / "count")) == 0
            seconds = sum(json.loads((folder / "run" / "result.json").read_text())["seconds"].values())
            made[kind] = (config, Ending.of(folder / "run"), seconds, (folder / "count").stat().st_size)
        return made[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_file_events_a_resumed_run_ends_bit_equal(kind, reference, tmp_path):
    config, whole, _, events = reference(kind)
    points = random.Random(kind).sample(range(2, events + 1), 5)
    for place, point in enumerate(sorted(points)):
        folder = tmp_path / str(place)
        assert attempt(config, folder, before=partial(at_file_event, point)) == -signal.SIGKILL
        assert attempt(config, folder) == 0
        assert Ending.of(folder) == whole, f"killed at file event {point} of {events}"


@pytest.mark.parametrize("event", [1, 2, 3, 5, 8, 12, 24])
def test_killed_inside_the_writing_of_a_checkpoint_it_ends_bit_equal(event, reference, tmp_path):
    config, whole, _, _ = reference("static")
    inside = partial(at_file_event, event, where="/checkpoint-4")
    assert attempt(config, tmp_path / "run", before=inside) == -signal.SIGKILL
    assert not (tmp_path / "run" / "result.json").exists()
    assert attempt(config, tmp_path / "run") == 0
    assert Ending.of(tmp_path / "run") == whole


def test_with_one_look_at_its_end_a_killed_training_goes_on_from_its_last_checkpoint(reference, tmp_path):
    config, whole, _, _ = reference("fewer looks than checkpoints")
    inside = partial(at_file_event, 1, where="/checkpoint-6")
    assert attempt(config, tmp_path / "run", before=inside) == -signal.SIGKILL
    kept = [path.parent.name for path in (tmp_path / "run").glob("checkpoints/*/complete.json")]
    assert sorted(kept) == ["checkpoint-2", "checkpoint-4"]
    assert attempt(config, tmp_path / "run") == 0
    assert Ending.of(tmp_path / "run") == whole


def rounding_otherwise(folder):
    """A teacher's scores as with another number of processes: other in the last bits."""
    given = Cosines.__call__
    Cosines.__call__ = lambda self, *texts: given(self, *texts) + np.float32(1e-7)


def drawing_otherwise(folder):
    """Other negatives, as where two of them score nearly alike."""
    filled = negatives._filled
    negatives._filled = lambda *found, seed, **options: filled(*found, seed=seed + 1, **options)


def test_a_teachers_scores_may_differ_in_rounding_when_a_run_goes_on_but_not_the_negatives(pairs, tmp_path):
    data = ["dataset=pairs", f"dataset.path={pairs}", "dataset.columns.group=group"]
    config, folder = configured(*data, "model=static", "model.dimension=16", "loss=distill_kl"), tmp_path / "run"
    inside = partial(at_file_event, 3, where="/checkpoint-6")
    assert attempt(config, folder, before=inside) == -signal.SIGKILL
    assert attempt(config, folder, before=drawing_otherwise) == 1
    error = json.loads((folder / "result.json").read_text())["error"]
    assert "negatives that score nearly alike were drawn otherwise" in error
    assert attempt(config, folder, before=rounding_otherwise) == 0
    assert json.loads((folder / "result.json").read_text())["counts"]["steps"] == 7


def test_killed_at_random_times_again_and_again_it_ends_bit_equal(reference, tmp_path):
    config, whole, seconds, _ = reference("static")
    rng = random.Random(1)
    codes = [attempt(config, tmp_path / "run", seconds=rng.uniform(0.1, 1) * seconds) for _ in range(8)]
    assert -signal.SIGKILL in codes
    assert attempt(config, tmp_path / "run") == 0
    assert Ending.of(tmp_path / "run") == whole


def test_the_command_goes_on_where_it_was_killed_and_refuses_a_changed_config(embexp, pairs, tmp_path):
    folder = tmp_path / "first"
    own = [f"dataset.path={pairs}", "dataset.columns.group=group", "model.dimension=16", "trainer.max_steps=400"]
    command = ["dataset=pairs", "model=static", *QUICK, *own, f"hydra.run.dir={folder}"]
    started = subprocess.Popen([sys.executable, "-m", "embexp", *command], cwd=REPOSITORY)
    wait_for(lambda: list(folder.glob("checkpoints/*/complete.json")), started)
    beside = embexp(f"resume={folder}")
    started.kill()
    started.wait()
    assert (beside.code, "another process is at work" in beside.output) == (1, True)

    changed = embexp(f"resume={folder}", "seed=2", "trainer.learning_rate=0.1")
    assert changed.code == 1
    for words in ("trainer.learning_rate was 5e-05, now 0.1", "seed was 0, now 2"):
        assert words in changed.output
    assert "Traceback" not in changed.output
    assert "HYDRA_FULL_ERROR" not in changed.output
    again = separate(*command, folder=tmp_path)
    assert (again.returncode, f"resume={folder}" in again.stderr) == (1, True)
    assert (folder / ".hydra" / "overrides.yaml").read_text().count("seed") == 0  # as it was started

    other = ["cache_size_gb=5", "debug=true", "report_texts=false"]  # which change nothing of what is measured
    resumed = embexp(f"resume={folder}", *other)
    assert resumed.code == 0, resumed.output
    assert "going on from step" in resumed.output
    assert json.loads((folder / "result.json").read_text())["counts"]["steps"] == 400
    finished = embexp(f"resume={folder}")
    assert finished.code == 0
    assert "this run was complete already, so nothing is done again" in finished.output.split("Verdict")[0]
    assert "complete already" not in resumed.output


def test_ctrl_c_prints_the_command_that_goes_on(pairs, tmp_path):
    folder = tmp_path / "a folder"
    own = [f"dataset.path={pairs}", "dataset.columns.group=group", "trainer.max_steps=3000"]
    command = ["dataset=pairs", "model=static", *QUICK, *own]
    started = subprocess.Popen(
        [sys.executable, "-m", "embexp", *command, f"hydra.run.dir='{folder}'"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=hear_interrupts,
    )  # fmt: skip
    wait_for(lambda: list(folder.glob("checkpoints/*/complete.json")), started)
    started.send_signal(signal.SIGINT)
    output, _ = started.communicate(timeout=60)
    assert started.returncode == 1
    assert f"python -m embexp resume='{folder}'" in output
    assert not (folder / "result.json").exists()


def saved(folder, mode):
    (folder / ".hydra").mkdir(parents=True)
    hydra = f"""
    hydra:
      mode: {mode}
      overrides: {{task: [seed=3], hydra: ["hydra.searchpath=[file:///own]", "hydra.run.dir=elsewhere"]}}
      runtime: {{config_sources: [{{path: /my/conf, provider: command-line}}, {{path: x, provider: main}}]}}
      sweep: {{dir: "multirun/${{now:%H}}"}}
      job: {{config_name: config}}
    """
    (folder / ".hydra" / "hydra.yaml").write_text(hydra)


def test_attempts_share_a_group_the_multiruns_or_their_own(tmp_path):
    saved(tmp_path / "multirun" / "4", "MULTIRUN")
    saved(tmp_path / "single", "RUN")
    assert group_of(tmp_path / "multirun" / "4") == str(tmp_path / "multirun")
    assert group_of(tmp_path / "single") == str(tmp_path / "single")


def test_a_run_is_composed_again_in_its_folder_whatever_its_name(tmp_path):
    folder = tmp_path / "it's a folder"
    saved(folder, "RUN")
    overrides, flags = arguments_of(folder, [f"resume={folder}", "debug=true"])
    assert overrides[:3] == ["seed=3", "hydra.searchpath=[file:///own]", "debug=true"]
    assert OverridesParser.create().parse_override(overrides[3]).value() == str(folder)
    assert flags == ["--config-dir", "/my/conf", "--config-name", "config"]


def test_a_folder_that_holds_no_run_or_several_is_explained(embexp, tmp_path):
    (tmp_path / "multirun" / "0" / ".hydra").mkdir(parents=True)
    (tmp_path / "multirun" / "0" / ".hydra" / "config.yaml").write_text("seed: 1\n")
    nothing, several = embexp("resume=nowhere"), embexp(f"resume={tmp_path / 'multirun'}")
    assert (nothing.code, several.code) == (1, 1)
    assert "not the folder of a run" in nothing.output
    assert "It holds the runs 0: name one of them" in several.output


def wait_for(condition, process):
    until = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, "the run ended before it was stopped"
        assert time.monotonic() < until
        time.sleep(0.05)
