"""Every command of the README and of docs/ runs, made small by overrides, or is marked with why not."""

import functools
import json
import os
import re
import runpy
import subprocess
import sys

import pytest

from embexp.config.arguments import checked_arguments
from tests.command import QUICK, REPOSITORY, separate
from tests.folders import per_query, run_folder
from tests.mine_server import Stub
from tests.pages import PAGES, blocks, commands, write_files
from tests.test_using_the_model import MAIN as OF_FINISHED_RUNS
from tests.tiny import tiny_transformer

COMMANDS = commands()
RUN = [command for command in COMMANDS if command.block.why_not is None]
MARKED = [command for command in COMMANDS if command.block.why_not is not None]
LANGUAGES = {"sh", "python", "yaml", "json", "text"}
FEW = "dataset.packages=[json,logging,email]"
HUB = ["model=stsb-distilbert"]
FILLED_IN = re.compile(r"<[a-z][^>]*>")  # <folder>: for the reader to fill in
INLINE = re.compile(r"`(python -m embexp [^`]+)`")


def of(*programs, chosen=RUN):
    """The commands of these programs, named by their text."""
    return [pytest.param(command, id=command.text) for command in chosen if command.program in programs]


def is_script(command):
    return command.program == "python" and command.words[1].endswith(".py")


def test_every_command_of_every_page_is_run_by_a_test_here_or_marked_with_why_not():
    run = {"embexp", "embexp.mine", "embexp.compare", "embexp.page", "torchrun", "export", *OF_FINISHED_RUNS}
    neither = [command.text for command in RUN if command.program not in run and not is_script(command)]
    assert neither == []
    assert all(len(command.block.why_not.split()) >= 3 for command in MARKED), "a mark says why"
    assert len(RUN) >= 60
    assert len(MARKED) <= 56  # of 117


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_no_command_outside_a_block_of_sh(page):
    found = list(blocks(page))
    assert {block.language for block in found} <= LANGUAGES
    inside = {line for block in found for line in block.lines}
    outside = [line for line in page.read_text().splitlines() if line not in inside]
    program = r"(?:\w+=\S+ )*(?:\$ |sudo |taskset |nice )*(?:python|pip|make|torchrun|embexp|optuna-dashboard)\b.*"
    assert [line for line in outside if re.fullmatch(rf"(?:    |\t){program}", line)] == []
    # nor among the lines of another language
    assert [line for block in found if block.language != "sh" for line in block.lines if line[:7] == "python "] == []


def test_lines_of_python_are_files_or_on_pages_whose_tests_run_them():
    assert {block.page.name for block in python_lines()} == {"sweeps.md", "using-the-model.md"}


def test_every_page_is_found_from_the_readme():
    found, waiting = set(), [PAGES[0]]
    while waiting:
        page = waiting.pop()
        if page in PAGES and page not in found:
            found.add(page)
            waiting += [(page.parent / name).resolve() for name in re.findall(r"\]\(([\w./-]+\.md)", page.read_text())]
    assert found == set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_inside_the_repository_leads_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


@pytest.mark.parametrize("command", of("make", chosen=MARKED))
def test_a_make_target_of_a_page_exists(command):
    assert re.search(rf"^{command.arguments[0]}:", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("command", of("embexp", "embexp.mine", chosen=MARKED))
def test_a_command_that_is_not_run_is_one_that_embexp_accepts(tmp_path, monkeypatch, command):
    if FILLED_IN.search(command.text):
        pytest.skip("has a place to fill in")
    if "submitit" in command.text:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="hydra-submitit-launcher is not installed")
    monkeypatch.chdir(tmp_path)
    assert_accepted(command.program, command.arguments)


def assert_accepted(program, words):
    program_of = {}
    if program == "embexp.mine":
        from embexp.mine.config import MINE

        program_of = {"program": MINE}
    kept = [word for word in words if word != "-m"]
    assert checked_arguments(kept, config_dir=None, sweep="-m" in words, **program_of)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_inside_a_sentence_is_one_that_embexp_accepts(page):
    for text in INLINE.findall(" ".join(page.read_text().split())):
        words = text.split()[3:]
        if not FILLED_IN.search(text) and not {"...", "--help"} & set(words):
            assert_accepted("embexp", words)


@pytest.fixture
def here(tmp_path, pairs_file, command):
    """A folder in which the names of the command's page mean something, with the files that the page shows."""
    write_files(command.block.page, tmp_path)
    (tmp_path / "docs").symlink_to(REPOSITORY / "docs")
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "sources").symlink_to(REPOSITORY / "embexp")
    for name in ("model", "checkpoint"):
        if f"path/to/{name}" in command.block.page.read_text():
            tiny_transformer(tmp_path / "path" / "to" / name)
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    tickets = [
        {"id": number, "subject": row["query"],
         "article": {"id": row["group"], "text": row["passage"], "manual": row["group"]}}
        for number, row in enumerate(rows)
    ]  # fmt: skip
    (tmp_path / "tickets.jsonl").write_text("".join(json.dumps(ticket) + "\n" for ticket in tickets))
    return tmp_path


