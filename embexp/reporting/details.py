"""The last part of a report: what went in, what training did, times, versions. Called by `report` and `page`.

Every part is empty where the run has not come that far.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embexp.errors import counted
from embexp.reporting.tables import Block, Listing, Table


def details(result: Mapping[str, Any]) -> dict[str, list[Block]]:
    """The sections Data, Training, Times and Versions that there is something to say in."""
    counts, seconds = result["counts"], result["seconds"]
    sections: dict[str, list[Block]] = {
        "Data": _data(counts) if counts else [],
        "Training": [_training(counts)] if counts and counts["steps"] is not None else [],
        "Times": [Listing("", {name: f"{value:.1f} s" for name, value in seconds.items()})] if seconds else [],
        "Versions": [Listing("", result["versions"])] if result["versions"] else [],
    }
    return {name: blocks for name, blocks in sections.items() if blocks}


def _data(counts: Mapping[str, Any]) -> list[Block]:
    sides = [
        [name, *(f"{counts[what][name]:,}" for what in ("queries", "relevant", "passages"))]
        for name in ("train", "dev", "test")
    ]
    parts: list[Block] = [Table(["split", "queries", "relevant passages", "passages searched"], sides)]
    if len(counts["slices"]) > 1:
        parts.append(f"Of test's queries {' and '.join(f'{n} are {name}' for name, n in counts['slices'].items())}.")
    left_out = {
        **counts["left_out"],
        "train queries that ask what dev or test asks": counts["paraphrases_dropped"],
        "passages of which the model reads the beginning only": counts["truncated"],
    }
    parts.append(Listing("Left out or cut:", {what: f"{number:,}" for what, number in left_out.items() if number}))
    return parts


def _training(counts: Mapping[str, Any]) -> str:
    best = counts["best_step"]
    chosen = "dev was not looked at, so these are the last weights" if best is None else f"step {best} was best on dev"
    text = f"{counted(counts['train_rows'], 'row')}, {counted(counts['steps'], 'step')}; {chosen}."
    if counts["masked_conflicts"]:
        text += f" {counted(counts['masked_conflicts'], 'row')} met a conflicting row, masked in the loss."
    return text
