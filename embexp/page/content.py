"""What a run's page shows, gathered from its folder; every part is missing where the run has not come that far.

Called by `page`. The sentences and tables are `report`'s, the figures `page.figures`'.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import yaml

from embexp.arms import shown as arms_shown
from embexp.errors import counted
from embexp.forgetting import shown as forgotten
from embexp.page.figures import NAMES, Point, at_every_k, beside, curve, deltas
from embexp.page.queries import PerQuery, examples, read, table
from embexp.reporting import report as reports
from embexp.reporting.details import details
from embexp.reporting.tables import Block, Listing, Table, number
from embexp.reranking import shown as reranker_shown
from embexp.results.runs import Run

ARMS = ("tuned", "base", "bm25")
SIGNS = {"better": "▲", "worse": "▼", "no difference": "="}


def of(run: Run) -> dict[str, Any]:
    """Everything that the template `report` reads."""
    result = run.result
    side = "test" if result and result["base"] and result["base"]["test"] else "dev"
    per_query = read(run.folder)
    return {
        "title": reports.title(result, run.names) if result else f"{run.names['model']} on {run.names['dataset']}",
        "folder": run.folder.resolve().name,  # a page is mailed: no path of the machine
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "status": run.status,
        "verdict": result["verdict"] if result else None,
        "sign": SIGNS.get(result["verdict"] if result else "", ""),
        "front": _front(run),
        "tiles": _tiles(run, side) if result and result["base"] else [],
        "side": side,
        "scores": _scores(run, side, per_query) if result and result["base"] else [],
        "tables": _tables(run, side),
        "slices": reports.slices(result) if result and result["slices"] and side == "test" else [],
        "arms": _arms(run),
        "curves": _curves(run),
        "examples": examples(run.folder),
        "table": table(per_query, metric=run.config["metric"]),
        "to_try": reports.next_steps(result) if result else "",
        "details": _details(run),
        "config": yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True),
    }


def _front(run: Run) -> list[str]:
    """The sentences that come first."""
    result = run.result
    if result is None:
        return [_unfinished(run)]
    if result["status"] != "completed":
        lines = [reports.unfinished_line(result), reports.regression(result)]
    else:
        said = reports.verdict_line if result["base"]["test"] else reports.trial_line
        lines = [forgotten.warning(result), reports.regression(result), said(result)]
        lines += [*arms_shown.sentences(result), forgotten.findings(result)]
    notes = [f"Note: {note}." for note in result["notes"]]
    return [line for line in [*lines, *notes] if line]


def _unfinished(run: Run) -> str:
    files = [path for path in run.folder.iterdir() if path.is_file() and path.name != "report.html"]
    last = max((path.stat().st_mtime for path in files), default=0.0)
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last))
    return (
        f"**No result yet.** This run is still going on, or was ended from outside; it last wrote at {at}. "
        "To see how far it has come now: python -m embexp.page with this run's folder."
    )


def _tiles(run: Run, side: str) -> list[tuple[str, str, str]]:
    """(what, figure, what it counts) of the primary metric."""
    result, metric = run.result or {}, run.config["metric"]
    counts = result["counts"]
    number_of = reports.judged_queries(counts) if side == "test" else counts["queries"]["dev"]
    of = counted(number_of, "query", "queries")
    scores = [(NAMES[arm], run.score(side, metric, arm=arm)) for arm in ("bm25", "base", "tuned")]
    if result.get("reranker"):
        scores.append(("with reranker", run.score(side, metric, arm="reranker")))
    tiles = [(name, number(score), f"{metric} on {side}, {of}") for name, score in scores if score is not None]
    if result["delta"]:
        delta = result["delta"][metric]
        interval = f"95 % interval {delta['ci_low']:+.3f} to {delta['ci_high']:+.3f}"
        tiles.append(("change", f"{delta['absolute']:+.3f}", interval))
    return tiles


def _measures(run: Run, side: str) -> dict[str, list[int]]:
    """The measures that have figures, with their k: the primary metric's, and nDCG, or recall where that is it."""
    found: dict[str, list[int]] = {}
    for metric in ((run.result or {})["base"] or {}).get(side) or {}:
        if parts := re.fullmatch(r"([a-z]+)@(\d+)", metric):
            found.setdefault(parts[1], []).append(int(parts[2]))
    primary = run.config["metric"].partition("@")[0].rpartition(".")[2]
    wanted = [measure for measure in dict.fromkeys([primary, "ndcg", "recall"]) if measure in found][:2]
    return {measure: sorted(found[measure]) for measure in wanted}


def _scores(run: Run, side: str, per_query: PerQuery | None) -> list[dict[str, Any]]:
    """Figures of base, tuned and BM25 at every k, and of the change, each with the same as a table."""
    result, found = run.result or {}, []
    for measure, ks in _measures(run, side).items():
        header = [f"{measure} at k =", *map(str, ks)]
        arms: dict[str, dict[int, Point]] = {}
        for arm in ARMS:
            scores = {k: run.score(side, f"{measure}@{k}", arm=arm) for k in ks} if result[arm] else {}
            points = {k: _with_interval(per_query, f"{arm}.{measure}@{k}", score) for k, score in scores.items()}
            if there := {k: point for k, point in points.items() if point is not None}:
                arms[arm] = there
        rows = [[NAMES[arm], *(_shown(points.get(k)) for k in ks)] for arm, points in arms.items()]
        drawn = at_every_k(f"scores-{measure}", measure, arms, says=_in_words(arms))
        found.append({"svg": drawn, "table": Table(header, rows)})
        if result["delta"] and side == "test":
            changes = {k: _change(result["delta"][f"{measure}@{k}"]) for k in ks}
            says = ", ".join(f"{point.value:+.3f} at {k}" for k, point in changes.items())
            drawn = deltas(f"deltas-{measure}", measure, changes, says=says)
            row = ["change", *(f"{p.value:+.3f} ({p.low:+.3f} to {p.high:+.3f})" for p in changes.values())]
            found.append({"svg": drawn, "table": Table(header, [row])})
    return found


