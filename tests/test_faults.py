"""What docs/faults.md promises, row by row: the fault is made to happen, and nothing earlier is lost."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.attempts import Ending, at_file_event, attempt, configured
from tests.command import QUICK, REPOSITORY, separate
from tests.tiny import tiny_cross_encoder, tiny_transformer

CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24


@pytest.fixture(scope="module")
def config(pairs):
    data = ["dataset=pairs", f"dataset.path={pairs}", "dataset.columns.group=group"]
    return configured(*data, "model=static", "model.dimension=64")


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The ending of a run without faults."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert attempt(config, folder) == 0
    return Ending.of(folder)


def error_of(folder):
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "failed"
    return result["error"]


def no_file_above(size: int, folder: Path) -> None:
    """The system refuses to write more than `size` bytes into any file, as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("size", [30_000, 60_000], ids=["in the weights", "in the optimiser's state"])
def test_a_disk_full_in_a_checkpoint_fails_clearly_and_the_run_can_be_resumed(config, whole, tmp_path, size):
    weights = len(whole.weights)
    assert 30_000 < weights < 60_000 < 2 * weights  # so that the sizes hit what their names say
    folder = tmp_path / "run"
    assert attempt(config, folder, before=partial(no_file_above, size)) == 1
    assert "the disk is full" in error_of(folder)
    assert attempt(config, folder) == 0
    assert Ending.of(folder) == whole


def test_a_disk_too_full_for_the_result_ends_with_an_error_and_the_run_can_be_resumed(config, whole, tmp_path):
    folder = tmp_path / "run"
    assert attempt(config, folder, before=partial(no_file_above, 2_000)) == 1
    assert not (folder / "result.json").exists()
    assert attempt(config, folder) == 0
    assert Ending.of(folder) == whole
    assert not list(folder.rglob("*.partial"))


def obey_permissions() -> None:
    """Root may write anywhere; take that from this process and what it starts."""
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0) != 0:
        os._exit(99)


@pytest.mark.skipif(sys.platform != "linux", reason="drops a capability of Linux")
def test_a_read_only_folder_is_refused_before_anything_loads(tmp_path, pairs):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    command = [f"dataset.path={pairs}", "dataset=pairs", "dataset.columns.group=group", *QUICK]
    start = time.monotonic()
    ended = separate(*command, f"hydra.run.dir={folder}/run", folder=tmp_path, preexec_fn=obey_permissions)
    assert ended.returncode == 1, ended.stdout
    assert "can't be made" in ended.stderr
    assert time.monotonic() - start < 10
    assert not list(folder.iterdir())


