"""report.html: what report.md says and what it has no room for, as one file that asks nobody for anything.

Called by `run` at the end of every run, and by `python -m embexp.page RUN` for one that is still going on or was ended
from outside. `content` gathers, `figures` draws, `document` writes; style.css, table.js and the templates lie beside.
"""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)

NAME = "report.html"


def write(folder: Path) -> None:
    """Write a run's report.html; an error is logged and is no error of the run."""
    try:
        make(folder)
    except Exception as error:  # a full disk, a broken font: the result is there, and report.md
        log.warning("%s could not be written: %s: %s", folder / NAME, type(error).__name__, error)


def make(folder: Path) -> Path:
    """Write a run's report.html and return its path. Raises UserError where the folder holds no run."""
    from embexp import runs
    from embexp.page.content import of  # matplotlib: half a second
    from embexp.page.document import write as written

    return written(folder / NAME, "report", of(runs.read(folder)))
