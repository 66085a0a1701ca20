"""metrics.jsonl is the record of truth; wandb mirrors it, can be read back, and can neither stop nor slow a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from embexp.tracking import Tracker, WandbMirror, open_beside, open_mirror, queries_of, to_upload
from tests.command import REPOSITORY
from tests.folders import per_query
from tests.wandb_files import read_back, runs
from tests.wandb_server import serving

KEY = "0123456789abcdef" * 3


@pytest.fixture
def wandb():
    return pytest.importorskip("wandb", reason="needs the extra embexp[wandb]")


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Recorder:
    """A mirror that keeps what it gets and raises in the method named."""

    def __init__(self, failing=None):
        self.calls, self._failing = [], failing

    def log(self, values, *, step):
        self._take("log", values, step)

    def finish(self, summary, *, exit_code):
        self._take("finish", summary, exit_code)

    def _take(self, name, *what):
        self.calls.append((name, *what))
        if name == self._failing:
            raise ConnectionError("the server is gone")


def test_each_line_is_on_disk_when_log_returns(tmp_path):
    tracker = Tracker(tmp_path, None)
    tracker.log({"loss": 1.5}, step=10)
    assert [(line["step"], line["loss"], line["seconds"] >= 0) for line in lines(tmp_path)] == [(10, 1.5, True)]
    tracker.log({"dev/recall@10": 0.25}, step=20)
    assert lines(tmp_path)[1].items() >= {"step": 20, "dev/recall@10": 0.25}.items()
    tracker.finish({}, exit_code=0)


def test_every_line_is_strict_json_with_null_for_what_is_no_number(tmp_path):
    tracker = Tracker(tmp_path, None)
    tracker.log({"train/grad_norm": float("nan"), "train/loss": float("inf"), "dev/recall@10": 0.5}, step=1)
    tracker.finish({}, exit_code=0)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (line["train/grad_norm"], line["train/loss"], line["dev/recall@10"]) == (None, None, 0.5)


def test_a_tracker_goes_on_in_the_file_that_is_there(tmp_path):
    for step in (1, 2):
        tracker = Tracker(tmp_path, None)
        tracker.log({"loss": 1.0}, step=step)
        tracker.finish({}, exit_code=0)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_the_mirror_gets_what_the_file_gets_and_the_summary(tmp_path):
    mirror = Recorder()
    tracker = Tracker(tmp_path, mirror)
    tracker.log({"loss": 1.5}, step=10)
    tracker.finish({"verdict": "better"}, exit_code=3)
    assert mirror.calls == [("log", {"loss": 1.5}, 10), ("finish", {"verdict": "better"}, 3)]


@pytest.mark.parametrize("failing", ["log", "finish"])
def test_a_mirror_that_raises_is_dropped_and_the_tracker_goes_on(tmp_path, caplog, failing):
    mirror = Recorder(failing)
    tracker = Tracker(tmp_path, mirror)
    for step in (1, 2, 3):
        tracker.log({"loss": 1.0}, step=step)
    tracker.finish({}, exit_code=0)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert [call[0] for call in mirror.calls] == (["log"] if failing == "log" else ["log", "log", "log", "finish"])
    assert [record.getMessage() for record in caplog.records] == [
        "tracking stopped, the run goes on: ConnectionError: the server is gone"
    ]


def test_a_mirror_that_cannot_start_is_said_and_done_without(caplog):
    def fail():
        raise ImportError("No module named 'wandb'")

    assert open_mirror(fail) is None
    assert "tracking is off, the run goes on: ImportError: No module named 'wandb'" in caplog.text
    assert open_mirror(None) is None


def test_a_mirror_that_starts_slowly_holds_nothing_up_until_there_is_something_to_log(tmp_path):
    may_start, mirror = threading.Event(), Recorder()

    def make():
        may_start.wait(10)
        return mirror

    tracker = Tracker(tmp_path, open_beside(make))  # returns though the mirror has not started
    threading.Timer(0.2, may_start.set).start()
    assert not may_start.is_set()
    tracker.log({"loss": 1.5}, step=10)
    assert may_start.is_set()
    tracker.finish({"verdict": "better"}, exit_code=0)
    assert mirror.calls == [("log", {"loss": 1.5}, 10), ("finish", {"verdict": "better"}, 0)]


def test_a_mirror_beside_that_cannot_start_is_said_once_and_done_without(tmp_path, caplog):
    def fail():
        raise ImportError("No module named 'wandb'")

    tracker = Tracker(tmp_path, open_beside(fail))
    tracker.log({"loss": 1.5}, step=10)
    tracker.finish({}, exit_code=0)
    assert [record.getMessage() for record in caplog.records] == [
        "tracking is off, the run goes on: ImportError: No module named 'wandb'"
    ]
    assert open_beside(None) is None


def test_an_offline_run_can_be_read_back_with_history_config_summary_and_exit_code(wandb, tmp_path):
    names = {"loss": "mnrl", "model": "minilm", "dataset": "docstrings"}
    config = {"seed": 3, "metric": "recall@10", "loss": {"scale": 20.0}, "notes": "x" * 40_000}  # more than one block
    mirror = WandbMirror(folder=tmp_path, config=config, names=names, group="sweep1", tags=["try"], mode="offline")
    mirror.log({"loss": 1.5}, step=10)
    mirror.log({"dev/recall@10": 0.25}, step=20)
    mirror.finish({"test/delta/recall@10": 0.125, "verdict": "better"}, exit_code=0)
    (file,) = runs(tmp_path)
    history, kept, summary, tags, group, exit_code = read_back(file)
    assert history[0].items() >= {"_step": 10, "loss": 1.5}.items()
    assert history[1].items() >= {"_step": 20, "dev/recall@10": 0.25}.items()
    assert len(kept["settings"].pop("notes")) == 40_000
    assert kept["settings"] == {"seed": 3, "metric": "recall@10", "loss": {"scale": 20.0}}
    assert kept.items() >= {**names, "seed": 3, "metric": "recall@10"}.items()  # flat, to group by
    assert summary.items() >= {"test/delta/recall@10": 0.125, "verdict": "better"}.items()
    assert (tags, group, exit_code) == (["mnrl", "minilm", "docstrings", "try"], "sweep1", 0)
    assert to_upload(tmp_path) == [file.parent]
    file.with_suffix(".wandb.synced").touch()  # as wandb sync leaves it
    assert to_upload(tmp_path) == []


def test_two_runs_of_one_process_have_two_ids_and_their_own_exit_codes(wandb, tmp_path):
    for exit_code, name in enumerate(("first", "second")):
        (tmp_path / name).mkdir()
        mirror = WandbMirror(folder=tmp_path / name, config={}, names={"loss": name}, mode="offline")
        mirror.log({"loss": 1.0}, step=1)
        mirror.finish({}, exit_code=exit_code)
    (first,), (second,) = (runs(tmp_path / name) for name in ("first", "second"))
    assert first.name != second.name  # run-<id>.wandb
    for file, name, exit_code in ((first, "first", 0), (second, "second", 1)):
        history, config, *_, ended = read_back(file)
        assert (len(history), config["loss"], ended) == (1, name, exit_code)


def test_a_run_left_open_does_not_become_the_next_one(wandb, tmp_path):
    for name in ("first", "second"):  # the first has failed before it could finish
        (tmp_path / name).mkdir()
        mirror = WandbMirror(folder=tmp_path / name, config={}, names={"loss": name}, mode="offline")
    mirror.log({"loss": 1.0}, step=1)
    mirror.finish({}, exit_code=0)
    (second,) = runs(tmp_path / "second")
    history, config, *_ = read_back(second)
    assert (len(history), config["loss"]) == (1, "second")


TRACK = """
import sys, time, wandb
from pathlib import Path
from embexp.tracking import Tracker, WandbMirror, open_mirror
folder, start = Path(sys.argv[1]), time.monotonic()
tracker = Tracker(folder, open_mirror(lambda: WandbMirror(folder=folder, config={}, names={}, timeout=1)))
tracker.log({"loss": 1.0}, step=1)
tracker.finish({"verdict": "better"}, exit_code=0)
print(time.monotonic() - start)
"""


@pytest.mark.parametrize(
    "environment",
    [{}, {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}],
    ids=["no key", "a key but no server"],
)
def test_without_key_or_server_the_run_is_kept_offline_soon_and_secrets_are_not(wandb, tmp_path, environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = {**kept, "HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), **environment}
    command = [sys.executable, "-c", TRACK, str(tmp_path), "token=canary-argument"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert float(done.stdout.splitlines()[-1]) < 6  # seconds; asking a server in vain takes five
    (file,) = runs(tmp_path)
    assert not list(tmp_path.glob("wandb/run-*"))  # a failed start leaves no second run
    assert read_back(file)[0][0]["loss"] == 1.0
    assert lines(tmp_path)[0]["loss"] == 1.0
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"canary-argument" not in written
    assert KEY.encode() not in written


@pytest.mark.parametrize("texts", [True, False], ids=["with texts", "without"])
def test_queries_as_a_table_have_the_scores_of_the_metric_and_their_delta(tmp_path, texts):
    per_query([0.0, 1.0, 0.5], [1.0, 1.0, 0.0]).to_parquet(tmp_path / "q.parquet", index=False)
    frame = queries_of(tmp_path / "q.parquet", metric="recall@10", texts=texts)
    assert ("query" in frame) == texts
    assert list(frame["query_id"]) == ["q0", "q1", "q2"]
    assert list(frame["document"]) == ["d0", "d0", "d1"]
    assert list(frame["delta.recall@10"]) == [1.0, 0.0, -0.5]
    assert not [name for name in frame if "ndcg" in name]


FIRST = ["q0", "what is q0", "d0", "unseen", 0.0, 0.0, 1.0, 1.0]  # ids, text, slice, BM25, base, tuned, delta
SECOND = ["q1", "what is q1", "d0", "unseen", 0.0, 1.0, 1.0, 0.0]
SEND = """
import logging, sys
from pathlib import Path
from embexp.tracking import Tracker, WandbMirror, open_mirror
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
folder, metric = Path(sys.argv[1]), sys.argv[2]
config = {"metric": metric, "report_texts": True}
make = lambda: WandbMirror(folder=folder, config=config, names={}, per_query=True, timeout=10)
tracker = Tracker(folder, open_mirror(make))
tracker.log({"dev/recall@10": 0.5}, step=3)
tracker.finish({"verdict": "better"}, exit_code=0)
"""


@pytest.mark.parametrize(
    ("metric", "rows", "said"),
    [
        ("recall@10", [FIRST, SECOND], ""),
        ("similarity.spearman_cosine", None, "no mean over queries"),
    ],
    ids=["scores per query", "none"],
)
def test_queries_go_to_the_server_as_a_table_and_the_summary_whatever_becomes_of_it(
    wandb, tmp_path, metric, rows, said
):
    (tmp_path / "retrieval").mkdir()
    per_query([0.0, 1.0], [1.0, 1.0]).to_parquet(tmp_path / "retrieval" / "per_query.parquet", index=False)
    with serving() as (environment, ended):
        done = subprocess.run(
            [sys.executable, "-c", SEND, str(tmp_path), metric],
            cwd=REPOSITORY, env={**os.environ, **environment, "HOME": str(tmp_path)}, capture_output=True, text=True,
            check=True, timeout=60,
        )  # fmt: skip
        sent = ended()
    files = {each["file"]: each["content"] for each in sent}
    tables = [json.loads(content)["data"] for name, content in files.items() if name.endswith(".table.json")]
    assert tables == ([rows] if rows is not None else [])
    assert said in done.stdout
    assert json.loads(files["/file/wandb-summary.json"])["verdict"] == "better"


def later():
    time.sleep(20)


def never():
    raise ConnectionError("the server is gone")


@pytest.mark.parametrize(
    ("sending", "said"),
    [(later, "was not sent to wandb in 3 s"), (never, "can't be sent to wandb: ConnectionError: the server is gone")],
)
def test_a_table_that_cannot_be_sent_costs_seconds_and_neither_summary_nor_exit_code(
    wandb, tmp_path, caplog, sending, said
):
    mirror = WandbMirror(folder=tmp_path, config={}, names={}, mode="offline", per_query=True, timeout=3)
    mirror._log_queries = sending
    start = time.monotonic()
    mirror.finish({"verdict": "better"}, exit_code=0)
    assert time.monotonic() - start < 15
    assert said in caplog.text
    (file,) = runs(tmp_path)
    _, _, summary, _, _, exit_code = read_back(file)
    assert (summary["verdict"], exit_code) == ("better", 0)


def test_of_many_queries_the_first_go_to_wandb_which_is_said(wandb, tmp_path, caplog, monkeypatch):
    (tmp_path / "retrieval").mkdir()
    per_query([0.0, 1.0], [1.0, 1.0]).to_parquet(tmp_path / "retrieval" / "per_query.parquet", index=False)
    config = {"metric": "recall@10", "report_texts": True}
    mirror = WandbMirror(folder=tmp_path, config=config, names={}, mode="offline", per_query=True)
    monkeypatch.setattr(wandb.Table, "MAX_ROWS", 1)
    sent = []
    with monkeypatch.context() as patched:
        patched.setattr(mirror._run, "log", sent.append)
        mirror._log_queries()
    mirror._run.finish()
    assert [each["test/per_query"].data for each in sent] == [[FIRST]]
    assert "the first 1 of 2 queries go there" in caplog.text
