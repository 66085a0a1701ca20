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
from embexp.config.arguments import checked_arguments
from embexp.config.checks import CONFIG_FOLDER, Program, refuse_environment
from embexp.config.experiment import EXPERIMENT
from embexp.errors import UserError, described, explained
from embexp.parallel.machine import Launched, agreed, launched
from embexp.starting import uncollected


def main() -> None:
    """Run the command line; exits with 0 when every run completed, with 5 when one of them has forgotten more than
    max_forgetting, else with 1."""
    with ends_with_one():
        started = launched()
        if started is not None and started.rank > 0:
            from embexp.parallel import meeting  # torch: seconds

            meeting.enter(started)
            from embexp.parallel.follower import follow_launched  # further seconds

            sys.exit(follow_launched(started))
        with _released(started):
            codes = _run(started)
    sys.exit(exit_codes.of_all(codes))


def command(words: Sequence[str]) -> int:
    """Run the command line of these words in this process, and return the exit code that `main` would end with. Raises
    UserError for mistakes."""
    before = sys.argv
    sys.argv = [before[0], *words]
    try:
        return exit_codes.of_all(_run(None))
    finally:
        sys.argv = before


def _run(started: Launched | None) -> list[int]:
    """Check the arguments and run what they say; returns the exit code of each run."""
    with uncollected():
        arguments, resumed = _checked(started)
        shown = helped(arguments, program=EXPERIMENT)
    with uncollected() if arguments.cfg else nullcontext():
        return [] if shown else _run_hydra(resumed, started)


def _checked(started: Launched | None) -> tuple[argparse.Namespace, Path | None]:
    """The arguments, checked, and the folder of the run to go on with, where they name one; sys.argv is rewritten."""
    arguments = parsed(sys.argv[1:])
    if started is not None and arguments.multirun:
        raise UserError(
            "torchrun starts every process of one run, so -m has no place beside it; leave torchrun out, and add "
            f"trainer.processes={started.count} to start as many for each run"
        )
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
def _released(started: Launched | None) -> Iterator[None]:
    """Let the processes that torchrun has started beside this one end with it, whatever it was for."""
    try:
        yield
    finally:
        if started is not None:
            from embexp.parallel.meeting import release

            release(started)


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


@contextmanager
def describes_errors() -> Iterator[None]:
    """Within it, an error that no one foresaw is said in a line, with what to try, and ends the program with 1."""
    try:
        yield
    except UserError:  # `ends_with_one` explains it
        raise
    except Exception as error:
        print(f"embexp: {described(error)}", file=sys.stderr)
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


def _run_hydra(resumed: Path | None, started: Launched | None) -> list[int]:
    """Let Hydra compose and run; returns the exit code of each run.

    resumed: the folder of the run to go on with. started: what torchrun said, where it has started this.
    """
    codes: list[int] = []

    @hydra.main(config_path=str(CONFIG_FOLDER), config_name="config", version_base="1.3")
    def task(config: DictConfig) -> None:
        from embexp.jobs.job import Job  # only what runs needs it

        job = Job.current(config)
        try:
            job = replace(job, config=agreed(job.config, started), launched=started)
            if resumed is not None:
                resume.refuse_changes(resumed, config)
                job = replace(job, group=resume.group_of(resumed), resume=True)
        except UserError as error:  # Hydra would add a traceback
            print(explained(error), file=sys.stderr)
            codes.append(1)
            return
        codes.append(job.run())

    task()
    return codes + exit_codes.of_jobs
