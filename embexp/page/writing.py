"""Writes a run's report.html. Called by `run` at the end of every run, and by `python -m embexp.page`."""

from __future__ import annotations

import logging
from pathlib import Path

from embexp import libraries
from embexp.results import runs

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
    libraries.quiet("matplotlib")
    from embexp.page import content, document  # matplotlib, whose import fails too; `workers` has it before its trials

    return document.write(folder / NAME, "report", content.of(runs.read(folder)))
