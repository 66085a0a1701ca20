"""Secrets in the environment are in nothing that a command writes or prints, whether it ends well or badly."""

from __future__ import annotations

import os

import pytest

from tests.command import QUICK, separate

WANDB_KEY = "c0ffee" * 6 + "abcd"  # 40 hexadecimal digits, as a real one
CANARIES = {
    "OPENAI_API_KEY": "sk-canary-openai-0123456789",
    "WANDB_API_KEY": WANDB_KEY,
    "HF_TOKEN": "hf_canaryHuggingFace0123456789",
    "SOME_SERVICE_TOKEN": "canary-of-some-service-0123456789",
}
OFFLINE = ["logger=wandb", "logger.mode=offline"]


def assert_clean(folder, *, ended):
    written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    texts = {
        **written,
        "names": "\n".join(map(str, written)).encode(),
        "output": (ended.stdout + ended.stderr).encode(),
    }
    found = [
        (str(place), name) for place, text in texts.items() for name, key in CANARIES.items() if key.encode() in text
    ]
    assert not found


@pytest.mark.parametrize(
    ("arguments", "code", "made"),
    [
        (OFFLINE, 0, "result.json"),
        ([*OFFLINE, "trainer.learning_rate=1e30"], 1, "result.json"),
        (["-m", *OFFLINE, "seed=1,2"], 0, "summary.md"),
    ],
    ids=["a run", "a failing run", "a multirun"],
)
def test_no_secret_of_the_environment_is_written_or_printed(tmp_path, pairs_file, arguments, code, made):
    pytest.importorskip("wandb", reason="needs the extra embexp[wandb]")
    quick = [argument for argument in QUICK if argument != "logger=none"]
    environment = {**os.environ, **CANARIES, "EMBEXP_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    ended = separate(
        *quick,
        "dataset=pairs",
        f"dataset.path={pairs_file}",
        "dataset.columns.group=group",
        *arguments,
        folder=tmp_path,
        env=environment,
    )
    assert ended.returncode == code, ended.stderr
    assert list(tmp_path.rglob(made))
    assert list(tmp_path.rglob("*.wandb"))
    assert_clean(tmp_path, ended=ended)


@pytest.mark.parametrize(
    "override",
    [
        "logger.name='${oc.env:OPENAI_API_KEY}'",
        "hydra.sweep.dir='${oc.env:OPENAI_API_KEY}'",
        "logger.name='${oc.${logger.part}:OPENAI_API_KEY}'",
        r"logger.name='\${oc.env:OPENAI_API_KEY}'",
        "loss._target_='${oc.env:OPENAI_API_KEY}'",
    ],
)
def test_a_config_cannot_read_the_environment(embexp, monkeypatch, tmp_path, override):
    monkeypatch.setenv("OPENAI_API_KEY", CANARIES["OPENAI_API_KEY"])
    run = embexp("-m", "model=static", "trainer=smoke", override)
    assert run.code == 1
    assert CANARIES["OPENAI_API_KEY"] not in run.output
    assert "oc.env" in run.output or "as text" in run.output or "interpolation" in run.output.lower(), run.output
    assert not [path for path in tmp_path.rglob("*") if CANARIES["OPENAI_API_KEY"] in path.name]


def test_reading_the_environment_is_refused_with_what_to_do(embexp):
    run = embexp("logger.name='${oc.env:HOME}'")
    assert "${oc.env:HOME} would write that environment variable's value into the run's files" in run.output
    assert "Keys are read from the environment" in run.output
