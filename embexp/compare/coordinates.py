"""Parallel coordinates of a search as SVG: an axis for each key that was searched, the last one the score on dev.

Called by `compare.pages`. Drawn by hand: a thousand lines are a thousand short paths, and a page can colour them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from embexp.compare.groups import Board, Group
from embexp.compare.shown import short_names

FEWEST = 4  # groups; fewer are a table
MOST_AXES = 7
DENSE = 150  # groups, from which on lines are fainter
MOST_CHOICES = 12  # values of an axis that is no number
WIDTH, HEIGHT, TOP, LEFT, BOTTOM = 900, 300, 28, 70, 24
TENFOLD = 20.0  # largest / smallest, from which on an axis of positive numbers is logarithmic


class Axis:
    """Where the values of one key stand, from 0 at the bottom to 1 at the top, and what is written beside it."""

    def __init__(self, name: str, values: Sequence[Any]) -> None:
        self.name = name
        self._numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if self._numbers:
            low, high = min(values), max(values)
            self._log = low > 0 and high / low >= TENFOLD
            self._low, self._high = self._scaled(low), self._scaled(high)
            middle = math.sqrt(low * high) if self._log else (low + high) / 2
            self.ticks = [
                (self.place(value), f"{value:.3g}") for value in ([low, middle, high] if high > low else [low])
            ]
        else:
            self._choices = sorted({str(value) for value in values})
            self.ticks = [(self.place(value), value) for value in self._choices]

    def place(self, value: Any) -> float:
        """From 0 to 1."""
        if not self._numbers:
            return (self._choices.index(str(value)) + 0.5) / len(self._choices)
        if self._high == self._low:
            return 0.5
        return (self._scaled(value) - self._low) / (self._high - self._low)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self._log else float(value)


def parallel(board: Board, name: str) -> Markup | None:
    """The figure, or None where there is too little to draw. name: unlike any other's on the page."""
    groups = [group for group in board.groups if group.dev is not None]
    values = {key: [group.varied[key] for group in groups] for key in board.varied}
    for choice in ("loss", "model"):
        values = {choice: [group.names[choice] for group in groups], **values}
    drawn = {key: found for key, found in values.items() if _can_be_drawn(found)}
    if len(groups) < FEWEST or not drawn:
        return None
    kept = list(drawn)[:MOST_AXES]
    shown = short_names(kept)
    axes = [Axis(shown[key], drawn[key]) for key in kept]
    scores = [group.dev.mean for group in groups if group.dev]
    axes.append(Axis(f"{board.metric} on dev", scores))
    columns = [*(drawn[key] for key in kept), scores]
    step = (WIDTH - 2 * LEFT) / (len(axes) - 1)
    lines = [_line(group, place, len(groups), axes, columns, step) for place, group in enumerate(groups)]
    says = (
        f"{len(groups)} lines, one for each setting, the best on dev drawn last and darkest; the table has their values"
    )
    return Markup(
        '<svg viewBox="0 0 {w} {h}" role="img" aria-labelledby="{n}-title {n}-desc">'
        '<title id="{n}-title">{title}</title><desc id="{n}-desc">{says}</desc>'
        '<g class="lines{dense}">{lines}</g>{axes}</svg>'
    ).format(
        w=WIDTH,
        h=HEIGHT + TOP + BOTTOM,
        n=name,
        title=f"What was searched, and {board.metric} on dev",
        says=says,
        dense=" dense" if len(groups) > DENSE else "",
        lines=Markup("").join(reversed(lines)),  # the best on top
        axes=Markup("").join(_axis(axis, LEFT + place * step) for place, axis in enumerate(axes)),
    )


def _can_be_drawn(found: Sequence[Any]) -> bool:
    if any(value is None or isinstance(value, list | dict) for value in found) and len({str(v) for v in found}) < 2:
        return False
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in found)
    return 1 < len({str(value) for value in found}) <= (math.inf if numbers else MOST_CHOICES)


def _height(share: float) -> float:
    return TOP + (1 - share) * HEIGHT


def _line(
    group: Group, place: int, of: int, axes: Sequence[Axis], columns: Sequence[Sequence[Any]], step: float
) -> Markup:
    points = [(LEFT + i * step, _height(axis.place(columns[i][place]))) for i, axis in enumerate(axes)]
    path = "M" + "L".join(f"{x:.0f} {y:.1f}" for x, y in points)
    kind = "best" if place < max(1, of // 10) else "middle" if place < of / 2 else "worst"
    values = ", ".join(f"{axis.name} {columns[i][place]}" for i, axis in enumerate(axes[:-1]))
    score = group.dev.mean if group.dev else math.nan
    words = f"#{group.number}: {values}: {score:.3f}"
    return Markup('<path class="{}" d="{}"><title>{}</title></path>').format(kind, path, words)


def _axis(axis: Axis, x: float) -> Markup:
    top, bottom = _height(1), _height(0)
    parts = [
        Markup('<path d="M{0:.0f} {1:.0f}V{2:.0f}" stroke="var(--soft)"/>').format(x, top, bottom),
        Markup('<text x="{:.0f}" y="{:.0f}" text-anchor="middle" fill="var(--ink)" font-weight="600">{}</text>').format(
            x, TOP - 12, axis.name
        ),
    ]
    parts += [
        Markup('<text x="{:.0f}" y="{:.1f}" text-anchor="end" class="over" fill="var(--ink)">{}</text>').format(
            x - 5, _height(share) + 3.5, text
        )
        for share, text in axis.ticks
    ]
    return Markup("").join(parts)
