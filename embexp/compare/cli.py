"""The command `python -m embexp.compare`: reads run folders, ranks them, says what differs for sure.

Imports no torch and no Hydra, so that a thousand runs take seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from embexp import console
from embexp.compare import shown
from embexp.compare.collected import collect
from embexp.compare.groups import boards
from embexp.compare.pairs import pair, pairs
from embexp.errors import UserError
from embexp.reporting.tables import markdown
from embexp.results import runs

DESCRIPTION = "Compare runs: one table here and one page, compare.html, over all runs at or below the folders."
EPILOG = """\
examples:
  python -m embexp.compare multirun/mnrl                       a sweep
  python -m embexp.compare outputs multirun loss=mnrl,triplet  a year of runs, some losses of it
  python -m embexp.compare multirun --metric ndcg@10 --csv     every run as CSV
  python -m embexp.compare --pair RUN_A RUN_B                  is B better than A on test?
"""


def main() -> None:
    """Run the command line; exits with 0, or with 1 where there is nothing to compare."""
    arguments = _parser().parse_args()
    with console.forgiving():
        try:
            if arguments.pair:
                _refuse_beside_pair(arguments)
                print(_pair(*arguments.pair, metric=arguments.metric))
            else:
                _compare(arguments)
        except UserError as error:
            print("\n".join(f"embexp: {problem}" for problem in error.problems), file=sys.stderr)
            sys.exit(1)
        except OSError as error:  # --out in a folder that is not there, a full disk
            print(f"embexp: {error}", file=sys.stderr)
            sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m embexp.compare",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "words", nargs="*", metavar="RUN_OR_FOLDER|key=value",
        help="folders (default: outputs and multirun); filters: loss, model, dataset, status or any key of the config",
    )  # fmt: skip
    parser.add_argument("--metric", help="rank by this one (default: each run's own)")
    parser.add_argument("--pair", nargs=2, metavar=("RUN_A", "RUN_B"), help="compare two runs on test, query by query")
    parser.add_argument("--out", type=Path, default=Path("compare.html"), help="the page (default: compare.html here)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="print a line a run as CSV, and write no page")
    form.add_argument("--json", action="store_true", help="print runs and pairs as JSON, and write no page")
    return parser


def _compare(arguments: argparse.Namespace) -> None:
    collected = collect(arguments.words)
    found = boards(collected.runs, metric=arguments.metric)
    ranked = {id(run) for board in found for group in board.groups for run in (*group.runs, *group.repeats)}
    others = [run for run in collected.runs if id(run) not in ranked]
    if arguments.metric and not found:
        made = sorted({name for run in collected.runs for name in (_scores(run))})
        raise UserError(
            f"--metric {arguments.metric}: no run has it on dev or test; there are {', '.join(made) or 'none'}"
        )
    if arguments.csv:
        print(shown.as_csv(shown.as_rows(found, others)), end="")
        _say(collected.unread)
        return
    compared = {board.title: pairs(board) for board in found}
    if arguments.json:
        print(shown.as_json(shown.as_rows(found, others), compared, collected.unread))
        return
    print(shown.text(found, compared, others))
    _say(collected.unread)
    from embexp.compare import pages  # jinja2
    from embexp.page import document

    print(f"\npage: {document.write(arguments.out, 'compare', pages.of(found, compared, others, collected.unread))}")


def _say(unread: Sequence[str]) -> None:
    if unread:
        print(f"\n{markdown([shown.unread_listing(unread)])}", file=sys.stderr)


def _scores(run: runs.Run) -> list[str]:
    measured = (run.result or {}).get("base") or {}
    return [name for side in ("dev", "test") for name in measured.get(side) or {}]


def _refuse_beside_pair(arguments: argparse.Namespace) -> None:
    given = [*arguments.words, *(f"--{form}" for form in ("csv", "json") if getattr(arguments, form))]
    if given:
        raise UserError(
            f"--pair compares the two runs that it names, in a sentence, and does not take {' '.join(given)}; leave "
            "out one or the other (--json without --pair has the pairs of all runs)"
        )


def _pair(first: str, second: str, *, metric: str | None) -> str:
    """The second run against the first on test, in a sentence."""
    one, other = (runs.read(Path(folder)) for folder in (first, second))
    wanted = metric or one.config["metric"]
    delta = pair(one, other, metric=wanted)
    caveats = dict.fromkeys(run.result["caveat"] for run in (one, other) if run.result and run.result["caveat"])
    said = "".join(f" ({caveat})" for caveat in caveats)
    scores = [f"{run.score('test', wanted):.3f}" for run in (one, other)]
    return (
        f"{second} is {delta.verdict if delta.verdict != 'no difference' else 'no different'} on test: {wanted} "
        f"{scores[0]} -> {scores[1]} ({delta.queries:,} queries): {delta.absolute:+.3f}, 95 % interval "
        f"{delta.ci_low:+.3f} to {delta.ci_high:+.3f}, p = {delta.p_value:.4f}, "
        f"{delta.wins}/{delta.ties}/{delta.losses} wins/ties/losses{said}"
    )
