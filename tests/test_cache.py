"""What is kept between runs: found by content, shared safely, and never trusted when torn."""

from __future__ import annotations

import logging
import multiprocessing

import numpy as np
import pytest

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


def test_the_folder_is_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("EMBEXP_CACHE", str(tmp_path / "own"))
    assert cache.default_folder() == tmp_path / "own"
    monkeypatch.delenv("EMBEXP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / "embexp"
