"""The command `python -m embexp.drift RUN documents=...`: checks the arguments as mining does, then measures.

It ends with the exit code of its verdict (`exit_codes`), or with 1 for an error.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from embexp import cache, cli, exit_codes
from embexp.config.arguments import checked_arguments
from embexp.config.checks import CONFIG_FOLDER, plain
from embexp.drift.config import DRIFT
from embexp.errors import UserError
from embexp.starting import uncollected


def main() -> None:
    """Run the command line; exits with 0 for ok, 3 for watch, 4 for retrain, 1 for an error."""
    code = 0
    with cli.ends_with_one():
        arguments = cli.parsed(sys.argv[1:])
        if arguments.multirun:
            raise UserError("drift takes no -m: name one run")
        words = list(arguments.overrides)
        run = words.pop(0) if words and ("=" not in words[0] or Path(words[0]).is_dir()) else None
        arguments.overrides = words
        if cli.helped(arguments, program=DRIFT):
            sys.exit(0)
        config = _composed(words, shown=arguments.cfg is not None)
        if arguments.cfg:
            print(OmegaConf.to_yaml(OmegaConf.create(config)), end="")
        elif run is None:
            raise UserError("name the run first: python -m embexp.drift RUN documents=<today's folder>")
        else:
            code = _run(run, config)
    sys.exit(code)


def _composed(words: list[str], *, shown: bool) -> dict[str, Any]:
    """The config, checked. Raises UserError with all mistakes."""
    checked = checked_arguments(words, config_dir=None, sweep=False, program=DRIFT, shown=shown)
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return plain(compose(DRIFT.name, checked))


def _run(run: str, config: Mapping[str, Any]) -> int:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s", force=True)
    logging.getLogger("embexp").setLevel(logging.INFO)
    logging.getLogger("embexp").info("loading libraries ...")
    with uncollected():
        from embexp.drift.drifting import drift  # torch: seconds
        from embexp.results.finished import opened
    from embexp.drift import shown

    with cli.describes_errors():
        own = config["cache"]
        # where the run's is, so that no text is sent to an endpoint a second time
        folder = opened(run).cache_folder if own is None else cache.folder_of(own)
        with cache.kept_in(folder), contextlib.redirect_stdout(sys.stderr):
            record, out = drift(run, config)
        page = shown.write(record, out)
    print(shown.text(record))
    print(f"\npage: {page}")
    return exit_codes.OF_DRIFT[record["verdict"]]
