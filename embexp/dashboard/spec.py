"""What a dashboard shows: sections, panels, the names of what they read, and what groups them. Pure; no wandb.

Called by `dashboard.cli`; `dashboard.views` makes wandb's objects of it. The names are those that runs log:
`dev/<metric>` while training (`callbacks`), `<split>/<arm>/<metric>`, `test/delta/<metric>`, `test/ci_low/<metric>` and
`test/ci_high/<metric>` at the end (`run`), and the config keys loss, model and dataset (`tracking`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from embexp.errors import UserError

KEYS = ("loss", "model", "dataset")  # the flat config keys of a run that hold a choice by name
PLACES = (1, 3, 5, 10, 100)  # evaluator.retrieval.k_values, as conf/ has them


@dataclass(frozen=True)
class Panel:
    """One figure.

    kind: `curves` over optimiser steps, `bars` of what runs ended with, or `importance` of config keys for the metric.
    by: the config key whose values have a line or bars each, the mean of their runs; None: each run stands for itself.
    """

    kind: Literal["curves", "bars", "importance"]
    title: str
    metrics: tuple[str, ...]
    by: str | None = None


@dataclass(frozen=True)
class Section:
    """Panels under one heading; text: how to read them, in a sentence or two."""

    name: str
    text: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Dashboard:
    """A whole dashboard. best: what runs are ordered by, highest first. columns: of the runs' table, after the name, as
    (`config` or `summary`, key)."""

    name: str
    sections: tuple[Section, ...]
    best: str
    columns: tuple[tuple[Literal["config", "summary"], str], ...]


def dashboard(metric: str, *, by: str = "loss", places: Sequence[int] = PLACES) -> Dashboard:
    """Compare runs by a config key on a metric such as recall@10, and on the same metric at other places.

    A metric without a place, such as similarity.spearman_cosine, stands alone. Raises UserError for a key that runs
    don't have, and for a place that is none.
    """
    if by not in KEYS:
        raise UserError(f"runs can't be grouped by {by!r}; choose one of {', '.join(KEYS)}")
    if wrong := [place for place in places if place < 1]:
        raise UserError(f"there is no place {wrong[0]} in a ranking; places count from 1, such as 1,10,100")
    metrics = _at(metric, places)
    return Dashboard(
        name=f"embexp {by} comparison on {metric}",
        sections=(_curves(metrics, by), _arms(metrics, by), _deltas(metrics), _importance(metric)),
        best=f"dev/tuned/{metric}",
        columns=(
            *(("config", key) for key in KEYS),
            ("summary", f"dev/tuned/{metric}"),
            *(("summary", f"test/{value}/{metric}") for value in ("base", "tuned", "delta", "ci_low", "ci_high")),
            ("summary", "verdict"),
        ),
    )


def _at(metric: str, places: Sequence[int]) -> list[str]:
    name, at, place = metric.rpartition("@")
    if not at:
        return [metric]
    if not name or not place.isdecimal() or int(place) < 1:
        raise UserError(f"the metric {metric!r} is not a name, an @ and a number from 1 on, such as recall@10")
    return [f"{name}@{each}" for each in sorted({*places, int(place)})]


def _curves(metrics: Sequence[str], by: str) -> Section:
    panels = tuple(Panel("curves", f"dev {metric}", (f"dev/{metric}",), by) for metric in metrics)
    return Section(
        f"Dev while training, by {by}",
        f"A line for each {by}: the mean of its runs, in a band from the lowest to the highest. Dev decides.",
        panels,
    )


def _arms(metrics: Sequence[str], by: str) -> Section:
    arms = ("bm25", "base", "tuned")
    panels = tuple(
        Panel("bars", f"test {metric}", tuple(f"test/{arm}/{metric}" for arm in arms), by) for metric in metrics
    )
    return Section(
        f"Base against tuned on test, by {by}",
        f"Keyword search, the base model and the tuned one on test: the mean of the runs of each {by}. Trials of a "
        "sweep have no test score.",
        panels,
    )


def _deltas(metrics: Sequence[str]) -> Section:
    values = ("ci_low", "delta", "ci_high")
    panels = tuple(
        Panel("bars", f"delta of {metric} on test, 95 % interval", tuple(f"test/{value}/{metric}" for value in values))
        for metric in metrics
    )
    return Section(
        "Delta on test and its interval, run by run",
        "Tuned minus base (delta) between the ends of its 95 % interval (ci_low, ci_high). Intervals of "
        "several runs have no mean, so each run has its own bars; what they amount to is its verdict in the table.",
        panels,
    )


def _importance(metric: str) -> Section:
    target = f"dev/tuned/{metric}"
    return Section(
        "What matters",
        f"How well each config key predicts {target}, as wandb measures it; it needs runs that differ in it.",
        (Panel("importance", f"importance for {target}", (target,)),),
    )


def shown(made: Dashboard) -> str:
    """A dashboard as text: its sections, panels and the names that they read."""
    lines = [made.name]
    for section in made.sections:
        lines += ["", section.name]
        for panel in section.panels:
            group = f", grouped by {panel.by}" if panel.by else ""
            lines.append(f"  {panel.title} ({panel.kind}{group}): {', '.join(panel.metrics)}")
    return "\n".join(lines)
