"""How a run was trained, as the words of its command line, and the words that train it again on other data.

Called by `cli`, which checks them before anything heavy loads, and by `retraining`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from embexp import resume, stamp
from embexp.config.arguments import checked_arguments
from embexp.config.checks import CONFIG_FOLDER
from embexp.config.experiment import EXPERIMENT
from embexp.errors import UserError
from embexp.models.folder import STAMP
from embexp.results import runs
from embexp.retrain import attempts

WORDS = "words"  # of an attempt's state
TRAINED_ALIKE = (
    "max_seq_length",
    "dropout",
    "dtype",
    "attention",
    "adapter",
    "peft",
)  # what a saved model does not say


@dataclass(frozen=True)
class Recipe:
    """words: overrides, without those of the data set's place and of the model to start from. flags: Hydra's."""

    words: tuple[str, ...]
    flags: tuple[str, ...]

    def command(self, data: Sequence[str], start: Sequence[str], folder: Path) -> list[str]:
        """The words of the main command that trains into a folder.

        data: overrides that name the data set. start: those that name the model, where it is not the run's base.
        """
        words = joined(joined(self.words, data), start)
        return [*self.flags, *words, f"hydra.run.dir={resume.quoted(folder)}"]

    def refuse_mistakes(self, start: Sequence[str]) -> None:
        """Raise UserError with all that the main command would find wrong, and for what makes no model to serve."""
        flags = dict(zip(self.flags[::2], self.flags[1::2], strict=True))
        folder, name = flags.get("--config-dir"), flags.get("--config-name", EXPERIMENT.name)
        words = checked_arguments(
            joined(self.words, start), config_dir=folder, sweep=False, config_name=name, fresh=False
        )
        path = [f"hydra.searchpath=[file://{Path(folder).absolute()}]"] if folder else []
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            config = compose(name, [*words, *path])
        problems = []
        if config.limit is not None:
            problems.append(f"limit={config.limit} is for a try on a part of the data; limit=null reads all")
        if config.trainer is None:
            problems.append("trainer=none trains nothing that could be promoted; leave it out")
        if problems:
            raise UserError(*problems)


def of(run: Path, further: Sequence[str]) -> Recipe:
    """The recipe of a run, with further overrides. Raises UserError for a trial of a sweep, and for a broken folder."""
    folder = run.resolve()
    if not folder.is_dir():
        raise UserError(f"{run} is not a folder; name the run that is to be trained again")
    config = runs.read(folder).config
    words, flags = resume.started_with(folder)
    if config.get("sweep"):
        raise UserError(
            f"{run} is a trial of a sweep; train its winner as a run of its own (the sweep says with which command), "
            "and name that one"
        )
    before = attempts.of_run(folder)
    if before is not None and WORDS in before.state:
        words = before.state[WORDS]
    return Recipe(tuple(joined(words, further)), tuple(flags))


def start_from(run: Path, further: Sequence[str]) -> list[str]:
    """The overrides that start from the model of a run, trained on as that one was but for what further ones say.

    Raises UserError for a model that is no whole one, and for further overrides that name another.
    """
    stamped = run / "model" / STAMP
    behind = stamp.read(stamped).get("behind") if stamped.is_file() else None
    if behind is not None:
        raise UserError(
            f"start=tuned goes on from a whole model, and {run} has layers behind {behind} alone; use start=base, "
            "which trains them anew (its vectors are paid for already)"
        )
    if others := [word for word in further if _key(word) in ("model", "model.path")]:
        raise UserError(f"start=tuned goes on from the current model, and {' '.join(others)} names another; use one")
    node = OmegaConf.load(run / ".hydra" / "config.yaml").model
    values = {key: node[key] for key in TRAINED_ALIKE if key in node}
    values |= {f"lora.{key}": value for key, value in (node.get("lora") or {}).items() if key != "_target_"}
    alike = [f"model.{key}={'null' if value is None else value}" for key, value in values.items()]
    own = [word for word in further if _key(word).startswith("model.")]
    return joined(["model=local", f"model.path={resume.quoted(run / 'model')}", *alike], own)


def joined(words: Iterable[str], further: Sequence[str]) -> list[str]:
    """The words, but for those in whose place a further one comes: of its key, or below it; then the further ones."""
    replaced = [_key(word) for word in further]
    kept = [
        word for word in words if not any(_key(word) == key or _key(word).startswith(f"{key}.") for key in replaced)
    ]
    return [*kept, *further]


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def divided(words: Sequence[str], own: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The words of retraining's own config, and those of the experiment; allowed_packages is of both."""
    roots = {word: _key(word).partition(".")[0] for word in words}
    mine = [word for word in words if roots[word] in own or roots[word] == "hydra"]
    return mine, [word for word in words if roots[word] not in own or roots[word] == "allowed_packages"]
