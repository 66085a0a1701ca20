"""Processes of their own: what each may use, how they end and how that is told, and that none outlives its parent."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from omegaconf import OmegaConf

from embexp.errors import UserError
from embexp.jobs import workers
from embexp.jobs.workers import Ended, Worker, in_own_process, slots, wait_for_any
from embexp.parallel.machine import Slot
from embexp.sweep.crew import End, end_of
from embexp.sweep.sweeper import _crew_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sends signals")


@dataclass(frozen=True)
class Task:
    """Stands for a job: what a worker calls."""

    folder: Path
    act: str

    def run_elsewhere(self) -> None:
        (self.folder / "pid.partial").write_text(str(os.getpid()))
        (self.folder / "pid.partial").rename(self.folder / "pid")
        globals()[f"do_{self.act}"](self.folder)


def do_nothing(folder):
    sys.exit(0)


def do_fail(folder):
    print("before it failed")
    raise RuntimeError("a bug")


def do_exit(folder):
    os._exit(7)


def do_interrupted(folder):
    sys.exit(130)


def do_kill(folder):
    os.kill(os.getpid(), signal.SIGKILL)


def do_crash(folder):
    os.kill(os.getpid(), signal.SIGSEGV)


def do_sleep(folder):
    time.sleep(60)


def do_soon(folder):
    time.sleep(0.3)
    sys.exit(0)


def do_look_around(folder):
    import torch

    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "RAYON_NUM_THREADS")
    found = {name: os.environ.get(name) for name in names}
    (folder / "found.json").write_text(json.dumps({**found, "torch": torch.get_num_threads()}))
    sys.exit(0)


def started(folder, act, *, threads=None, devices=None):
    """A worker whose task has begun."""
    folder.mkdir(exist_ok=True)
    worker = Worker(Task(folder, act), Slot(threads, devices), quiet=True)
    pid_in(folder)
    return worker


def pid_in(folder):
    until = time.monotonic() + 60
    while not (folder / "pid").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    return int((folder / "pid").read_text())


def ended(worker):
    wait_for_any([worker], seconds=30)
    return worker.ended()


def is_gone(pid, *, within):
    until = time.monotonic() + within
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


# what each may use


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes this machine one of so many cores and GPUs; None: without nvidia-smi."""

    def make(*, cores=8, gpus=None, visible=None):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setenv("PATH", str(tmp_path))
        if gpus is not None:
            lines = "".join(f"echo 'GPU {place}: NVIDIA (UUID: GPU-{place})'\n" for place in range(gpus))
            (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{lines}echo done\n")
            (tmp_path / "nvidia-smi").chmod(0o755)

    return make


@pytest.mark.parametrize(("number", "threads"), [(1, 8), (2, 4), (3, 2), (8, 1), (16, 1)])
def test_slots_share_the_cores_out(machine, number, threads):
    machine(cores=8)
    assert slots(number) == [Slot(threads, None)] * number


@pytest.mark.parametrize(
    ("gpus", "visible", "devices"),
    [
        (None, None, [None, None, None]),
        (0, None, [None, None, None]),
        (1, None, ["0", "0", "0"]),
        (2, None, ["0", "1", "0"]),
        (4, None, ["0", "1", "2"]),
        (4, "2,3", ["2", "3", "2"]),
        (4, "", [None, None, None]),  # switched off for all
        (None, "GPU-a,GPU-b", ["GPU-a", "GPU-b", "GPU-a"]),
    ],
)
def test_slots_are_bound_to_the_gpus_that_may_be_used_in_turn(machine, gpus, visible, devices):
    machine(gpus=gpus, visible=visible)
    assert [slot.devices for slot in slots(3)] == devices


@pytest.mark.parametrize(
    ("gpus", "processes", "devices"),
    [
        (4, 2, ["0,1", "2,3", "0,1"]),
        (3, 2, ["0,1", "2,0", "1,2"]),
        (2, 2, ["0,1", "0,1", "0,1"]),
        (None, 2, [None, None, None]),
    ],
)
def test_a_slot_has_a_gpu_for_each_process_of_its_job(machine, monkeypatch, gpus, processes, devices):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    machine(gpus=gpus)
    assert [slot.devices for slot in slots(3, processes=processes)] == devices


def test_a_sweep_refuses_more_processes_than_gpus_before_its_first_trial(machine, monkeypatch):
    launcher = {"_target_": "hydra_plugins.embexp_launcher.ProcessLauncher"}
    config = OmegaConf.create({"trainer": {"processes": 3}, "hydra": {"launcher": launcher}})
    machine(gpus=2)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(UserError, match=r"trainer.processes=3: there are 2 GPUs.*set trainer.processes=2"):
        _crew_for(config, 1)
    monkeypatch.setattr(torch.version, "cuda", None)  # a torch that can use none of them
    assert _crew_for(config, 1).has_room()


def test_a_worker_keeps_to_its_slot(tmp_path):
    worker = started(tmp_path, "look_around", threads=3, devices="5")
    assert ended(worker).code == 0
    assert worker.slot == Slot(3, "5")
    expected = {"CUDA_VISIBLE_DEVICES": "5", "OMP_NUM_THREADS": "3", "RAYON_NUM_THREADS": "3", "torch": 3}
    assert json.loads((tmp_path / "found.json").read_text()) == expected


def loaded():
    return {"embexp.run", "embexp.training.fine_tuning", "sentence_transformers"} <= sys.modules.keys()


def test_what_is_imported_beforehand_is_there_and_in_the_children(tmp_path):
    assert all(importlib.util.find_spec(name) for name in workers.PRELOADED)  # a mistyped one would be passed over
    assert in_own_process(loaded)


# how they end


@pytest.mark.parametrize(
    ("act", "code", "end"),
    [
        ("nothing", 0, End("ended with exit code 0", from_outside=False)),
        ("fail", 1, End("ended with exit code 1", from_outside=False)),
        ("exit", 7, End("ended with exit code 7", from_outside=False)),
        ("crash", -signal.SIGSEGV, End("was killed by SIGSEGV", from_outside=False)),
        ("kill", -signal.SIGKILL, End("was killed by SIGKILL", from_outside=True)),
        ("interrupted", 130, End("was interrupted, or its folder was in use", from_outside=True, interrupted=True)),
    ],
)
def test_a_worker_tells_how_it_ended(tmp_path, act, code, end):
    found = ended(started(tmp_path, act))
    assert found == Ended(code)
    assert end_of(found) == end


def test_a_worker_that_dies_takes_no_other_with_it_and_is_noticed_at_once(tmp_path):
    one, other = (started(tmp_path / name, "sleep") for name in ("one", "other"))
    start = time.monotonic()
    wait_for_any([one, other], seconds=0.2)
    assert time.monotonic() - start >= 0.2
    start = time.monotonic()
    os.kill(pid_in(tmp_path / "one"), signal.SIGKILL)
    wait_for_any([one, other], seconds=30)
    assert time.monotonic() - start < 1
    assert one.ended() == Ended(-signal.SIGKILL)
    assert other.ended() is None
    other.stop(interrupted=False)
    assert other.ended() == Ended(-signal.SIGKILL)


def test_what_a_quiet_worker_prints_and_dies_of_is_in_its_log(tmp_path):
    ended(started(tmp_path, "fail"))
    log = (tmp_path / "embexp.log").read_text()
    assert "before it failed" in log
    assert "RuntimeError: a bug" in log


def test_after_ctrl_c_a_worker_may_end_by_itself_but_not_take_for_ever(tmp_path, monkeypatch):
    ends, never = started(tmp_path / "ends", "soon"), started(tmp_path / "never", "sleep")
    ends.stop(interrupted=True)
    assert ends.ended() == Ended(0)
    monkeypatch.setattr(workers, "SECONDS_TO_END", 0.2)
    never.stop(interrupted=True)
    assert never.ended() == Ended(-signal.SIGKILL)


@pytest.mark.parametrize(
    ("act", "after", "out_of_memory"),
    [("kill", 4, True), ("kill", 3, False), ("exit", 4, False), ("nothing", 4, False)],
)
def test_a_worker_killed_while_the_system_killed_for_memory_was_out_of_memory(
    tmp_path, monkeypatch, act, after, out_of_memory
):
    monkeypatch.setattr(workers, "_killed_for_memory", lambda: 3)
    worker = started(tmp_path, act)
    monkeypatch.setattr(workers, "_killed_for_memory", lambda: after)
    found = ended(worker)
    assert found.out_of_memory == end_of(found).out_of_memory == out_of_memory


@pytest.mark.parametrize(
    ("text", "count"), [("pgfault 12\noom_killer 9\noom_kill 7\n", 7), ("pgfault 12\n", 0), (None, 0)]
)
def test_the_systems_count_of_kills_for_memory_is_read_where_there_is_one(tmp_path, monkeypatch, text, count):
    if text is not None:
        (tmp_path / "vmstat").write_text(text)
    monkeypatch.setattr(workers, "Path", lambda path: tmp_path / path.removeprefix("/proc/"))
    assert workers._killed_for_memory() == count


FORKER_KILLED = """
import os, signal, sys
from multiprocessing import forkserver
from pathlib import Path
from embexp.jobs import workers
from tests.test_workers import ended, is_gone, pid_in, started
workers.PRELOADED[:] = ["embexp.jobs.workers"]  # torch takes seconds
folder = Path(sys.argv[1])
worker = started(folder / "first", "sleep")
os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
assert is_gone(forkserver._forkserver._forkserver_pid, within=5)
code = ended(worker).code
print(code, is_gone(pid_in(folder / "first"), within=2))  # it must not go on beside its successor
print(ended(started(folder / "second", "exit")).code)
"""


def test_when_the_process_that_forks_is_killed_its_workers_are_too_and_new_ones_start(tmp_path):
    found = subprocess.run([sys.executable, "-c", FORKER_KILLED, str(tmp_path)], capture_output=True, text=True)
    assert found.stdout == "-9 True\n7\n", found.stderr


# functions


def doubled(number):
    return 2 * number, os.getpid()


def refuse(what):
    raise UserError(f"{what} is wrong", "and so is this")


def divide(by):
    return 1 / by


def die(how):
    os.kill(os.getpid(), how) if how else os._exit(3)


def test_a_function_in_its_own_process_returns_its_value():
    value, pid = in_own_process(doubled, 21)
    assert value == 42
    assert pid != os.getpid()


def test_a_function_in_its_own_process_raises_its_error():
    with pytest.raises(ZeroDivisionError):
        in_own_process(divide, 0)
    with pytest.raises(UserError) as error:
        in_own_process(refuse, "this")
    assert error.value.problems == ("this is wrong", "and so is this")


@pytest.mark.parametrize(("how", "code"), [(None, 3), (signal.SIGKILL, -9), (signal.SIGSEGV, -11)])
def test_a_function_whose_process_dies_is_a_child_process_error(how, code):
    with pytest.raises(ChildProcessError, match=f"ended with exit code {code}"):
        in_own_process(die, how)


# none outlives its parent


PARENT = """
import sys, threading, time
from pathlib import Path
from embexp.jobs import workers
from embexp.parallel.machine import Slot
from tests.test_workers import Task, do_sleep, pid_of_mine
workers.PRELOADED[:] = ["embexp.jobs.workers"]  # torch takes seconds
folder = Path(sys.argv[1])
worker = workers.Worker(Task(folder, "sleep"), Slot(), quiet=False)
threading.Thread(target=workers.in_own_process, args=(pid_of_mine, folder / "function"), daemon=True).start()
time.sleep(60)
"""


def pid_of_mine(folder):
    folder.mkdir()
    Task(folder, "sleep").run_elsewhere()


def test_all_that_a_process_has_started_ends_when_it_is_killed(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)])
    pids = [pid_in(tmp_path), pid_in(tmp_path / "function")]
    below = [child.pid for child in psutil.Process(parent.pid).children(recursive=True)]
    assert set(pids) < set(below)  # and the process that forks
    parent.kill()
    parent.wait()
    assert all(is_gone(pid, within=3) for pid in below)
