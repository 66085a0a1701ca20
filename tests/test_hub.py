"""The Hub's cache is used without a request, and a file that can't be had is said to be so, soon."""

from __future__ import annotations

import socket
import time

import pytest
from huggingface_hub import constants

from embexp.errors import UserError
from embexp.hub import snapshot
from embexp.models.embedding_model import Transformer
from embexp.models.sources import model_folder

COMMIT, OLDER = "a" * 40, "b" * 40
ASKED = {"kind": "model", "files": ["*.json"], "instead": "Set model.path= to a local folder"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache in the Hub's layout that holds two commits of org/name; the Hub is not to be asked."""
    repository = tmp_path / "models--org--name"
    for commit in (COMMIT, OLDER):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text(f'"{commit}"')
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repository / "snapshots"


@pytest.fixture
def silent_hub(monkeypatch):
    """A Hub that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield server


def test_the_newest_commit_in_the_cache_is_found_offline(cache):
    assert snapshot("org/name", revision=None, **ASKED) == (cache / COMMIT, COMMIT)


def test_a_pinned_commit_in_the_cache_is_found_without_asking_the_hub(cache, silent_hub):
    silent_hub.settimeout(0.1)
    assert snapshot("org/name", revision=OLDER, **ASKED) == (cache / OLDER, OLDER)
    with pytest.raises(TimeoutError):
        silent_hub.accept()  # nobody had called


def test_a_branch_comes_from_the_cache_when_the_hub_is_silent(cache, silent_hub):
    start = time.monotonic()
    assert snapshot("org/name", revision="main", **ASKED) == (cache / COMMIT, COMMIT)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("revision", [None, "c" * 40])
def test_a_repository_that_is_nowhere_is_refused_with_what_to_set(cache, revision):
    start = time.monotonic()
    with pytest.raises(
        UserError, match=r"model org/other .*can't be had.*Set model.path= to a local folder$"
    ) as refusal:
        snapshot("org/other", revision=revision, **ASKED)
    assert time.monotonic() - start < 20
    assert ("at revision" in str(refusal.value)) == (revision is not None)


def test_a_commit_that_lacks_the_files_is_refused(cache):
    with pytest.raises(UserError, match=r"org/name has no file like \*\.parquet"):
        snapshot("org/name", revision=COMMIT, **ASKED | {"files": ["*.parquet"]})


def test_a_revision_may_stand_behind_the_id_of_any_model(cache, tmp_path, monkeypatch):
    for commit in (COMMIT, OLDER):
        (cache / commit / "model.safetensors").touch()
    assert model_folder("org/name", setting="loss.teacher") == (cache / COMMIT, COMMIT)
    assert model_folder(f"org/name@{OLDER}", setting="loss.teacher") == (cache / OLDER, OLDER)
    assert model_folder(f"org/name@{OLDER}", OLDER, setting="model.path") == (cache / OLDER, OLDER)
    with pytest.raises(UserError, match="names another revision than revision=main; leave one out"):
        model_folder(f"org/name@{OLDER}", "main", setting="model.path")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    with pytest.raises(UserError, match=r"loss.guide=org/name@main: org/name is a local folder, which has no revision"):
        model_folder("org/name@main", setting="loss.guide")
    with pytest.raises(UserError, match=r"^loss.guide=/no@where is not a folder"):
        model_folder("/no@where", setting="loss.guide")


def test_a_model_that_is_nowhere_is_refused_naming_the_setting(cache):
    with pytest.raises(UserError, match=r"Set model\.path= .* or use model=minilm, which needs no Hub"):
        Transformer(path="org/other")
