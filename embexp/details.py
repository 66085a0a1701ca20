"""The last part of report.md: what went in, what training did, times, versions. Called by `report`.

Every part is empty where the run has not come that far.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embexp.errors import counted
from embexp.tables import aligned


def details(result: Mapping[str, Any]) -> str:
    """The sections Data, Training, Times and Versions, as Markdown."""
    counts, seconds = result["counts"], result["seconds"]
    sections = {
        "Data": _data(counts) if counts else "",
        "Training": _training(counts) if counts and counts["steps"] is not None else "",
        "Times": _listed({name: f"{value:.1f} s" for name, value in seconds.items()}),
        "Versions": _listed(result["versions"]),
    }
    return "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items() if text)


def _data(counts: Mapping[str, Any]) -> str:
    sides = [
        [name, *(f"{counts[what][name]:,}" for what in ("queries", "relevant", "passages"))]
        for name in ("train", "dev", "test")
    ]
    parts = [aligned(["split", "queries", "relevant passages", "passages searched"], sides)]
    if len(counts["slices"]) > 1:
        parts.append(f"Of test's queries {' and '.join(f'{n} are {name}' for name, n in counts['slices'].items())}.")
    left_out = {
        **counts["left_out"],
        "train queries that ask what dev or test asks": counts["paraphrases_dropped"],
        "passages of which the model reads the beginning only": counts["truncated"],
    }
    if lost := _listed({what: f"{number:,}" for what, number in left_out.items() if number}):
        parts.append(f"Left out or cut:\n\n{lost}")
    return "\n\n".join(parts)


def _training(counts: Mapping[str, Any]) -> str:
    best = counts["best_step"]
    chosen = "dev was not looked at, so these are the last weights" if best is None else f"step {best} was best on dev"
    text = f"{counted(counts['train_rows'], 'row')}, {counted(counts['steps'], 'step')}; {chosen}."
    if counts["masked_conflicts"]:
        text += f" {counted(counts['masked_conflicts'], 'row')} met a conflicting row, masked in the loss."
    return text


def _listed(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in values.items())
