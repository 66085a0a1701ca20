"""Where a model's files are: a local folder, an installed package or the Hub; downloaded if need be.

Called by `embedding_model` and `teachers` for what they load, by `preparing` and `mine.mining` for what is only
identified.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from embexp.errors import UserError
from embexp.hub import snapshot
from embexp.models.folder import LOADED, hashes, refuse_unsafe, sha256

A_RERANKER = ", such as the reranker/ of a run with reranker=trained"
WITHOUT_HUB = {  # setting -> what needs no Hub
    "model.path": ", or use model=minilm, which needs no Hub",
    "loss.teacher": A_RERANKER,
    "negatives.rescorer": f"{A_RERANKER}, or to null",
    "reranker.path": A_RERANKER,
}
HUB_ID_AT = re.compile(r"(?P<id>\w[\w.-]*(/\w[\w.-]*)?)@(?P<revision>.+)")


def model_folder(
    path: str, revision: str | None = None, packaged: Mapping[str, str] | None = None, *, setting: str
) -> tuple[Path, str | None]:
    """The folder of a model, and its commit where it comes from the Hub; downloaded if need be.

    path: a local folder, or a Hub id with or without a revision behind an @, which `revision` can say as well.
    setting: where the user names it, for messages. Raises UserError when it can't be had or is unsafe to load.
    """
    folder, commit = _find(path, revision, packaged, setting)
    if not any((folder / name).is_file() for name in ("modules.json", "config.json")):
        raise UserError(
            f"{setting}={path}: {folder} is not a model (no modules.json or config.json). {instead(setting)}"
        )
    refuse_unsafe(folder, f"{setting}={path}")
    return folder, commit


def identified(path: str, *, setting: str) -> dict[str, str | None]:
    """What a model that helps to train is known by: path, commit and the digest of all that is loaded of it."""
    folder, commit = model_folder(path, setting=setting)
    return {"path": path, "commit": commit, "content": hashes(folder)["content"]}


def _find(path: str, revision: str | None, packaged: Mapping[str, str] | None, setting: str) -> tuple[Path, str | None]:
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not any(folder.iterdir()):
            raise UserError(f"{setting}={path} is an empty folder. {instead(setting)}")
        return folder.absolute(), None  # loaded when first needed, perhaps from another folder
    if at := HUB_ID_AT.fullmatch(path):
        if Path(at["id"]).is_dir():
            raise UserError(f"{setting}={path}: {at['id']} is a local folder, which has no revision; leave it out")
        if revision not in (None, at["revision"]):
            raise UserError(f"{setting}={path} names another revision than revision={revision}; leave one out")
        return _find(at["id"], at["revision"], packaged, setting)
    if folder.is_file() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"{setting}={path} is not a folder. {instead(setting)}")
    if packaged is not None and (path, revision) == (packaged["path"], packaged["revision"]):
        installed = _installed(packaged)
        if installed is not None:
            return installed, revision
    return snapshot(path, revision=revision, kind="model", files=LOADED, instead=instead(setting))


def instead(setting: str) -> str:
    """What to try where a model can't be had. setting: where the user names it."""
    return f"Set {setting}= to a local folder that holds the model{WITHOUT_HUB.get(setting, ', or to null')}"


def _installed(packaged: Mapping[str, str]) -> Path | None:
    """The model folder of an installed package, once its weights are the expected ones."""
    spec = importlib.util.find_spec(packaged["module"])
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0], "model")
    found = sha256(folder / "model.safetensors").hex()
    if found != packaged["sha256"]:
        raise UserError(
            f"the package {packaged['module']} holds other weights than {packaged['path']} (SHA-256 {found}, expected "
            f"{packaged['sha256']}); reinstall it, or set model.packaged=null to use the Hub"
        )
    return folder
