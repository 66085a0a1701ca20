"""What is declared whole is on disk before: the order of the system's calls, since power can't be cut in a test."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from embexp.results import result as results
from embexp.tracking import Tracker
from embexp.training.checkpoints import path_of, seal


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """(what, path below the test's folder) for every fsync and rename."""
    made, fsync, replace = [], os.fsync, os.replace

    def below(path):
        return str(Path(path).resolve().relative_to(tmp_path.resolve()))

    def observed_fsync(descriptor):
        made.append(("on disk", below(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def observed_replace(source, target, **options):
        made.append(("renamed", below(target)))
        replace(source, target, **options)

    monkeypatch.setattr(os, "fsync", observed_fsync)
    monkeypatch.setattr(os, "replace", observed_replace)
    monkeypatch.setattr(Path, "replace", lambda self, target: observed_replace(self, target))
    return made


def before_and_after(calls, renamed):
    place = calls.index(("renamed", renamed))
    return [path for _, path in calls[:place]], [path for _, path in calls[place + 1 :]]


pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads /proc to name what was synced")


def test_every_file_and_folder_of_a_checkpoint_is_on_disk_before_its_seal_counts(calls, tmp_path):
    made = path_of(tmp_path, 5)
    (made / "1_Dense").mkdir(parents=True)
    for file in ("model.safetensors", "optimizer.pt", "1_Dense/config.json"):
        (made / file).write_text("content")
    seal(made, made_from="data", ended=False)
    own = "checkpoints/checkpoint-5"
    before, after = before_and_after(calls, f"{own}/complete.json")
    files = [f"{own}/{file}" for file in ("model.safetensors", "optimizer.pt", "1_Dense/config.json")]
    assert {*files, f"{own}/1_Dense", own, "checkpoints", ".", f"{own}/complete.json.partial"} == set(before)
    assert before.index(f"{own}/1_Dense/config.json") < before.index(f"{own}/1_Dense") < before.index(own)
    assert after == [own]


def test_the_model_and_the_rankings_are_on_disk_before_the_result_counts(calls, tmp_path):
    for file in ("model/1_Pooling/config.json", "model/model.safetensors", "retrieval/base.test.trec"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("content")
    results.write({"status": "completed"}, tmp_path)
    before, after = before_and_after(calls, "result.json")
    assert {"model/1_Pooling/config.json", "model/model.safetensors", "model"} <= set(before)
    assert {"retrieval/base.test.trec", "retrieval"} <= set(before)
    assert before[-1] == "result.json.partial"
    assert after == ["."]


def test_metrics_that_are_cut_back_are_on_disk_before_they_replace_the_old_ones(calls, tmp_path):
    tracker = Tracker(tmp_path, None)
    for step in (1, 2):
        tracker.log({"loss": 1.0}, step=step)
    calls.clear()
    tracker.cut_back(to_step=1)
    assert calls == [("on disk", "metrics.jsonl.partial"), ("renamed", "metrics.jsonl"), ("on disk", ".")]
    tracker.finish({}, exit_code=0)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1]
