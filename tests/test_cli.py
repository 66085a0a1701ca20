import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from tests.command import QUICK, hear_interrupts, separate


def pairs(file):
    return ["dataset=pairs", f"dataset.path={file}", "dataset.columns.group=group"]


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["loss=mnlr", "model=minlm"]])
def test_help_config_and_mistakes_answer_at_once(tmp_path, arguments):
    def seconds() -> float:  # of the processor, which others on the machine do not change
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        separate(*arguments, folder=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 1.5


def test_help_names_the_choices_and_does_not_import_torch(tmp_path):
    code = "import sys; sys.argv = ['embexp', '--help']\n"
    code += "from embexp.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    ended = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True, cwd=tmp_path,
        check=False,
    )  # fmt: skip
    assert "loss: angle, cached_mnrl, contrastive, cosent," in ended.stdout
    assert ended.stdout.endswith("False\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nonsense"], "--nonsense"),
        (["--config-dir", "nowhere"], "--config-dir nowhere is not a folder"),
        (["--config-name", "other"], "other"),
        (["-m", "--cfg", "job"], "Only one of"),
        (["hydra.nothing=1"], "nothing"),
        (["hydra.run.dir=file/run"], "file is not a folder that can be written"),
        (
            [r"hydra.run.dir='runs/\${seed}'"],
            "/runs/${seed} has ${ in its path, which a config can't; set hydra.run.dir=",
        ),
        (["resume=runs/${seed}"], "/runs/${seed} has ${ in its path, which a config can't; rename the folder"),
        (["evaluator=[]"], "evaluator"),
    ],
)
def test_a_wrong_option_exits_with_one_and_no_traceback(tmp_path, arguments, words):
    (tmp_path / "file").write_text("not a folder")
    ended = separate(*arguments, folder=tmp_path)
    assert ended.returncode == 1
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_working_folder_with_an_interpolation_in_its_name_is_refused(tmp_path):
    weird = tmp_path / "a ${seed}"
    weird.mkdir()
    ended = separate(*QUICK, folder=weird)
    assert ended.returncode == 1
    assert f"{weird}/outputs/" in ended.stderr
    assert "has ${ in its path" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(weird.iterdir()) == []


def test_options_may_stand_anywhere(tmp_path):
    ended = separate("seed=3", "--cfg", "job", "limit=5", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "seed: 3\nlimit: 5\n" in ended.stdout


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        ('{"query": "a", "passage": "b"}\nnot json\n', [], "line 2 is not JSON"),
        ('{"query": "a", "text": "b"}\n', [], "no column passage; it has query, text"),
        ("", [], "is empty"),
        ('{"query": "a", "passage": "b"}\n', [], "too little to split"),
        ('{"query": "a", "passage": "  "}\n', [], "must be a text that is not empty"),
        ('{"query": "a", "passage": "b", "label": 0}\n', [], "dataset.columns.label=label"),
        ('{"query": "a\\ud83d", "passage": "b"}\n', [], "broken characters"),
    ],
)
def test_a_data_mistake_is_explained_without_a_traceback(embexp, tmp_path, content, arguments, words):
    file = tmp_path / "bad.jsonl"
    file.write_text(content)
    run = embexp(*QUICK, "dataset=pairs", f"dataset.path={file}", *arguments)
    assert run.code == 1
    assert words in run.output
    assert "Traceback" not in run.output
    assert run.result["status"] == "failed"
    assert words in run.result["error"]


def test_debug_shows_the_traceback(embexp, tmp_path):
    run = embexp(*QUICK, "dataset=pairs", f"dataset.path={tmp_path / 'none.jsonl'}", "debug=true")
    assert run.code == 1
    assert "Traceback" in run.output
    assert "is not a file" in run.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=local", "model.path=/nowhere"], "is not a folder"),
        (["model=local", "model.path={empty}"], "is an empty folder"),
        (["model=local", "model.path={folder}"], "is not a model"),
    ],
)
def test_a_model_path_that_is_not_a_model_is_explained(embexp, tmp_path, pairs_file, arguments, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("no model")
    filled = [argument.format(empty=tmp_path / "empty", folder=tmp_path / "folder") for argument in arguments]
    run = embexp(*filled, "trainer=smoke", "logger=none", *pairs(pairs_file))
    assert run.code == 1
    assert words in run.output
    assert "model=minilm" in run.output


def test_a_hub_model_without_the_hub_is_explained_within_20_seconds(embexp, tmp_path, pairs_file, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    start = time.perf_counter()
    run = embexp("loss=mnrl", "model=stsb-distilbert", "logger=none", *pairs(pairs_file))
    assert time.perf_counter() - start < 20
    assert run.code == 1
    for words in ("sentence-transformers/stsb-distilbert-base can't be had", "model.path=", "model=minilm"):
        assert words in run.output


def test_ctrl_c_ends_with_one_and_no_result(tmp_path, pairs_file):
    process = subprocess.Popen(
        [sys.executable, "-m", "embexp", *QUICK, "trainer.max_steps=5000", "limit=null", *pairs(pairs_file),
         "hydra.run.dir=run"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=hear_interrupts,
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not (metrics.exists() and "train/loss" in metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "interrupted" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "result.json").exists()
    assert all(json.loads(line) for line in metrics.read_text().splitlines())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep=mnrl", "hydra.sweeper.n_trials=0", "sweep.looks=0"], "2 mistakes"),
        (["sweep=mnrl", "+hydra.sweeper.n_jbos=2"], "did you mean n_jobs?"),
        (["sweep=mnrl", "sweep.name=123"], "a number needs quotes"),
        (["sweep=mnrl", "loss.triplet_margin=interval(0,1)"], "loss.triplet_margin: there is no such key"),
        (["sweep=mnrl", "trainer.learning_rate=interval(1e-3,1e-5)"], "upside down"),
        (["sweep=mnrl", "trainer.learning_rate=tag(log,interval(0,1))"], "trainer.learning_rate=0.0 must be above 0"),
        (["sweep=mnrl", "negatives=glob(*)"], "list what it may be"),
        (["sweep=mnrl", "sampler=tpee"], "did you mean tpe?"),
        (["sweep=mnrl", "pruner=med"], "did you mean median?"),
        (["sweep=custom"], "the search space is empty"),
        (["hydra/sweeper=embexp"], "this search has no node sweep"),
        (["trainer.learning_rate=interval(1e-5,1e-3)"], "only a sweep searches; add sweep=custom"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused_before_any_trial(embexp, tmp_path, words, said):
    run = embexp("-m", "model=static", *words)
    assert run.code == 1
    assert said in run.output
    assert not (tmp_path / "multirun").exists()


def test_a_sweep_without_m_is_told_to_add_it(embexp):
    assert "a sweep is a multirun: add -m" in embexp("sweep=mnrl").output


def test_a_sweep_file_that_changes_another_one_is_enough(embexp, tmp_path):
    (tmp_path / "my_conf" / "sweep").mkdir(parents=True)
    (tmp_path / "my_conf" / "sweep" / "rates.yaml").write_text(
        "# @package _global_\ndefaults: [custom, _self_]\nsweep:\n  name: rates\nhydra:\n  sweeper:\n"
        "    params:\n      trainer.learning_rate: interval(1, 0)\n"
    )
    run = embexp("-m", "--config-dir", "my_conf", "sweep=rates")
    assert "trainer.learning_rate=interval(1, 0): the interval is upside down; write interval(0.0,1.0)" in run.output