def made_small(arguments):
    """The command's words and those that make it small, which the command's own go before."""
    small = list(QUICK)
    if "trainer=none" in arguments:
        small.remove("trainer=smoke")
    if "loss=matryoshka" in arguments:
        small.append("loss.dims=[8]")  # of 16
    if "reranker=trained" in arguments:
        small += ["limit=10", FEW]
    if any(word.startswith("dataset=mined") for word in arguments):
        small.append("limit=10")
    chosen = {word.split("=")[0] for word in arguments}
    small = [word for word in small if word.split("=")[0] not in chosen]
    if "model" in chosen and "model=static" not in arguments:
        small = [word for word in small if not word.startswith("model.")]
    return [*arguments, *small]


def own_code(arguments):
    """Whether the command needs a process of its own, since it imports a module of its folder."""
    return any(word.startswith("allowed_packages=") for word in arguments)


@pytest.mark.parametrize("command", of("embexp"))
def test_a_command_runs(embexp, here, command):
    arguments = command.arguments
    if "hydra/launcher=submitit_slurm" in arguments:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="hydra-submitit-launcher is not installed")
    if any(word in ("--help", "--cfg") for word in arguments):
        run = embexp(*arguments)
    elif any(word.startswith("sweep=") for word in arguments):
        few = ["hydra.sweeper.n_trials=2", "sweep.confirm_seeds=1", FEW]
        ended_well(separate(*arguments, *QUICK, *few, folder=here), here, results=3)
        if arguments == ["-m", "sweep=mnrl"]:
            read_the_study()
        return
    elif "-m" in arguments:
        values = [len(word.partition("=")[2].split(",")) for word in arguments if "," in word and "[" not in word]
        jobs = functools.reduce(lambda product, count: product * count, values, 1)
        ended_well(separate(*made_small(arguments), FEW, folder=here), here, results=jobs)
        return
    elif arguments[0].startswith("resume="):  # of a run that is there
        done = embexp(*QUICK, FEW)
        run = embexp(f"resume={done.folder}")
    elif own_code(arguments):
        ended_well(separate(*made_small(arguments), folder=here), here, results=1)
        return
    else:
        make_what_is_read(embexp, here, command)
        run = embexp(*made_small(arguments))
    if any(word in HUB for word in arguments):
        assert run.code == 1
        assert "can't be had" in run.output
    else:
        assert run.code == 0, run.output


def read_the_study():
    """Run the lines of Python that docs/sweeps.md has for the study of sweep=mnrl."""
    (lines,) = (block.text for block in python_lines() if block.page.name == "sweeps.md")
    names = {}
    exec(lines, names)
    assert len(names["study"].trials) == 2


def python_lines():
    """The blocks of Python that are no files."""
    return [block for page in PAGES for block in blocks(page) if block.language == "python" and not block.file]


def ended_well(ended, folder, *, results):
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(list(folder.rglob("result.json"))) == results
    assert all(json.loads(file.read_text())["status"] == "completed" for file in folder.rglob("result.json"))


def make_what_is_read(embexp, folder, command):
    """Run the lines above that make a data set or a model."""
    for text in command.before:
        if text.endswith(".py"):
            script(text, folder)
        elif text.startswith("python -m embexp.mine "):
            mined = embexp.mine(*text.split()[3:])
            assert mined.code == 0, mined.output


def script(text, folder):
    ended = subprocess.run([sys.executable, *text.split()[1:]], cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("command", [pytest.param(each, id=each.text) for each in RUN if is_script(each)])
def test_a_script_of_a_page_runs(here, command):
    script(command.text, here)
    assert (here / "models" / "pooled" / "modules.json").exists()


@pytest.mark.parametrize("command", of("torchrun"))
def test_a_command_of_torchrun_runs(here, command):
    call = [sys.executable, "-m", "torch.distributed.run", *command.arguments, *QUICK, FEW]
    path = {"PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(call, cwd=here, env=os.environ | path, capture_output=True, text=True, check=False)
    ended_well(ended, here, results=1)
    (result,) = here.rglob("result.json")
    assert json.loads(result.read_text())["config"]["trainer"]["processes"] == 2


@pytest.mark.parametrize("command", of("embexp.mine"))
def test_a_command_of_mining_runs(embexp, monkeypatch, here, command):
    for text in command.before:
        if text.startswith("export "):
            name, _, _ = text.removeprefix("export ").partition("=")
            monkeypatch.setenv(name, "sk-nothing")
    with Stub() as server:
        arguments = [word for word in command.arguments if not word.startswith("llm.base_url")]
        mined = embexp.mine(*arguments, f"llm.base_url={server.base_url}")
    assert mined.code == 0, mined.output
    assert bool(server.calls) != ("dry_run=true" in arguments or "miner=sentences" in arguments)


@pytest.mark.parametrize("command", of("embexp.compare", "embexp.page"))
def test_a_command_that_reads_runs_runs(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    right = per_query([0.0] * 60, [1.0] * 60)
    for number, loss in enumerate(("mnrl", "mnrl", "triplet")):
        names = {"loss": loss, "model": "minilm"}
        run_folder(tmp_path / "multirun" / "losses" / str(number), seed=number % 2, names=names, scores=right)
    run_folder(tmp_path / "outputs" / "first")
    monkeypatch.setattr(sys, "argv", [command.program, *command.arguments])
    monkeypatch.delitem(sys.modules, f"{command.program}.__main__", raising=False)
    ended = 0
    try:
        runpy.run_module(f"{command.program}.__main__", run_name="__main__")
    except SystemExit as end:
        ended = end.code
    assert ended == 0, capsys.readouterr().err
    assert capsys.readouterr().out
