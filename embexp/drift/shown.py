"""What drift says: in the terminal as Markdown, and what the files drift.json and drift.html hold.

Called by `drift.cli` and `retrain`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embexp.durable import write_whole
from embexp.page import document
from embexp.reporting.tables import Block, Listing, Table, markdown, number

SIGNS = {"ok": "＝", "watch": "▲", "retrain": "▼"}
SHOWN = ("shift", "recall", "share")  # of the settings
MEANING = {
    "ok": "nothing says that the run's model serves today's documents worse",
    "watch": "look at what is new, and at real questions on it",
    "retrain": "train again with what is new",
}


def write(record: Mapping[str, Any], out: Path) -> Path:
    """Write drift.json and drift.html, and return the page's place."""
    finite = json.loads(json.dumps(record), parse_constant=lambda name: None)  # ends of intervals of too few documents
    write_whole(out / "drift.json", json.dumps(finite, indent=2, allow_nan=False) + "\n")
    return document.write(out / "drift.html", "drift", content(record))


def text(record: Mapping[str, Any]) -> str:
    """The verdict with its reasons, and the tables."""
    return markdown([_front(record), *record["reasons"], *record["remarks"], *_tables(record)])


def content(record: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the template `drift` reads."""
    named = {name.replace("_", " "): ", ".join(names) for name, names in record["names"].items() if names}
    unlike = (record["shift"] or {}).get("unlike") or {}
    return {
        "title": f"Drift since {record['run']}: {record['verdict']}",
        "written": record["written"],
        "sign": SIGNS[record["verdict"]],
        "front": [_front(record), *record["reasons"]],
        "remarks": record["remarks"],
        "tables": _tables(record),
        "unlike": Table(["document", "nearness"], [[name, number(value)] for name, value in unlike.items()]),
        "named": Listing("", named),
        "settings": Listing("", _settings(record["config"])),
    }


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Without places: a page is mailed."""
    return {f"{group}.{key}": str(value) for group in SHOWN for key, value in config[group].items()}


def _front(record: Mapping[str, Any]) -> str:
    return f"**{record['verdict']}**: {MEANING[record['verdict']]}."


def _tables(record: Mapping[str, Any]) -> list[Block]:
    passages, documents = record["passages"], record["documents"]
    counts = [
        ["new", f"{documents['new']:,}", f"{passages['added']:,}"],
        ["changed", f"{documents['changed']:,}", f"{passages['changed']:,}"],
        ["as they were", f"{documents['same']:,}", f"{passages['kept']:,}"],
        ["removed", f"{documents['removed']:,}", f"{passages['removed']:,}"],
    ]
    shifts = [
        [name, f"{shift['new']:,}", f"{shift['known']:,}", f"{shift['tested']['statistic']:.4f}",
         f"{shift['tested']['p_value']:.4f}"]
        for name, shift in (("passages, by document", record["shift"]), ("questions", record["questions"]))
        if shift
    ]  # fmt: skip
    return [
        Table(["since the run", "documents", "passages"], counts),
        Table(["shift of", "new", "known", "MMD²", "p"], shifts),
        _recall(record),
    ]


def _recall(record: Mapping[str, Any]) -> Table:
    found = record["recall"]
    if not found:
        return Table(["questions on", "recall"], [])
    at = f"recall@{found['at']}"
    lines = [
        [f"what is {side}", str(found["questions"][side]), str(found["documents"][side]), number(found[side])]
        for side in ("new", "known")
    ]
    own = record["own_test"].get(at)
    if own is not None:
        lines.append(["the run's own test (other questions, another corpus)", "-", "-", number(own)])
    return Table([f"questions on, of {found['corpus']:,} passages", "questions", "documents", at], lines)
