"""The command: `python -m embexp` and `embexp`. Checks the arguments, then hands over to Hydra."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig

from embexp import console, exit_codes, resume
from embexp.arguments import checked_arguments
from embexp.checks import CONFIG_FOLDER, Program, refuse_environment
from embexp.config import EXPERIMENT
from embexp.errors import UserError, explained
from embexp.starting import uncollected


def main() -> None:
    """Run the command line; exits with 0 when every run completed, else with 1."""
    with ends_with_one():
        with uncollected():
            arguments, resumed = _checked()
            shown = helped(arguments, program=EXPERIMENT)
        with uncollected() if arguments.cfg else nullcontext():
            codes = [] if shown else _run_hydra(resumed)
    sys.exit(1 if any(codes) else 0)


def _checked() -> tuple[argparse.Namespace, Path | None]:
    """The arguments, checked, and the folder of the run to go on with, where they name one; sys.argv is rewritten."""
    arguments = parsed(sys.argv[1:])
    resumed = resume.folder_to_resume(arguments.overrides)
    if resumed is not None:
        if arguments.multirun:
            raise UserError("resume= goes on with one run; leave out -m")
        overrides, flags = resume.arguments_of(resumed, arguments.overrides)
        sys.argv[1:] = [*flags, *overrides]
        arguments = parsed(sys.argv[1:])
    check(arguments, program=EXPERIMENT, fresh=resumed is None)
    return arguments, resumed


@contextmanager
def ends_with_one() -> Iterator[None]:
    """Within it, what a user can mend ends the program with its explanation and exit code 1."""
    refuse_environment()
    with console.forgiving():
        try:
            yield
        except UserError as error:
            print(explained(error), file=sys.stderr)
            sys.exit(1)
        except (HydraException, ValueError) as error:  # flags that exclude each other, a plugin that is not there
            print(f"embexp: {error}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("embexp: interrupted", file=sys.stderr)
            sys.exit(1)


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Hydra's flags and the overrides; ends the program where they make no sense, or with --help of argparse."""
    try:
        return get_args_parser().parse_intermixed_args(list(words))
    except SystemExit as end:
        sys.exit(1 if end.code else 0)  # argparse has said what is wrong


def check(arguments: argparse.Namespace, *, program: Program, fresh: bool = True) -> None:
    """Check the overrides, and rewrite sys.argv as Hydra takes them. Raises UserError with all mistakes."""
    if not _runs_or_shows(arguments):
        return
    checked = checked_arguments(
        arguments.overrides,
        config_name=arguments.config_name,
        config_dir=arguments.config_dir,
        sweep=arguments.multirun,
        program=program,
        fresh=fresh,
        shown=arguments.cfg is not None,
    )
    flags = [argument for argument in sys.argv[1:] if argument not in arguments.overrides]
    sys.argv[1:] = [*flags, *checked]


def helped(arguments: argparse.Namespace, *, program: Program) -> bool:
    """Whether the arguments ask for help; it is shown then. Hydra's own shows a folder other than conf/."""
    if not arguments.help or arguments.config_path is not None:
        return False
    from embexp.help import help_text  # only what asks for it needs it

    print(help_text(arguments, program=program))
    return True


def _runs_or_shows(arguments: argparse.Namespace) -> bool:
    """Whether this call composes the experiment's config: not for help, information or completion."""
    elsewhere = (arguments.help, arguments.hydra_help, arguments.info, arguments.shell_completion)
    return not any(elsewhere) and arguments.experimental_rerun is None and arguments.config_path is None


def _run_hydra(resumed: Path | None) -> list[int]:
    """Let Hydra compose and run; returns the exit code of each run. resumed: the folder of the run to go on with."""
    codes: list[int] = []

    @hydra.main(config_path=str(CONFIG_FOLDER), config_name="config", version_base="1.3")
    def task(config: DictConfig) -> None:
        from embexp.job import Job  # only what runs needs it

        job = Job.current(config)
        if resumed is not None:
            try:
                resume.refuse_changes(resumed, config)
            except UserError as error:  # Hydra would add a traceback
                print(explained(error), file=sys.stderr)
                codes.append(1)
                return
            job = replace(job, group=resume.group_of(resumed), resume=True)
        codes.append(job.run())

    task()
    return codes + exit_codes.of_jobs
