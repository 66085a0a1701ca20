"""The command that exports a run's model: `python -m embexp.export RUN format=onnx out=FOLDER`.

Checks the words, then hands over to `exported`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embexp import cache
from embexp.cli import ends_with_one
from embexp.config.checks import nearest
from embexp.errors import UserError
from embexp.export import formats

USAGE = """\
Usage: python -m embexp.export RUN format=FORMAT out=FOLDER [max_loss=0.01] [changed_data=true]

  RUN            the folder of a completed run
  format         fp16, onnx, onnx_int8 or openvino
  out            a new folder for the exported model, its scores (export.json), card and stamp
  max_loss       how much of the primary metric on the run's test set it may lose, else it is not kept
  changed_data   measure although the data are not those of the run"""
DEFAULTS = {"format": None, "out": None, "max_loss": "0.01", "changed_data": "false"}


@dataclass(frozen=True)
class Order:
    """What a command line asks for."""

    run: str
    format: str
    out: Path
    max_loss: float
    changed_data: bool


def main(words: Sequence[str]) -> None:
    """Export and measure; exits with 1 when the export lost too much or could not be made."""
    if not words or {"-h", "--help"} & set(words):
        print(USAGE)
        sys.exit(0 if words else 1)
    with ends_with_one():
        order = ordered(words)
        logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s", force=True)
        logging.getLogger("embexp").setLevel(logging.INFO)
        print("loading ...", file=sys.stderr)
        from embexp.export.exported import export  # torch, transformers: seconds
        from embexp.results.finished import opened

        run = opened(order.run)
        with cache.kept_in(run.cache_folder):
            text = export(
                run, name=order.format, out=order.out, max_loss=order.max_loss, changed_data=order.changed_data
            )
        print(text)


def ordered(words: Sequence[str]) -> Order:
    """The order that the words give. Raises UserError with all mistakes."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    runs = [word for word in words if "=" not in word]
    values = DEFAULTS | given
    problems = [f"there is no {key}=;{nearest(key, list(DEFAULTS))} {USAGE}" for key in given if key not in DEFAULTS]
    if len(runs) != 1:
        problems.append(f"name one run, there are {len(runs)}. {USAGE}")
    problems += [f"{key}= must be set. {USAGE}" for key, value in values.items() if value in (None, "")]
    if values["format"] and (problem := formats.problem(values["format"])):
        problems.append(problem)
    if (loss := _number(values["max_loss"])) is None:
        problems.append(f"max_loss={values['max_loss']} must be a number from 0 to 1, such as 0.01")
    if values["changed_data"] not in ("true", "false"):
        problems.append(f"changed_data={values['changed_data']} must be true or false")
    out = Path(values["out"] or ".").expanduser().absolute()
    if values["out"] and out.exists() and (not out.is_dir() or any(out.iterdir())):
        problems.append(f"out={values['out']} is there already; name a new folder")
    if problems:
        raise UserError(*problems)
    assert loss is not None
    return Order(runs[0], str(values["format"]), out, loss, values["changed_data"] == "true")


def _number(word: str | None) -> float | None:
    try:
        value = float(word or "")
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None
