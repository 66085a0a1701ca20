"""Whoever reads the output may stop reading."""

import errno
import os
import subprocess
import sys

import pytest

from embexp import console
from tests.command import QUICK
from tests.handbook import write_handbook


def read_one_line(*arguments, folder):
    """Run `python -m ...` as before `| head -1`: exit code, the line, and standard error."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        process.stdout.close()
        return process.wait(120), line, process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()


def test_mining_goes_on_to_its_end_when_nobody_reads_what_it_says(tmp_path):
    write_handbook(tmp_path / "handbook")
    arguments = ["documents=handbook", "out=mined", "miner=sentences", "model=static"]
    code, line, errors = read_one_line("embexp.mine", *arguments, folder=tmp_path)
    assert (code, "loading libraries" in line, errors) == (0, True, "")
    assert (tmp_path / "mined" / "mining.json").exists()
    assert "questions: train" in (tmp_path / "mined" / "mine.log").read_text()


@pytest.mark.parametrize("arguments", [["embexp", "--help"], ["embexp.mine", "--help"], ["embexp", "--cfg", "job"]])
def test_help_and_config_may_be_cut_short(tmp_path, arguments):
    code, line, errors = read_one_line(*arguments, folder=tmp_path)
    assert (code, line != "", errors) == (0, True, "")


def test_the_jobs_of_a_multirun_go_on_too(tmp_path, pairs_file, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")  # transformers prints that it is set, while it is imported
    data = ["dataset=pairs", f"dataset.path={pairs_file}", "dataset.columns.group=group"]
    arguments = ["-m", *data, *QUICK, "trainer=none", "seed=1,2", "hydra.sweep.dir=many"]
    code, _, errors = read_one_line("embexp", *arguments, folder=tmp_path)
    assert (errors, code) == ("", 0)
    assert "base only" in (tmp_path / "many" / "summary.md").read_text()


@pytest.mark.parametrize(("number", "goes_on"), [(errno.EPIPE, True), (errno.EIO, True), (errno.ENOSPC, False)])
def test_a_terminal_that_is_closed_ends_no_run_but_a_full_disk_is_said(tmp_path, number, goes_on):
    with (tmp_path / "out").open("w") as file:

        class Gone:
            def write(self, text):
                raise OSError(number, os.strerror(number))

            fileno = file.fileno

        stream = console.Forgiving(Gone())
        if goes_on:
            assert stream.write("nobody reads this") == 17
            file.write("nor this")
        else:
            with pytest.raises(OSError, match="space"):
                stream.write("this")
    assert (tmp_path / "out").read_text() == ""
