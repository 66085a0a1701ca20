"""Runs the benchmarks that benchmarks/README.md names and puts what they print into it. `make bench` calls it.

Usage: python benchmarks/tables.py [--data FOLDER] [NAME ...]

A block of the page begins with a comment that holds the command, and that command alone decides what is measured:

    <!-- bench: search.py --rounds 3 -->
    (what `python benchmarks/search.py --rounds 3` printed, and on which machine)
    <!-- end -->

DATA in a command stands for `--data`, a local copy of PubMedQA, and without one for the standard library's docstrings.
The machine, its load and the time taken are put below what was printed. NAME limits it to the scripts of this name. A
benchmark that fails leaves its block as it was, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import DATA_HELP, DOCSTRINGS, REPOSITORY, machine

PAGE = REPOSITORY / "benchmarks" / "README.md"
BLOCK = re.compile(r"<!-- bench: (?P<command>[^\n]+) -->\n(?P<content>.*?)<!-- end -->", re.DOTALL)


def rewritten(page: str, *, data: str, names: Sequence[str]) -> tuple[str, list[str]]:
    """The page with each block measured anew, and the commands that failed."""
    failed = []

    def measured(block: re.Match[str]) -> str:
        command = block["command"]
        script, *arguments = [data if word == "DATA" else word for word in shlex.split(command)]
        if names and Path(script).stem not in names:
            return block[0]
        print(f"{command} ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        call = [sys.executable, str(REPOSITORY / "benchmarks" / script), *arguments]
        ended = subprocess.run(call, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
        if ended.returncode or not ended.stdout.strip():
            failed.append(command)
            return block[0]
        took = f"{(time.perf_counter() - start) / 60:.1f} minutes"
        return f"<!-- bench: {command} -->\n{ended.stdout.strip()}\n\n{machine()}; took {took}.\n<!-- end -->"

    return BLOCK.sub(measured, page), failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help=DATA_HELP)
    parser.add_argument("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    page = options.page.read_text(encoding="utf-8")
    known = {Path(shlex.split(block["command"])[0]).stem for block in BLOCK.finditer(page)}
    if unknown := set(options.names) - known:
        parser.error(f"{options.page} has no block of {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}")
    if not options.data:
        print(
            "no copy of PubMedQA was given (make bench DATA=<folder with pqa_labeled/*.parquet>): the standard "
            "library's docstrings stand in for it",
            file=sys.stderr,
        )
    failed = []
    for name in options.names or sorted(known):  # script by script: a later failure or Ctrl-C loses nothing
        page, failures = rewritten(
            options.page.read_text(encoding="utf-8"), data=options.data or DOCSTRINGS, names=[name]
        )
        options.page.write_text(page, encoding="utf-8")
        failed += failures
    if failed:
        sys.exit(f"failed, and left as they were: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
