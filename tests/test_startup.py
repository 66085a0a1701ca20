"""What a start loads, and how long it takes beside `import hydra`; that help is still what Hydra would show."""

import json
import resource
import statistics
import subprocess
import sys

import pytest

from embexp.config.checks import CONFIG_FOLDER
from tests.command import separate
from tests.tiny import tiny_transformer

HEAVY = {
    "matplotlib",
    "optuna",
    "pandas",
    "scipy",
    "sentence_transformers",
    "sklearn",
    "torch",
    "transformers",
    "wandb",
}
HELP, CONFIG = 3.0, 3.6  # times `import hydra`: they take 2.1 and 3.0 on a quiet machine, 4.9 and 3.3 before


def python(code, *arguments, folder):
    call = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(call, capture_output=True, text=True, cwd=folder, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def modules_after(code, *arguments, folder):
    """The top-level packages that a program has imported at its end."""
    ending = "import atexit, json, sys\natexit.register(lambda: print(json.dumps([*sys.modules])))\n"
    names = json.loads(python(ending + code, *arguments, folder=folder).splitlines()[-1])
    return {name.partition(".")[0] for name in names}


EMBEXP = "import runpy\nrunpy.run_module('embexp', run_name='__main__')"


def test_importing_embexp_imports_nothing_of_others(tmp_path):
    others = modules_after("import embexp", folder=tmp_path) & (HEAVY | {"hydra", "numpy", "omegaconf", "yaml"})
    assert not others


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_help_and_config_import_nothing_that_takes_seconds(tmp_path, arguments):
    loaded = modules_after(EMBEXP, *arguments, folder=tmp_path)
    assert "hydra" in loaded
    assert not loaded & (HEAVY | {"numpy"})


def test_help_takes_three_times_as_long_as_importing_hydra_at_most_and_the_config_hardly_more(tmp_path):
    calls = {
        "hydra": ["-c", "import hydra"],
        "help": ["-m", "embexp", "--help"],
        "cfg": ["-m", "embexp", "--cfg", "job"],
    }
    taken = {name: [] for name in calls}
    for _ in range(5):  # in turn, so that whatever else the machine does meets all of them
        for name, call in calls.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *call], cwd=tmp_path, capture_output=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    hydra, shown, config = (statistics.median(taken[name]) for name in calls)
    assert shown <= HELP * hydra
    assert config <= CONFIG * hydra


def test_importing_embexp_takes_a_third_of_a_second_at_most(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    python("import embexp", folder=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 0.3


HYDRAS = """
import hydra
hydra.main(config_path=CONFIG, config_name=NAME, version_base="1.3")(lambda config: None)()
"""


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("config", []),
        ("config", ["loss=triplet", "seed=3", "--resolve"]),
        ("config", ["--config-dir", "own", "loss=ours"]),
        ("mine", []),
    ],
)
def test_help_is_what_hydra_itself_would_show(tmp_path, name, arguments):
    for file in ("loss/ours.yaml", "loss/inside/one.yaml", "extra/two.yaml"):
        (tmp_path / "own" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / file).write_text("# @package _global_\n")
    hydras = HYDRAS.replace("CONFIG", repr(str(CONFIG_FOLDER))).replace("NAME", repr(name))
    expected = python(hydras, "--help", *arguments, folder=tmp_path)
    module = "embexp.mine" if name == "mine" else "embexp"
    call = [sys.executable, "-m", module, "--help", *arguments]
    found = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert found == expected
    assert "loss: angle, cached_mnrl, contrastive, cosent," in found


@pytest.mark.parametrize("arguments", [["loss=nothing"], ["--config-name", "other"], ["not.a.key=1"]])
def test_help_with_a_mistake_exits_with_one_and_says_which(tmp_path, arguments):
    ended = separate("--help", *arguments, folder=tmp_path)
    assert ended.returncode == 1
    assert arguments[-1].partition("=")[-1 if arguments[0].startswith("loss") else 0].split(".")[0] in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_second_run_without_training_scores_the_same_and_loads_no_model(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEXP_CACHE", str(tmp_path / "cache"))
    tiny_transformer(tmp_path / "tiny")
    common = [
        "model=local",
        "model.path=tiny",
        "trainer=none",
        "logger=none",
        "limit=20",
        "dataset.packages=[json,email]",
    ]
    loaded = {}
    for run in ("first", "second"):
        loaded[run] = modules_after(EMBEXP, *common, f"hydra.run.dir={run}", folder=tmp_path)
    results = [json.loads((tmp_path / run / "result.json").read_text()) for run in loaded]
    for key in ("base", "bm25", "counts", "fingerprint"):
        assert results[0][key] == results[1][key]
    assert {"sentence_transformers", "transformers"} <= loaded["first"]
    assert not loaded["second"] & {"sentence_transformers", "transformers", "sklearn", "datasets"}
