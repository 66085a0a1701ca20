"""Every command in the README runs. Heavy choices are made small by overrides that come last."""

import re
import runpy
import shlex
import sys

import pytest

from embexp.arguments import checked_arguments
from tests.command import QUICK, REPOSITORY, separate
from tests.folders import per_query, run_folder
from tests.mine_server import Stub

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.split(" #")[0].strip()
    for block in BLOCKS
    for line in block.splitlines()
    if line.startswith("python -m embexp ")
]
MINING = [
    line.split(" #")[0].strip()
    for block in BLOCKS
    for line in block.splitlines()
    if line.startswith("python -m embexp.mine ")
]
MAKE = sorted(set(re.findall(r"^make (\w+)", "\n".join(BLOCKS), flags=re.MULTILINE)))
SWEEPS = [
    line
    for page in sorted((REPOSITORY / "docs").glob("sweeps-*.md"))
    for line in page.read_text().splitlines()
    if line.startswith("python -m embexp ")
]
PAGES = [
    line.split(" #")[0].strip()
    for page in ("reading-the-report.md", "comparing.md")
    for line in (REPOSITORY / "docs" / page).read_text().splitlines()
    if line.startswith("python -m embexp")
]
HUB = ["model=stsb-distilbert"]


def test_the_readme_has_commands_to_check():
    assert len(COMMANDS) >= 12
    assert len(MINING) >= 6
    assert len(PAGES) >= 8
    assert MAKE == ["demo", "test"]


@pytest.mark.parametrize("target", MAKE)
def test_a_make_target_of_the_readme_exists(target):
    assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_runs(embexp, tmp_path, pairs_file, command):
    arguments = shlex.split(command)[3:]
    small = [] if any(word in ("--help", "--cfg") for word in arguments) else list(QUICK)
    if any(word.startswith("sweep=") for word in arguments):
        few = ["hydra.sweeper.n_trials=2", "sweep.confirm_seeds=1", "dataset.packages=[json,logging,email]"]
        ended = separate(*arguments, *QUICK, *few, folder=tmp_path)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert len(list(tmp_path.rglob("result.json"))) == 3
        return
    if "-m" in arguments:
        ended = separate(*arguments, *QUICK, "dataset.packages=[json,logging,email]", folder=tmp_path)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert len(list(tmp_path.rglob("result.json"))) == 6
        return
    if "trainer=none" in arguments:
        small = [word for word in small if word != "trainer=smoke"]
    (tmp_path / "path" / "to").mkdir(parents=True)
    if "loss=matryoshka" in arguments:
        small.append("loss.dims=[8]")  # of 16
    if "model=local" in arguments:
        from tests.tiny import tiny_transformer

        tiny_transformer(tmp_path / "path" / "to" / "model")
    (tmp_path / "path" / "to" / "sources").symlink_to(REPOSITORY / "embexp")
    own = tmp_path / "my_conf" / "loss"
    own.mkdir(parents=True)
    (own / "mega_batch.yaml").write_text(re.search(r"```yaml\n(_target_: .*?)```", README, flags=re.DOTALL)[1])
    if "dataset=mined" in arguments:
        (tmp_path / "docs").symlink_to(REPOSITORY / "docs")
        (mining,) = (line for line in MINING if "miner=sentences" in line)
        assert embexp.mine(*shlex.split(mining)[3:]).code == 0
        small.append("limit=10")
    if arguments[0].startswith("resume="):  # of a run that is there
        done = embexp(*QUICK, "dataset.packages=[json,logging,email]")
        arguments = [f"resume={done.folder}"]
        small = []
    chosen = {word.split("=")[0] for word in arguments}
    small = [word for word in small if word.split("=")[0] not in chosen]
    if "model" in chosen and "model=static" not in arguments:
        small = [word for word in small if not word.startswith("model.")]

    run = embexp(*arguments, *small)

    if any(word in HUB for word in arguments):
        assert run.code == 1
        assert "can't be had" in run.output
    else:
        assert run.code == 0, run.output


@pytest.mark.parametrize("command", SWEEPS)
def test_a_command_of_the_pages_on_shared_sweeps_is_accepted(embexp, command):
    if "submitit" in command:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="hydra-submitit-launcher is not installed")
    arguments = shlex.split(command)[3:]
    if "--cfg" in arguments:
        shown = embexp(*arguments)
        assert shown.code == 0, shown.output
        assert "max_num_timeout: 0" in shown.output
    else:
        assert checked_arguments([word for word in arguments if word != "-m"], config_dir=None, sweep=True)


@pytest.mark.parametrize("command", PAGES)
def test_a_command_of_the_pages_on_reports_runs(tmp_path, monkeypatch, capsys, command):
    _, _, module, *arguments = shlex.split(command)
    if module == "embexp":
        assert checked_arguments([word for word in arguments if word != "-m"], config_dir=None, sweep="-m" in arguments)
        return
    monkeypatch.chdir(tmp_path)
    right = per_query([0.0] * 60, [1.0] * 60)
    for number, loss in enumerate(("mnrl", "mnrl", "triplet")):
        names = {"loss": loss, "model": "minilm"}
        run_folder(tmp_path / "multirun" / "losses" / str(number), seed=number % 2, names=names, scores=right)
    run_folder(tmp_path / "outputs" / "first")
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    monkeypatch.delitem(sys.modules, f"{module}.__main__", raising=False)
    ended = 0
    try:
        runpy.run_module(f"{module}.__main__", run_name="__main__")
    except SystemExit as end:
        ended = end.code
    assert ended == 0, capsys.readouterr().err
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", MINING)
def test_a_mining_command_of_the_readme_runs(embexp, monkeypatch, tmp_path, command):
    (tmp_path / "docs").symlink_to(REPOSITORY / "docs")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nothing")
    with Stub() as server:
        arguments = [word for word in shlex.split(command)[3:] if not word.startswith("llm.base_url")]
        mined = embexp.mine(*arguments, f"llm.base_url={server.base_url}")
    assert mined.code == 0, mined.output
    assert bool(server.calls) != ("dry_run=true" in arguments or "miner=sentences" in arguments)
