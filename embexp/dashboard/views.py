"""Makes wandb's workspace and report of a dashboard's spec, with wandb-workspaces, and saves them on the server.

Called by `dashboard.cli`; what they show is `dashboard.spec`'s.
"""

from __future__ import annotations

import math
from typing import Any

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from embexp.dashboard.spec import Dashboard, Panel

ACROSS = 3  # panels in a row
MOST = 100  # lines or bars of a panel; wandb draws the first ten otherwise


def workspace(made: Dashboard, *, entity: str, project: str) -> Any:
    """A saved view of the project with the dashboard's sections; not yet on the server."""
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=made.name,
        sections=[
            workspaces.Section(
                name=section.name,
                panels=[_panel(panel) for panel in section.panels],
                is_open=True,
                layout_settings=workspaces.SectionLayoutSettings(
                    columns=ACROSS, rows=math.ceil(len(section.panels) / ACROSS)
                ),
            )
            for section in made.sections
        ],
        settings=workspaces.WorkspaceSettings(max_runs=MOST),
        runset_settings=workspaces.RunsetSettings(
            order=[workspaces.Ordering(workspaces.Summary(made.best), ascending=False)],
            pinned_columns=_columns(made),
        ),
    )


def report(made: Dashboard, *, entity: str, project: str) -> Any:
    """A report with the dashboard's sections, each with its text and the project's runs; not yet on the server."""
    blocks: list[Any] = [reports.TableOfContents()]
    for section in made.sections:
        runs = reports.Runset(
            entity=entity,
            project=project,
            name="runs",
            order=[reports.OrderBy(reports.SummaryMetric(made.best), ascending=False)],
            pinned_columns=_columns(made),
        )
        grid = reports.PanelGrid(runsets=[runs], panels=[_panel(panel) for panel in section.panels])
        blocks += [reports.H2(section.name), reports.P(section.text), grid]
    return reports.Report(entity=entity, project=project, title=made.name, blocks=blocks, width="fluid")


def _columns(made: Dashboard) -> list[str]:
    # wandb keeps a config key's value under .value
    return ["run:displayName", *(f"{kind}:{key}{'.value' * (kind == 'config')}" for kind, key in made.columns)]


def _panel(panel: Panel) -> Any:
    if panel.kind == "importance":
        (target,) = panel.metrics
        return reports.ParameterImportancePlot(with_respect_to=target)
    grouped: dict[str, Any] = {}
    if panel.by:
        # the metric's values over the runs of a group: their mean, from the lowest to the highest
        grouped = {"groupby": reports.Config(panel.by), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    common = {"title": panel.title, "max_runs_to_show": MOST, **grouped}
    if panel.kind == "curves":
        return reports.LinePlot(x="Step", y=list(panel.metrics), **common)
    return reports.BarPlot(metrics=list(panel.metrics), max_bars_to_show=MOST, **common)


def saved(view: Any) -> str:
    """Send a workspace or a report to the server, as a new one, and return its address there."""
    view.save()
    return str(view.url)
