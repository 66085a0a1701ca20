"""What the processes of a run may use, how the end of one is seen, and that nothing of them stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import pytest
import torch
from torch.distributed import TCPStore

from embexp.errors import UserError
from embexp.parallel import follower, joining, machine
from embexp.parallel.joining import joined
from embexp.parallel.machine import Launched, gpus, threads_of
from embexp.parallel.processes import Groups, LostError, Processes, connection
from tests.command import REPOSITORY

LIMITS = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "RAYON_NUM_THREADS")
MEGABYTE = 2**20


@pytest.fixture
def server():
    """What torchrun's processes meet in."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def three_gpus(monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: ["0", "5", "7"])
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def state():
    return [os.environ.get(name) for name in LIMITS], torch.get_num_threads()


# what each may use


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("2,3", ["2", "3"]),
        ("-1", []),
        ("0,-1,1", ["0"]),
        ("0,,1", ["0"]),
        ("0, 1", ["0", "1"]),
        ("GPU-a,MIG-b", ["GPU-a", "MIG-b"]),
        ("NoDevFiles", []),  # what some clusters write for none
    ],
)
def test_gpus_are_counted_up_to_the_first_that_cuda_rejects(monkeypatch, named, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert gpus() == found


def test_a_follower_of_torchrun_keeps_to_its_gpu_and_to_the_threads_of_every_library(monkeypatch, three_gpus):
    monkeypatch.setattr(follower, "end_with", lambda process: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name, value in zip(LIMITS, ("0,5,7", "3", "16"), strict=True):  # three threads, which the user has set
        monkeypatch.setenv(name, value)
    threads = torch.get_num_threads()
    try:
        follower.take_up(Launched(rank=1, count=2, address="127.0.0.1", port=1, attempt=0))
        assert state() == (["5", "3", "3"], 3)
    finally:
        torch.set_num_threads(threads)


def test_followers_start_where_a_folder_is_named_like_a_package_and_keep_to_their_share(monkeypatch, tmp_path):
    (tmp_path / "embexp").mkdir()
    (tmp_path / "embexp" / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    monkeypatch.setattr(sys, "path", [str(REPOSITORY), *filter(None, sys.path)])
    monkeypatch.chdir(tmp_path)
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    before = state()
    with joined(2, None) as processes:
        each = threads_of(2, None, now=before[1])
        assert state() == ([None, str(each), str(each)], each)
        assert processes._groups.gpu is None  # connected: a follower that imports the wrong package can't be reached
    assert state() == before


# how the end of one is seen


class Gpu:
    """Stands for NCCL's connection."""

    def __init__(self):
        self.aborted = threading.Event()

    def abort(self):
        self.aborted.set()


def launched_and_connected(server, process, monkeypatch):
    """The followers of torchrun, one of them this process, connected over a GPU."""
    others = joining._Launched(Launched(rank=0, count=2, address="127.0.0.1", port=server.port, attempt=0))
    server.set("embexp0/here/1", str(process.pid))
    server.set("embexp0/ready/1", "")
    gpu = Gpu()
    monkeypatch.setattr(joining, "connected_over", lambda *_, **__: Groups(None, gpu))
    others.connect(gpu=True)
    return others, gpu


@pytest.fixture
def sleeping():
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(100)"])
    yield process
    process.kill()
    process.wait()


def test_nccl_is_aborted_when_a_rank_of_torchrun_dies(server, sleeping, monkeypatch):
    others, gpu = launched_and_connected(server, sleeping, monkeypatch)
    assert not gpu.aborted.wait(3 * joining.BETWEEN_LOOKS)
    sleeping.kill()
    assert gpu.aborted.wait(30)
    assert others.why_lost(LostError("aborted")) == "process 1 of 2 has ended; torchrun says below how"


def test_nccl_is_left_alone_when_a_rank_ends_as_it_was_told(server, sleeping, monkeypatch):
    others, gpu = launched_and_connected(server, sleeping, monkeypatch)
    joining._Others.end(others, Processes(0, 2, lambda: Groups(None)))
    sleeping.kill()
    assert not gpu.aborted.wait(3 * joining.BETWEEN_LOOKS)


EARLY = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "embexp.parallel.follower":
            os._exit(9)
sys.meta_path.insert(0, Finder())
from embexp.cli import main
main()
"""


def test_a_rank_of_torchrun_that_dies_while_it_loads_libraries_is_named(server):
    told = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port)}
    environment = {**os.environ, **told, "TORCHELASTIC_USE_AGENT_STORE": "True", "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run([sys.executable, "-c", EARLY], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 9, ended.stderr
    others = joining._Launched(Launched(rank=0, count=2, address="127.0.0.1", port=server.port, attempt=0))
    with pytest.raises(LostError, match="before it could connect"):
        others.connect(gpu=False)
    assert others.why_lost(LostError("")) == "process 1 of 2 has ended; torchrun says below how"


def test_where_no_process_has_ended_the_reason_is_what_torch_said(server, monkeypatch):
    monkeypatch.setattr(joining, "SECONDS_TO_KNOW", 0)
    others = joining._Launched(Launched(rank=0, count=2, address="127.0.0.1", port=server.port, attempt=0))
    said = others.why_lost(LostError("Connection reset by peer"))
    assert said == "another of the 2 processes can't be reached (Connection reset by peer); resume the run"


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), torch.OutOfMemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), RuntimeError),
        (RuntimeError("Connection closed by peer"), LostError),
    ],
)
def test_memory_that_was_refused_is_no_lost_process(error, raised):
    with pytest.raises(raised, match=str(error)[:20]) as found, connection():
        raise error
    assert type(found.value) is raised


# what is passed


class Wire:
    """A connection that keeps what is sent, or gives it."""

    def __init__(self):
        self.sent = []

    def broadcast(self, tensors):
        self.sent.append(tensors[0])
        return self

    def wait(self):
        """At once."""


class Received(Wire):
    def broadcast(self, tensors):
        tensors[0].copy_(self.sent.pop(0))
        return self


def peak(call):
    """Megabytes that Python holds at most in a call beside what it held before."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        result = call()
        return (tracemalloc.get_traced_memory()[1] - before) / MEGABYTE, result
    finally:
        tracemalloc.stop()


def test_an_order_is_held_once_where_it_is_given_and_not_at_all_beside_its_arguments_where_it_is_heard():
    wire, text = Wire(), bytes(32 * MEGABYTE)
    given, _ = peak(lambda: Processes(0, 2, lambda: Groups(wire)).tell("train", rows=text))
    assert 32 <= given < 40  # a buffer grows by an eighth
    received = Received()
    received.sent = wire.sent
    heard, order = peak(Processes(1, 2, lambda: Groups(received)).heard)
    assert order == ("train", {"rows": text})
    assert 32 <= heard < 33


# what stays behind


def test_when_a_follower_cant_be_started_nothing_of_the_others_stays(monkeypatch, tmp_path, three_gpus):
    start, started = subprocess.Popen, []

    def refused(*_, **options):
        if started:
            raise OSError("too many processes")
        started.append(start([sys.executable, "-S", "-c", "import time; time.sleep(100)"], env=options["env"]))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", refused)
    monkeypatch.setattr(joining.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,5,7")
    before = state()
    with pytest.raises(OSError, match="too many"), joined(3, None):
        pytest.fail("one is missing")
    assert started[0].returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
    assert state() == before


def test_the_gpus_that_a_run_sees_are_put_back_after_it(monkeypatch, three_gpus):
    monkeypatch.setattr(joining._Started, "start", lambda self: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,5,7")
    before = state()
    with joined(2, None):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert state() == before
    with pytest.raises(UserError, match=r"there are 3 GPUs.*set trainer.processes=3"), joined(4, None):
        pytest.fail("too few")
    assert state() == before


def test_a_process_ends_with_another_that_is_not_its_parent(sleeping):
    code = "import sys, time; from embexp.parallel.machine import end_with; end_with(int(sys.argv[1])); time.sleep(100)"
    ending = subprocess.Popen([sys.executable, "-c", code, str(sleeping.pid)], cwd=REPOSITORY)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            ending.wait(2)
        sleeping.kill()  # a zombie until it is waited for
        began = time.monotonic()
        assert ending.wait(30) == 1
        assert time.monotonic() - began < 10
    finally:
        ending.kill()
        ending.wait()