def _in_words(arms: Mapping[str, Mapping[int, Point]]) -> str:
    each = {arm: ", ".join(f"{point.value:.3f} at {k}" for k, point in points.items()) for arm, points in arms.items()}
    return "; ".join(f"{NAMES[arm]} {words}" for arm, words in each.items())


def _with_interval(per_query: PerQuery | None, column: str, score: float | None) -> Point | None:
    if score is None:
        return None
    interval = per_query.interval(column) if per_query is not None else None
    return Point(score, *interval) if interval else Point(score)


def _change(delta: Mapping[str, Any]) -> Point:
    return Point(delta["absolute"], delta["ci_low"], delta["ci_high"])


def _shown(point: Point | None) -> str:
    if point is None:
        return "-"
    if point.low is None or point.high is None:
        return number(point.value)
    return f"{point.value:.3f} ({point.low:.3f} to {point.high:.3f})"


def _tables(run: Run, side: str) -> list[Block]:
    result = run.result
    if result is None or not result["base"] or side != "test" or result["status"] != "completed":
        return []
    shown = [reports.table(result), reports.dimensions(result), *reranker_shown.blocks(result, reports.HEADLINE)]
    shown += forgotten.tables(result)
    return [block for block in shown if not isinstance(block, Table) or block.lines]


def _arms(run: Run) -> dict[str, Any]:
    """What each arm is worth and costs, and the learning curve, as figures and as tables."""
    result = run.result
    if result is None or result["status"] != "completed":
        return {"figures": [], "blocks": []}
    figures = []
    if result["arms"]:
        metric = result["arms_verdict"]["metric"]
        points = {
            arms_shown.names(result)[name]: _change(arm["delta"][metric])
            for name, arm in result["arms"].items()
            if arm["delta"]
        }
        says = "; ".join(f"{name} {point.value:+.3f}" for name, point in points.items())
        rows = [[name, f"{point.value:+.3f} ({point.low:+.3f} to {point.high:+.3f})"] for name, point in points.items()]
        drawn = beside("arms", metric, points, says=says)
        figures.append({"svg": drawn, "table": Table(["arm", f"{metric} minus base"], rows)})
    return {"figures": figures, "blocks": arms_shown.blocks(result)}


def _curves(run: Run) -> list[dict[str, Any]]:
    """Loss and the primary metric on dev by step, from metrics.jsonl."""
    steps, metric = run.steps(), run.config["metric"]
    best = (run.result or {}).get("counts", {}).get("best_step")
    found = []
    for name, key, title, kept in (
        ("curve-loss", "train/loss", "training loss", None),
        ("curve-dev", f"dev/{metric}", f"{metric} on dev while training", best),
    ):
        points = [(step["step"], float(step[key])) for step in steps if isinstance(step.get(key), int | float)]
        if len(points) < 2:
            continue
        says = f"from {points[0][1]:.3f} at step {points[0][0]} to {points[-1][1]:.3f} at step {points[-1][0]}"
        rows = [[str(step), number(value)] for step, value in points]
        svg = curve(name, title, points, best=kept, says=says)
        found.append({"svg": svg, "table": Table(["step", title], rows)})
    return found


def _details(run: Run) -> dict[str, list[Block]]:
    """The sections of report.md, what the scores depend on, and where it ran."""
    result = run.result
    choices: dict[str, list[Block]] = {"Choices": [Listing("", {**run.names, "seed": run.config["seed"]})]}
    if result is None:
        return choices
    sections = choices | details(result)
    if line := reports.negatives_line(result) if result["counts"] else "":
        sections["Training"] = [*sections.get("Training", []), line]
    if "Times" in sections:
        memory = result.get("peak_memory_mib")
        spent = {"in all": f"{sum(result['seconds'].values()):.1f} s"}
        spent |= {"peak memory": f"{memory:,} MiB"} if memory else {}
        sections["Times"] = [*sections["Times"], Listing("", spent)]
    origin = {**(result["fingerprint"].get("model") or {}), **(result["fingerprint"].get("dataset") or {})}
    digests = {
        name: result["fingerprint"][name]
        for name in ("train", "dev", "test", "corpus")
        if name in result["fingerprint"]
    }
    git = result.get("git")
    commit = {"git": f"{git['commit']}{', with changes' if git['changed'] else ''}"} if git else {}
    sections["Fingerprint"] = [
        "Runs of which these agree were measured on the same.",
        Listing("", {**digests, **{name: value for name, value in origin.items() if value}, **commit}),
    ]
    return {name: blocks for name, blocks in sections.items() if any(blocks)}
