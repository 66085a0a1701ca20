"""Every command on a finished run, of any page, and every line of Python of docs/using-the-model.md runs."""

from __future__ import annotations

import io
import shlex
import shutil
import sys

import pytest

from embexp import stamp
from embexp.export import cli as export
from embexp.export.formats import FORMATS
from embexp.runtimes import load
from embexp.search import cli as search
from tests.command import REPOSITORY
from tests.pages import blocks, commands
from tests.test_export import ran  # noqa: F401

PAGE = REPOSITORY / "docs" / "using-the-model.md"
PYTHON = [block.text for block in blocks(PAGE) if block.language == "python"]
MAIN = {"embexp.search": search.main, "embexp.stamp": stamp.main, "embexp.export": export.main}
SHELL = [command for command in commands() if command.program in MAIN]  # the marked ones too, where they can
RUN = "outputs/2026-01-31/12-00-00-000000"


@pytest.fixture
def here(ran, tmp_path, monkeypatch):  # noqa: F811
    """A folder in which the page's names mean something."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / RUN).parent.mkdir(parents=True)
    (tmp_path / RUN).symlink_to(ran)
    (tmp_path / "index").mkdir()
    shutil.copy(ran / "model" / "embexp.json", tmp_path / "index")
    (tmp_path / "questions.txt").write_text("what is waa\nwhere can one find wbb\n")
    return tmp_path


def test_the_page_has_commands_of_each_kind():
    of_page = [command for command in SHELL if command.block.page == PAGE]
    assert {command.program for command in of_page} == set(MAIN)
    assert len(of_page) >= 8
    assert len(PYTHON) == 5


@pytest.mark.parametrize("command", SHELL, ids=lambda command: command.text)
def test_a_command_of_the_page_runs(here, monkeypatch, capfd, command):
    words, _, read = command.text.partition(" < ")
    module, words = command.program, shlex.split(words)[3:]
    if module == "embexp.export":
        (name,) = (word.removeprefix("format=") for word in words if word.startswith("format="))
        for package in FORMATS[name].needs:
            pytest.importorskip(package, reason=f"{package} is not installed (the extra embexp[export])")
        words = [word for word in words if not word.startswith("max_loss=")] + ["max_loss=0.2"]  # 18 queries
    monkeypatch.setattr(sys, "stdin", io.StringIO((here / read).read_text() if read else "what is waa\n"))
    assert not MAIN[module](words)
    assert capfd.readouterr().out


def test_the_recipe_for_the_index_runs(here, ran):  # noqa: F811
    (recipe,) = (code for code in PYTHON if "embexp.stamp" in code)
    (here / "path" / "to").mkdir(parents=True)
    (here / "path" / "to" / "model").symlink_to(ran / "model")
    (here / "index" / "embexp.json").unlink()
    exec(recipe, {})
    assert (here / "index" / "embexp.json").exists()


def test_the_lines_for_an_export_run(here):
    (lines,) = (code for code in PYTHON if "embexp.runtimes" in code)
    for package in FORMATS["onnx"].needs:
        pytest.importorskip(package, reason=f"{package} is not installed (the extra embexp[export])")
    export.main([RUN, "format=onnx", "out=exports/onnx", "max_loss=0.2"])
    names = {}
    exec(lines, names)
    assert names["load"] is load
    assert names["scores"].shape == (1, 1)
