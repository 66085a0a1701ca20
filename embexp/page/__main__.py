"""`python -m embexp.page RUN...`: report.html of runs that are still going on, were ended from outside, or are old."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from embexp import console
from embexp.errors import UserError, described
from embexp.page.writing import make
from embexp.results import runs


def main() -> None:
    """Write report.html into each run at or below the folders; exits with 1 where one could not be."""
    parser = argparse.ArgumentParser(prog="python -m embexp.page", description="Write report.html of runs.")
    parser.add_argument("places", nargs="+", type=Path, metavar="RUN_OR_FOLDER", help="a run's folder, or one above")
    failed = False
    with console.forgiving():
        for place in parser.parse_args().places:
            try:
                folders = list(runs.find(place))
                if not folders:
                    raise UserError(f"{place} holds no run")
            except UserError as error:
                print(f"embexp: {error}", file=sys.stderr)
                failed = True
                continue
            for folder in folders:
                try:
                    print(make(folder))
                except UserError as error:
                    print(f"embexp: {error}", file=sys.stderr)
                    failed = True
                except Exception as error:  # one run's broken files leave the others their pages
                    print(f"embexp: {folder}: {described(error)}", file=sys.stderr)
                    failed = True
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
