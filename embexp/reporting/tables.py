"""Tables, lists and numbers as a person reads them, as Markdown. Called by what reports; `page` shows them as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

COMPARED = ["delta", "95 % interval", "wins/ties/losses"]
FEWEST_FOR_INTERVAL = 5  # documents: fewer resample to themselves too often to say anything


class Table(NamedTuple):
    """Cells as text; the first column says what a line is about, the others are numbers."""

    header: Sequence[str]
    lines: Sequence[Sequence[str]]


class Listing(NamedTuple):
    """What there is of each thing, under a title, which may be empty."""

    title: str
    items: Mapping[str, Any]


Block = str | Table | Listing  # a paragraph, or one of these


def markdown(blocks: Iterable[Block]) -> str:
    """Blocks as Markdown, with an empty line between; empty ones are left out."""
    return "\n\n".join(text for text in map(_markdown, blocks) if text)


def _markdown(block: Block) -> str:
    if isinstance(block, str):
        return block
    if isinstance(block, Table):
        return aligned(block.header, block.lines) if block.lines else ""
    items = "\n".join(f"- {name}: {value}" for name, value in block.items.items())
    return "\n\n".join(text for text in (block.title, items) if text) if items else ""


def aligned(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left and the others to the right."""
    widths = [max(len(row[column]) for row in [header, *lines]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *(line(cells) for cells in lines)])


def number(value: float | None) -> str:
    """A score with three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def compared(score: float, delta: Mapping[str, Any]) -> list[str]:
    """The cells of a score and of its difference from another, as in result.json: under a heading, then COMPARED."""
    counts = "-" if delta["wins"] is None else f"{delta['wins']}/{delta['ties']}/{delta['losses']}"
    return [number(score), signed(delta), interval(delta), counts]


def signed(delta: Mapping[str, Any]) -> str:
    """A difference with its sign."""
    return f"{delta['absolute']:+.3f}"


def interval(delta: Mapping[str, Any]) -> str:
    """The ends of a difference's interval, or that it is of too few documents to have one."""
    if delta["documents"] < FEWEST_FOR_INTERVAL:
        return "too few"
    return f"{delta['ci_low']:+.3f} to {delta['ci_high']:+.3f}"
