"""What is kept between runs: found by content, shared safely, and never trusted when torn."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import threading
import time
from types import MappingProxyType

import numpy as np
import pytest
from filelock import FileLock

from embexp import cache


class Counted:
    """Makes a value and counts how often."""

    def __init__(self, value):
        self.value, self.times = value, 0

    def __call__(self):
        self.times += 1
        return self.value


def entries(folder):
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix == ""]


def test_the_same_parts_are_made_once_and_others_again(tmp_path):
    make = Counted({"a": [1, 2]})
    with cache.kept_in(tmp_path):
        found = [cache.json_kept("rankings", parts, make) for parts in (["x", 1], ["x", 1], ["x", 2])]
        cache.json_kept("negatives", ["x", 1], make)  # another kind
    assert found == [{"a": [1, 2]}] * 3
    assert make.times == 3


def test_nothing_is_kept_outside_the_context_or_without_a_folder(tmp_path):
    make = Counted(1)
    with cache.kept_in(tmp_path), cache.kept_in(None):
        assert cache.json_kept("rankings", 1, make) == 1
    assert (cache.json_kept("rankings", 1, make), make.times) == (1, 2)
    assert not list(tmp_path.iterdir())


def test_arrays_come_back_bit_equal_and_objects_are_refused(tmp_path):
    arrays = {"rows": np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32), "names": np.array(["é", "b"])}
    with cache.kept_in(tmp_path):
        for _ in range(2):
            found = cache.arrays_kept("embeddings", "k", lambda: arrays)
            assert {name: (a.dtype, a.tobytes()) for name, a in found.items()} == {
                name: (a.dtype, a.tobytes()) for name, a in arrays.items()
            }
        with pytest.raises(ValueError, match="pickle"):
            cache.arrays_kept("embeddings", "other", lambda: {"a": np.array([{}], dtype=object)})


def test_large_arrays_are_maps_of_the_file_that_nothing_written_to_them_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MAPPED_FROM", 40)
    arrays = {"large": np.arange(12.0).reshape(3, 4), "small": np.arange(3), "turned": np.arange(12.0).reshape(3, 4).T}
    with cache.kept_in(tmp_path):
        first = cache.arrays_kept("embeddings", "k", lambda: arrays)
        assert {name: isinstance(array, np.memmap) for name, array in first.items()} == {
            "large": True,
            "small": False,
            "turned": True,
        }
        assert all(array.ctypes.data % 64 == 0 for name, array in first.items() if name != "small")
        first["large"][0, 0] = 99
        again = cache.arrays_kept("embeddings", "k", None)
        (entry,) = entries(tmp_path)
        entry.unlink()  # what is mapped stays readable
        assert {name: array.tolist() for name, array in again.items()} == {
            name: array.tolist() for name, array in arrays.items()
        }


def test_a_torn_array_is_made_anew(tmp_path, caplog):
    make = Counted({"rows": np.arange(1000.0)})
    with cache.kept_in(tmp_path):
        cache.arrays_kept("embeddings", "k", make)
        (entry,) = entries(tmp_path)
        whole = entry.read_bytes()
        for damaged in (whole[:-1], whole[:3000] + b"xyz" + whole[3003:], whole + b"more"):
            entry.write_bytes(damaged)
            assert cache.arrays_kept("embeddings", "k", make)["rows"].tolist() == list(range(1000))
            assert entry.read_bytes() == whole
    assert make.times == 4
    assert "is torn and is made anew" in caplog.text


@pytest.mark.parametrize(
    "value",
    [
        None,
        "é",
        [],
        {},
        [1, "a", None, True, 1.5],
        {"b": {"d": 1, "c": [2]}, "a": ()},
        {3: "three", 1: "one"},
        [{"z": MappingProxyType({"y": 1, "x": 2})}],
        [[f"p{number}", "text"] for number in range(2500)],
        {f"q{number}": MappingProxyType({"p2": 1, "p1": number}) for number in range(2500, 0, -1)},
        [[("p", "t")] * 1001, [["a", {"c": 1, "b": 2}]] * 17],
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_digest_is_that_of_json_with_sorted_keys(value):
    text = json.dumps(value, sort_keys=True, default=dict)
    assert cache.digest(value) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:-3] + b"xyz", lambda b: b"junk"])
def test_a_torn_entry_is_noticed_and_made_anew(tmp_path, damage, caplog):
    make = Counted(["whole"] * 10)
    with cache.kept_in(tmp_path):
        cache.json_kept("rankings", 1, make)
        (entry,) = entries(tmp_path)
        entry.write_bytes(damage(entry.read_bytes()))
        with caplog.at_level(logging.WARNING, logger="embexp"):
            assert cache.json_kept("rankings", 1, make) == ["whole"] * 10
        assert "torn" in caplog.text
        assert (cache.json_kept("rankings", 1, make), make.times) == (["whole"] * 10, 2)


def test_changed_code_finds_nothing(tmp_path, monkeypatch):
    make = Counted(1)
    with cache.kept_in(tmp_path):
        cache.json_kept("rankings", 1, make)
        monkeypatch.setattr(cache, "_source_digest", lambda: "changed")
        cache.json_kept("rankings", 1, make)
    assert make.times == 2


def test_a_cache_that_cannot_be_written_costs_time_and_not_the_run(tmp_path, monkeypatch, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    make = Counted(1)
    with cache.kept_in(blocked), caplog.at_level(logging.WARNING, logger="embexp"):
        assert [cache.json_kept("rankings", 1, make) for _ in range(2)] == [1, 1]
    assert "can't be used" in caplog.text
    assert make.times == 2


def test_a_full_disk_leaves_no_part_of_an_entry(tmp_path, monkeypatch, caplog):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with cache.kept_in(tmp_path), caplog.at_level(logging.WARNING, logger="embexp"):
        assert cache.json_kept("rankings", 1, lambda: 5) == 5
    assert "No space left" in caplog.text
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def _use(folder, log, barrier):
    def make():
        with log.open("a") as file:
            file.write("made\n")
        return list(range(1000))

    barrier.wait()
    with cache.kept_in(folder):
        assert cache.json_kept("rankings", 1, make) == list(range(1000))


def test_concurrent_runs_make_an_entry_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    log = tmp_path / "made.txt"
    processes = [context.Process(target=_use, args=(tmp_path / "cache", log, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert log.read_text() == "made\n"


def test_waiting_for_what_another_run_makes_is_said_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cache, "PATIENCE", 0.05)
    making, may_end = threading.Event(), threading.Event()

    def slow():
        making.set()
        assert may_end.wait(30)
        return "made"

    def other():
        with cache.kept_in(tmp_path):
            cache.json_kept("rankings", 1, slow)

    with caplog.at_level(logging.INFO, logger="embexp"), cache.kept_in(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        assert making.wait(30)
        threading.Timer(0.5, may_end.set).start()
        assert cache.json_kept("rankings", 1, None) == "made"
        thread.join()
        assert cache.json_kept("rankings", 2, lambda: "at once") == "at once"
    waited = [line for line in caplog.messages if line.startswith("waiting")]
    (path,) = (path for path in entries(tmp_path) if "made" in path.read_text())
    assert waited == [f"waiting for {path}, which another run is making"]


def kept(folder, *kinds):
    """An entry of 1,000 bytes or a little more for each, in turn."""
    with cache.kept_in(folder):
        for age, kind in enumerate(reversed(kinds)):
            cache.json_kept(kind, 1, lambda: "x" * 1000)
            (entry,) = entries(folder / kind)
            used = entry.stat().st_mtime_ns - (age + 1) * 10**9
            os.utime(entry, ns=(used, used))


def kinds_left(folder):
    return {path.parent.name for path in entries(folder)}


def test_the_entries_that_were_not_used_for_longest_go_with_their_locks_until_the_rest_fits(tmp_path):
    kept(tmp_path, "oldest", "middle", "newest")  # about 1,070 bytes each
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("x" * 5000)  # somebody else's
    cache.trim(tmp_path, gigabytes=3.3e-6)
    assert kinds_left(tmp_path) == {"oldest", "middle", "newest"}
    with cache.kept_in(tmp_path):
        cache.json_kept("oldest", 1, None)  # used: not the longest unused any more
    cache.trim(tmp_path, gigabytes=2.2e-6)
    assert kinds_left(tmp_path) == {"oldest", "newest"}
    assert not list((tmp_path / "middle").iterdir())
    cache.trim(tmp_path, gigabytes=1e-9)
    assert kinds_left(tmp_path) == set()
    assert (tmp_path / "notes" / "mine.txt").exists()
    cache.trim(tmp_path / "nowhere", gigabytes=1)


def test_using_an_entry_is_noted_and_does_not_change_when_it_was_made(tmp_path):
    kept(tmp_path, "one")
    (entry,) = entries(tmp_path)
    ahead = time.time_ns() + 10**12  # so that a system that notes a use itself, as most do once a day, leaves it
    os.utime(entry, ns=(ahead, 10**9))
    with cache.kept_in(tmp_path):
        cache.json_kept("one", 1, None)
    assert entry.stat().st_mtime_ns == 10**9
    assert abs(entry.stat().st_atime_ns - time.time_ns()) < 10**11


def test_an_entry_that_another_run_is_making_is_left_alone(tmp_path):
    kept(tmp_path, "busy", "idle")
    (busy,) = entries(tmp_path / "busy")
    with FileLock(f"{busy}.lock"):
        cache.trim(tmp_path, gigabytes=1e-9)
    assert kinds_left(tmp_path) == {"busy"}


def test_what_a_killed_run_left_half_written_goes_after_a_day(tmp_path):
    kept(tmp_path, "one")
    (entry,) = entries(tmp_path)
    old, new = entry.with_name(f"{entry.name}old.partial"), entry.with_name(f"{entry.name}new.partial")
    for path, hours in ((old, 25), (new, 23)):
        path.write_text("half")
        os.utime(path, (time.time() - hours * 3600,) * 2)
    cache.trim(tmp_path, gigabytes=1)
    assert (old.exists(), new.exists(), entry.exists()) == (False, True, True)


def _use_again_and_again(folder, barrier):
    barrier.wait()
    with cache.kept_in(folder):
        for turn in range(300):
            assert cache.json_kept("rankings", turn % 3, lambda: list(range(1000))) == list(range(1000))


def test_runs_get_what_they_need_while_another_trims(tmp_path, caplog):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    processes = [context.Process(target=_use_again_and_again, args=(tmp_path, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    barrier.wait()
    removed = 0
    while any(process.is_alive() for process in processes):
        before = len(entries(tmp_path))
        cache.trim(tmp_path, gigabytes=1e-9)
        removed += before > 0
    assert [process.exitcode for process in processes] == [0] * 3
    assert removed > 3


def test_the_folder_is_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("EMBEXP_CACHE", str(tmp_path / "own"))
    assert cache.default_folder() == tmp_path / "own"
    monkeypatch.delenv("EMBEXP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / "embexp"
