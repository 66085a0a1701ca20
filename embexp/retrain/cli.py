"""The command `python -m embexp.retrain RUN documents=...`: checks the arguments as the others do, then retrains.

Its words are retraining's own and those of the experiment, which the main command's check sees with the run's. It ends
with the exit code of its outcome (`exit_codes`), or with 1 for an error.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from embexp import cache, cli, exit_codes
from embexp.config.arguments import checked_arguments
from embexp.config.checks import CONFIG_FOLDER, plain
from embexp.durable import write_whole
from embexp.errors import UserError
from embexp.retrain import recipe, shown
from embexp.retrain.config import RETRAIN
from embexp.retrain.pointer import Models, models_of
from embexp.starting import uncollected

ACTIONS = ("status", "rollback")
USAGE = "python -m embexp.retrain RUN documents=<today's folder>"


def main() -> None:
    """Run the command line; exits with 0 where a model was promoted or nothing is to do, 5 where one was trained and
    not promoted, 1 for an error."""
    code = 0
    with cli.ends_with_one():
        arguments = cli.parsed(sys.argv[1:])
        if arguments.multirun:
            raise UserError("retraining takes no -m: name one run")
        words = list(arguments.overrides)
        action = words.pop(0) if words and words[0] in ACTIONS else None
        run = Path(words.pop(0)).expanduser() if words and _is_place(words[0]) else None
        arguments.overrides = words
        if cli.helped(arguments, program=RETRAIN):
            sys.exit(0)
        own, further = recipe.divided(words, RETRAIN.root)
        if action is not None:
            _act(action, run, own, further)
        elif arguments.cfg:
            print(OmegaConf.to_yaml(OmegaConf.create(_composed(own, shown_only=True))), end="")
        elif run is None:
            raise UserError(f"name the run first: {USAGE}")
        else:
            code = _retrain(run, *_checked(run, own, further), further)
    sys.exit(code)


def _is_place(word: str) -> bool:
    return "=" not in word or Path(word).is_dir()


def _checked(run: Path, own: Sequence[str], further: Sequence[str]) -> tuple[Models, dict[str, Any]]:
    """The models' folder and the config. Raises UserError with the mistakes of both halves of the words."""
    problems: list[str] = []
    config: dict[str, Any] = {"models": None, "start": "base"}
    try:
        config = _composed(own)
    except UserError as error:
        problems += error.problems
    models = models_of(run, config["models"])
    models.refuse_other(run)
    current = models.current or run  # what stands in the run's place may be the models' folder
    try:
        recipe.of(current, further).refuse_mistakes(
            recipe.start_from(current, further) if config["start"] == "tuned" else []
        )
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(*problems)
    _refuse_inside(models, config["documents"])
    return models, config


def _composed(words: Sequence[str], *, shown_only: bool = False) -> dict[str, Any]:
    """The config of retraining, checked. Raises UserError with all mistakes."""
    checked = checked_arguments(words, config_dir=None, sweep=False, program=RETRAIN, shown=shown_only)
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return plain(compose(RETRAIN.name, checked))


def _act(action: str, run: Path | None, own: Sequence[str], further: Sequence[str]) -> None:
    """Show what is served, or go back to what was served before."""
    others = [word for word in [*own, *further] if not word.startswith("models=")]
    if others:
        raise UserError(f"{action} takes models=<folder> alone, and has {' '.join(others)}")
    config = _composed([*own, "documents=none"])
    models = models_of(run, config["models"])
    if not models.history() and config["models"] is None and run is not None and not (run / "result.json").is_file():
        models = Models(run.absolute())  # no run: the folder itself was meant
    if not models.history():
        raise UserError(f"{models.folder} holds no models of embexp.retrain; name their folder: models=<folder>")
    if action == "rollback":
        with models.alone():
            models.repair()
            now, before = models.rollback()
        print(f"rolled back: {now} -> {before}")
    print(shown.status(models))


def _retrain(run: Path, models: Models, config: Mapping[str, Any], further: Sequence[str]) -> int:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s", force=True)
    logging.getLogger("embexp").setLevel(logging.INFO)
    logging.getLogger("embexp").info("loading libraries ...")
    with uncollected():
        from embexp.results.finished import opened
        from embexp.retrain.retraining import retrain  # torch: seconds

    with cli.describes_errors():
        kept = opened(str(models.current or run)).cache_folder
        with cache.kept_in(kept), contextlib.redirect_stdout(sys.stderr):
            outcome = retrain(run, models, further, config)
        said = shown.text(outcome, models)
        if outcome.attempt is not None:
            write_whole(outcome.attempt.folder / "retrain.md", said + "\n")
    print(said)
    return exit_codes.OF_RETRAINING[outcome.event]


def _refuse_inside(models: Models, documents: str | Sequence[str]) -> None:
    """Models among the documents would be read as documents."""
    for place in [documents] if isinstance(documents, str) else documents:
        folder = Path(place).expanduser()
        if folder.is_dir() and models.folder.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"the models' folder {models.folder} lies in documents={place}; name another one with models="
            )
