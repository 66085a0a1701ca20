"""The command `python -m embexp.mine`: checks the arguments as the other program does, then mines."""

from __future__ import annotations

import logging
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from embexp import cache, cli, resume
from embexp.config.checks import CONFIG_FOLDER, plain
from embexp.errors import UserError, described, explained
from embexp.mine.config import MINE, STARTING
from embexp.starting import uncollected

log = logging.getLogger("embexp")


def main() -> None:
    """Run the command line; exits with 0 when the data set is whole, else with 1."""
    words = sys.argv[1:]
    with cli.ends_with_one():
        arguments = cli.parsed(sys.argv[1:])
        if arguments.multirun:
            raise UserError("mining takes no -m: name all documents in one command")
        if (run := resume.folder_to_resume(arguments.overrides)) is not None:
            raise UserError(f"{run} is the folder of a run, and mining takes no resume=: python -m embexp resume={run}")
        cli.check(arguments, program=MINE if arguments.cfg else STARTING)
        codes = [] if cli.helped(arguments, program=MINE) else _run_hydra(words)
    sys.exit(1 if any(codes) else 0)


def _run_hydra(words: Sequence[str]) -> list[int]:
    codes: list[int] = []

    @hydra.main(config_path=str(CONFIG_FOLDER), config_name=MINE.name, version_base="1.3")
    def task(config: DictConfig) -> None:
        codes.append(_run(config, Path(HydraConfig.get().runtime.output_dir), words))

    task()
    return codes


def _run(config: DictConfig, folder: Path, words: Sequence[str]) -> int:
    values = plain(config)
    log.info("%s: loading libraries ...", folder)
    with uncollected():
        from embexp.mine.mining import mine  # torch: seconds

    try:
        with cache.kept_in(cache.folder_of(values["cache"])):
            outcome = mine(values, folder)
    except KeyboardInterrupt:
        log.error("\ninterrupted; what was answered is kept. To go on: %s", _command(words))
        return 1
    except Exception as error:
        if values["debug"]:
            log.error("%s", "".join(traceback.format_exception(error)))
        else:
            text = explained(error) if isinstance(error, UserError) else f"embexp: {described(error)}"
            log.error("%s", text)
            log.debug("", exc_info=error)
        return 1
    log.info("\n%s", outcome.text)
    if outcome.stopped is not None:
        log.error("\nstopped: %s\nTo go on: %s", outcome.stopped, _command(words, outcome.larger))
        return 1
    return 0


def _command(words: Sequence[str], caps: Mapping[str, str] | None = None) -> str:
    """The command line as it was typed, but with these caps: with the exhausted one it would not go on."""
    larger = [f"budget.{name}={cap}" for name, cap in (caps or {}).items()]
    capped = [word.partition("=")[0] for word in larger]
    kept = [word for word in words if word.partition("=")[0].lstrip("+") not in capped]
    return f"python -m embexp.mine {shlex.join([*kept, *larger])}"
