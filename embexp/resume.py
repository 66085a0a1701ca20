"""Continues a run that was killed or failed: `python -m embexp resume=<the run's folder>`.

Reads how the run was started from its .hydra folder. Called by `cli`; knows nothing of training.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from embexp.config.checks import plain
from embexp.errors import UserError, listed
from embexp.results.runs import leaves

# none of them changes what comes out; of the number of processes, beyond rounding and the draws of dropout
MAY_DIFFER = ("debug", "cache", "cache_size_gb", "report_texts", "trainer.processes")
WORD = "resume="
MINING = "mine"  # the config of the other command


def folder_to_resume(overrides: Sequence[str]) -> Path | None:
    """The folder of the run that a command line names with resume=, if it does.

    Raises UserError when it is none, and with the command that goes on when it is a data set that was mined.
    """
    named = [word.removeprefix(WORD) for word in overrides if word.startswith(WORD)]
    if not named:
        return None
    folder = Path(named[-1].strip("'\"")).expanduser().absolute()
    if "${" in str(folder):
        raise UserError(f"resume={folder} has ${{ in its path, which a config can't; rename the folder")
    if not (folder / ".hydra" / "config.yaml").is_file():
        inside = sorted(path.parent.parent.name for path in folder.glob("*/.hydra/config.yaml"))
        hint = f" It holds the runs {listed(inside)}: name one of them." if inside else ""
        if (folder / "study.journal").exists():
            hint = " It is a sweep, which goes on by its own command."
        raise UserError(f"resume={folder}: this is not the folder of a run (it has no .hydra/config.yaml).{hint}")
    hydra = _saved(folder, "hydra.yaml")["hydra"]
    if _saved(folder, "config.yaml").get("sweep"):
        raise UserError(
            f"resume={folder}: this is a trial of a sweep. It goes on by the sweep's own command, as "
            f"{folder.parent} was started, in the folder {hydra['runtime']['cwd']}"
        )
    if hydra["job"]["config_name"] == MINING:
        again = shlex.join(["python", "-m", "embexp.mine", *own_folders(hydra), *hydra["overrides"]["task"]])
        raise UserError(
            f"resume={folder}: this is a data set that was mined, not a run. Mining goes on by its own command, in the "
            f"folder {hydra['runtime']['cwd']}: {again}. To train on it: python -m embexp dataset=mined "
            f"dataset.path={folder}"
        )
    return folder


def arguments_of(folder: Path, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """(overrides, flags) with which Hydra composes the run's config again, and the further `overrides` after it."""
    words, flags = started_with(folder)
    further = [word for word in overrides if not word.startswith(WORD)]
    own = [f"hydra.run.dir={quoted(folder)}", "hydra.output_subdir=null"]  # .hydra stays as the run was started
    return [*words, *further, *own], flags


def started_with(folder: Path) -> tuple[list[str], list[str]]:
    """(overrides, flags) that the run in a folder was started with."""
    hydra = _saved(folder, "hydra.yaml")["hydra"]
    searched = [word for word in hydra["overrides"]["hydra"] if "hydra.searchpath" in word]
    flags = [*own_folders(hydra), "--config-name", hydra["job"]["config_name"]]
    return [*hydra["overrides"]["task"], *searched], flags


def quoted(path: Path | str) -> str:
    """A path as the value of an override."""
    return "'" + str(path).replace("'", "\\'") + "'"


def own_folders(hydra: Any) -> list[str]:
    """The flags that add the user's own folders of configs."""
    sources = hydra["runtime"]["config_sources"]
    added = [source["path"] for source in sources if source["provider"] == "command-line"]
    return [part for path in added for part in ("--config-dir", path)]


def group_of(folder: Path) -> str:
    """What the run's attempts are grouped under: its multirun, else its own folder."""
    mode = _saved(folder, "hydra.yaml")["hydra"]["mode"]
    return str(folder.parent if mode == "MULTIRUN" else folder)


def refuse_changes(folder: Path, config: DictConfig) -> None:
    """Raise UserError, naming the keys, when the config is not the one that the run was started with."""
    if changed := changes(folder, config, may_differ=MAY_DIFFER):
        raise UserError(
            f"resume={folder}: the config has changed: {listed(changed)}. A run is continued as it was started; "
            "leave the change out, or start a new run"
        )


def changes(folder: Path, config: DictConfig, *, may_differ: Sequence[str]) -> list[str]:
    """In what the config differs from the one that the run in a folder was started with, in words.

    may_differ: keys, and nodes with all their keys, of which nothing is said.
    """
    before = dict(leaves(_plain(_saved(folder, "config.yaml"))))
    now = dict(leaves(plain(config)))
    return [
        f"{key} was {before.get(key, 'not there')!r}, now {now.get(key, 'not there')!r}"
        for key in {**before, **now}
        if before.get(key, WORD) != now.get(key, WORD) and not {key, key.split(".")[0]} & set(may_differ)
    ]


def _saved(folder: Path, name: str) -> Any:
    try:
        found = OmegaConf.load(folder / ".hydra" / name)
    except Exception as error:  # torn while it was written: YAML has many ways to fail
        raise UserError(f"resume={folder}: .hydra/{name} can't be read ({error}); start a new run") from error
    return found


def _plain(config: Any) -> dict[str, Any]:
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