def cut_last_checkpoint_short(folder):
    last = max(folder.glob("checkpoints/checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    file = last / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-100])
    return last


def test_a_checkpoint_cut_short_is_skipped_for_the_one_before(config, whole, tmp_path):
    folder = tmp_path / "run"
    assert attempt(config, folder, before=partial(at_file_event, 1, where="/run/model")) == -signal.SIGKILL
    cut_last_checkpoint_short(folder)
    assert attempt(config, folder) == 0
    assert Ending.of(folder) == whole


@pytest.mark.parametrize("helper", ["guide", "teacher", "rescorer"])
def test_a_helper_that_changed_before_resuming_is_refused(pairs, tmp_path, helper):
    path = tiny_transformer(tmp_path / "helper") if helper == "guide" else tiny_cross_encoder(tmp_path / "helper")
    chosen = {
        "guide": ["loss=gist", f"loss.guide={path}", "model=local", f"model.path={path}", "paraphrase=null"],
        "teacher": ["loss=margin_mse", f"loss.teacher={path}", "model=static", "model.dimension=16"],
        "rescorer": ["loss=triplet", "negatives=hard", f"negatives.rescorer={path}", "model=static"],
    }[helper]
    data = ["dataset=pairs", f"dataset.path={pairs}", "dataset.columns.group=group"]
    base = shutil.copytree(path, tmp_path / "base")
    config = configured(*data, *(word.replace(f"model.path={path}", f"model.path={base}") for word in chosen))
    folder = tmp_path / "run"
    assert attempt(config, folder, before=partial(at_file_event, 1, where="/run/model")) == -signal.SIGKILL
    with (path / "tokenizer.json").open("a") as file:
        file.write(" ")  # which changes no score
    assert attempt(config, folder) == 1
    assert "one that helps to train it (guide, teacher, rescorer) has changed" in error_of(folder)
    assert list(folder.glob("checkpoints/*"))  # nothing is lost
    file = path / "tokenizer.json"
    file.write_text(file.read_text()[:-1])
    assert attempt(config, folder) == 0
    (setting, identity) = json.loads((folder / "result.json").read_text())["fingerprint"]["helpers"].popitem()
    assert setting.endswith(helper)
    assert identity["path"] == str(path)


def damage_the_best_before_it_is_loaded(folder: Path) -> None:
    from embexp.training.trainer import Trainer

    load = Trainer._load_best_model

    def damaged(self):
        file = folder / "checkpoints" / f"checkpoint-{self.state.best_global_step}" / "model.safetensors"
        content = file.read_bytes()
        file.write_bytes(content[:-8] + b"\x01" * 8)
        load(self)

    Trainer._load_best_model = damaged


def test_a_corrupt_best_checkpoint_fails_clearly_and_the_run_can_be_resumed(config, whole, tmp_path):
    folder = tmp_path / "run"
    assert attempt(config, folder, before=damage_the_best_before_it_is_loaded) == 1
    assert "the best checkpoint" in error_of(folder)
    assert "damaged" in error_of(folder)
    assert not (folder / "model").exists()
    assert attempt(config, folder) == 0
    assert Ending.of(folder) == whole


@pytest.mark.parametrize("text", ['{"step": 4, "seco', "\0\0\0"])
def test_a_torn_last_line_of_the_metrics_is_dropped(config, whole, tmp_path, text):
    folder = tmp_path / "run"
    assert attempt(config, folder, before=partial(at_file_event, 1, where="/run/model")) == -signal.SIGKILL
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(text)
    assert attempt(config, folder) == 0
    assert Ending.of(folder) == whole


def test_memory_refused_is_a_clear_failure(embexp, pairs):
    run = embexp(
        f"dataset.path={pairs}", "dataset=pairs", "dataset.columns.group=group", *QUICK, "model.dimension=900000000"
    )
    assert run.code == 1
    assert "memory was refused" in run.output
    assert "smaller model" in run.result["error"]
    assert "Traceback" not in run.output


TRACKED = """
import logging, sys, time
from pathlib import Path
from embexp.tracking import Tracker, WandbMirror, open_mirror
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
folder = Path(sys.argv[1])
tracker = Tracker(folder, open_mirror(lambda: WandbMirror(folder=folder, config={}, names={})))
for step in range(20):
    print("step", step, flush=True)
    tracker.log({"loss": 1.0}, step=step)
    if step == 9:
        sys.stdin.readline()  # the test makes the fault now
    time.sleep(0.05)
start = time.monotonic()
tracker.finish({"verdict": "better"}, exit_code=0)
print("finished in", time.monotonic() - start, flush=True)
"""


def tracked(folder, environment, fault):
    """Twenty steps of a run that wandb mirrors, with a fault after the tenth; returns the output and all seconds."""
    own = {**os.environ, **environment, "HOME": str(folder), "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", TRACKED, str(folder)], env=own, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    for line in process.stdout:
        if line == "step 9\n":
            break
    time.sleep(0.5)
    fault(process)
    start = time.monotonic()
    output, _ = process.communicate("go on\n", timeout=90)
    assert process.returncode == 0, output
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [*range(20)]
    return output, time.monotonic() - start


def processes_below(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return [*children, *(below for child in children for below in processes_below(child))]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to find wandb's process")
def test_wandbs_process_killed_in_the_middle_the_run_goes_on(tmp_path):
    pytest.importorskip("wandb", reason="needs the extra embexp[wandb]")

    def kill_wandb(process):
        late = time.monotonic() + 60
        while not [*tmp_path.rglob("*.wandb")] and time.monotonic() < late:  # it starts beside the run
            time.sleep(0.1)
        below = processes_below(process.pid)
        killed = [pid for pid in below if "wandb" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert killed
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

    output, seconds = tracked(tmp_path, {"WANDB_MODE": "offline"}, kill_wandb)
    assert "tracking stopped, the run goes on" in output
    assert seconds < 20


def test_the_network_gone_in_the_middle_the_run_goes_on(tmp_path):
    pytest.importorskip("wandb", reason="needs the extra embexp[wandb]")
    server = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "tests" / "wandb_server.py")], stdout=subprocess.PIPE, text=True
    )
    address = f"http://127.0.0.1:{server.stdout.readline().strip()}"
    environment = {"WANDB_MODE": "online", "WANDB_BASE_URL": address, "WANDB_API_KEY": "0123456789" * 4}

    def end_the_network(_):
        server.kill()
        assert "/graphql" in server.communicate()[0]  # the run had gone online

    output, seconds = tracked(tmp_path, environment, end_the_network)
    assert float(output.split("finished in")[1].split()[0]) < 10
    assert seconds < 30
