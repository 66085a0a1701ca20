"""A multirun end to end: its own processes, jobs that crash or fail, the table, wandb, the exit code."""

import json

import pytest

from tests.command import QUICK, separate

CRASHING = """
import os, signal
from embexp.datasets.pairs import load

def crash(path, columns, split, how):
    if how == "signal":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(7)
    if how == "raise":
        raise RuntimeError("a bug in this data set")
    return load(path=path, columns=columns, split=split)
"""


@pytest.fixture(scope="module")
def multirun(tmp_path_factory):
    """One multirun of five jobs, three of which end badly, with wandb offline."""
    folder = tmp_path_factory.mktemp("multirun")
    rows = [
        {"query": f"what is {word}{i}", "passage": f"{word}{i} is a kind of {word}"}
        for word in ("tree", "bird", "fish") for i in range(15)
    ]  # fmt: skip
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "crashing.py").write_text(CRASHING)
    own = folder / "my_conf" / "dataset"
    own.mkdir(parents=True)
    (own / "crashing.yaml").write_text("defaults: [pairs]\n_target_: crashing.crash\npath: pairs.jsonl\nhow: none\n")
    import os

    return folder, separate(
        "-m", "--config-dir", "my_conf", *QUICK, "logger=wandb", "dataset=crashing", "allowed_packages=[crashing]",
        "dataset.how=none,signal,raise,exit,none2", "hydra.sweep.dir=multirun/test",
        folder=folder, env={**os.environ, "PYTHONPATH": str(folder), "WANDB_MODE": "offline"},
    )  # fmt: skip


def test_a_crash_fails_its_job_alone_and_the_exit_code_says_so(multirun):
    folder, ended = multirun
    assert ended.returncode == 1, ended.stdout + ended.stderr
    completed = {path.parent.name for path in folder.glob("multirun/test/*/result.json")
                 if json.loads(path.read_text())["status"] == "completed"}  # fmt: skip
    assert completed == {"0", "4"}
    assert "Traceback" not in ended.stdout + ended.stderr


def test_no_library_warns_of_what_a_user_cannot_mend(multirun):
    _, ended = multirun
    assert "Warning:" not in ended.stdout + ended.stderr


def test_one_table_ranks_the_completed_and_names_what_happened_to_the_others(multirun):
    folder, ended = multirun
    table = (folder / "multirun" / "test" / "summary.md").read_text()
    assert table.strip() in ended.stdout
    rows = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert set(rows[:2]) == {"0", "4"}
    for words in ("killed by SIGKILL", "failed: RuntimeError: a bug in this data set", "no result, exit code 7"):
        assert words in table


def test_each_job_has_a_wandb_run_of_its_own(multirun):
    folder, _ = multirun
    runs = {
        path.parent.parent.parent.name: path.name for path in folder.glob("multirun/test/*/wandb/offline-run-*/*.wandb")
    }
    assert {"0", "2", "4"} <= runs.keys()
    assert len(set(runs.values())) == len(runs)


def test_a_failing_job_leaves_a_failed_result_and_its_traceback_in_the_log(multirun):
    folder, _ = multirun
    result = json.loads((folder / "multirun" / "test" / "2" / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["error"] == "RuntimeError: a bug in this data set"
    assert "Traceback" in (folder / "multirun" / "test" / "2" / "embexp.log").read_text()


def test_a_mistake_in_one_job_stops_the_multirun_before_any_starts(tmp_path):
    ended = separate("-m", *QUICK, "loss=mnrl,triplet", "loss.scale=10", folder=tmp_path)
    assert ended.returncode == 1
    assert "loss.scale" in ended.stderr
    assert not list(tmp_path.rglob("result.json"))
