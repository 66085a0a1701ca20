"""What a person reads: report.md and the same tables at the end of a run. Called by `run`; `page` shows them as HTML.

Reads a result (the content of result.json) and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embexp.arms import shown as arms_shown
from embexp.errors import counted
from embexp.forgetting import shown as forgotten
from embexp.reporting.details import details
from embexp.reporting.tables import (
    COMPARED,
    FEWEST_FOR_INTERVAL,
    Block,
    Table,
    aligned,
    compared,
    interval,
    markdown,
    number,
    signed,
)
from embexp.reranking import shown as reranker_shown
from embexp.results.keys import LATER

HEADLINE = ["recall@1", "recall@3", "recall@5", "recall@10", "ndcg@10", "mrr@10"]
TO_TRY = (
    "more or cleaner questions, hard negatives (loss.shape=triplet negatives=hard), another loss (docs/losses.md has a "
    "comparison), a stronger or less specialised base (model=mpnet), and a look at retrieval/per_query.parquet for "
    "what got worse"
)
ADVICE = (
    f"What to try: a lower learning rate (trainer.learning_rate=1e-5), {TO_TRY}. The base model stays the better "
    "choice until dev says otherwise."
)
FOUND_BY = {  # what found the negatives
    "model": "by the base model",
    "bm25": "by BM25",
    "both": "by BM25 and the base model in turn",
    "random": "at random",
}

SLICES = {
    "seen": "new questions on documents that training questions came from",
    "unseen": "on documents held out whole",
    "real": "of real users",
    "paraphrase": "training questions in other words, no part of the verdict",
}


def read(folder: Path) -> dict[str, Any] | None:
    """The result of the run in a folder, or None where there is none (yet)."""
    file = folder / "result.json"
    return dict.fromkeys(LATER) | json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def write(result: Mapping[str, Any], names: Mapping[str, str], folder: Path) -> None:
    """Write the run's report.md."""
    (folder / "report.md").write_text(report(result, names), encoding="utf-8")


def report(result: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The whole report as Markdown."""
    sections = [block for name, blocks in details(result).items() for block in (f"## {name}", *blocks)]
    return markdown([f"# {title(result, names)}", *_front(result), *sections]) + "\n"


def title(result: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The run in a few words: model, data set, and the loss when something was trained."""
    return f"{names['model']} on {names['dataset']}" + (f", {names['loss']}" if result["tuned"] else "")


def _front(result: Mapping[str, Any]) -> list[Block]:
    if result["status"] == "completed":
        return [*_findings(result), negatives_line(result)]
    return [unfinished_line(result), regression(result), notes(result)]


def unfinished_line(result: Mapping[str, Any]) -> str:
    """How a run ended that did not complete."""
    was = "was " if result["status"] == "pruned" else ""
    return f"This run {was}{result['status']}: {result['error']}"


def summary(result: Mapping[str, Any]) -> str:
    """The verdict and the tables without emphasis, for a model card."""
    return markdown(_findings(result)).replace("**", "")


def at_the_end(result: Mapping[str, Any]) -> str:
    """What the terminal shows at the end of a run: the tables, and then, where it is read first, the verdict."""
    said = [regression(result), _verdict(result), forgotten.findings(result), notes(result), forgotten.warning(result)]
    return markdown([*_tables(result), *said]).replace("**", "")


def _findings(result: Mapping[str, Any]) -> list[Block]:
    """What went wrong first, the verdict, what to know of it, the tables."""
    first = [forgotten.warning(result), regression(result)]
    return [*first, _verdict(result), forgotten.findings(result), notes(result), *_tables(result)]


def _verdict(result: Mapping[str, Any]) -> str:
    if result["base"]["test"] is None:
        return trial_line(result)
    return "\n\n".join([verdict_line(result), *arms_shown.sentences(result)])


def _tables(result: Mapping[str, Any]) -> list[Block]:
    if result["base"]["test"] is None:
        return []
    parts = [table(result), dimensions(result), *slices(result), *reranker_shown.blocks(result, HEADLINE)]
    return [*parts, *arms_shown.blocks(result), *forgotten.tables(result)]


def notes(result: Mapping[str, Any]) -> str:
    """What a reader must know of the scores; empty where there is nothing."""
    return "\n\n".join(f"Note: {note}." for note in result["notes"])


def regression(result: Mapping[str, Any]) -> str:
    """What to say first when the tuned model is worse than the base on dev; else empty."""
    if not result["tuned"]:
        return ""
    metric = result["metric"]
    base, tuned = result["base"]["dev"][metric], result["tuned"]["dev"][metric]
    if tuned >= base:
        return ""
    return f"**The tuned model is worse than the base on dev**: {metric} {base:.3f} -> {tuned:.3f}. {ADVICE}"


def next_steps(result: Mapping[str, Any]) -> str:
    """What to try after this run; empty where the run has said it already, or has not come so far."""
    if result["status"] == "failed" or not result["base"] or regression(result):
        return ""
    if not result["tuned"]:
        return "Train the model: leave out trainer=none, or choose how long (trainer=small)."
    return f"To do better: {TO_TRY}. Change one thing at a time, with several seeds, and let dev choose."


def verdict_line(result: Mapping[str, Any]) -> str:
    """The verdict in a sentence, with its numbers and their denominator."""
    metric, base = result["metric"], result["base"]["test"]
    queries = counted(judged_queries(result["counts"]), "query", "queries")
    caveat = f" ({result['caveat']})" if result["caveat"] else ""
    if result["delta"] is None:
        return f"Base model only{caveat}: {metric} {base[metric]:.3f} on test ({queries}). No training was asked for."
    from embexp.evaluation.metrics import FEWEST_DOCUMENTS  # here, since --help needs this module and no numpy

    delta = result["delta"][metric]
    tuned = result["tuned"]["test"][metric]
    line = (
        f"**Verdict{caveat}: {result['verdict']}.** {metric} {base[metric]:.3f} -> {tuned:.3f} "
        f"on test ({queries}): {signed(delta)}"
    )
    if delta["documents"] < FEWEST_FOR_INTERVAL:  # as in the tables
        return f"{line}. Test has only {counted(delta['documents'], 'document')}: too few for an interval."
    line += f", 95 % interval {interval(delta)}, p = {delta['p_value']:.4f}."
    if delta["documents"] < FEWEST_DOCUMENTS:
        line += f" Test has only {counted(delta['documents'], 'document')}: too few for an interval to be trusted."
    elif delta["p_value"] >= 0.05 and delta["ci_low"] * delta["ci_high"] > 0:
        line += " The change rests on too few documents for its interval to be trusted."
    keyword = result["bm25"]["test"].get(metric)
    if keyword is not None and keyword >= tuned:
        compared = "better" if keyword > tuned else "as good"
        line += f" Note that BM25, plain keyword search, is {compared}: {keyword:.3f}."
    if result["counts"]["steps"] < 10:
        line += f" Training made only {counted(result['counts']['steps'], 'step')}, too few to learn much."
    return line


def judged_queries(counts: Mapping[str, Any]) -> int:
    """How many queries a result's scores on test are over: paraphrases are scored apart."""
    return counts["queries"]["test"] - counts["slices"].get("paraphrase", 0)


def trial_line(result: Mapping[str, Any]) -> str:
    """What a trial of a sweep has to say: dev alone."""
    metric, dev = result["metric"], result["base"]["dev"]
    queries = counted(result["counts"]["queries"]["dev"], "query", "queries")
    tuned = f" -> {result['tuned']['dev'][metric]:.3f}" if result["tuned"] else ""
    return f"**Trial.** {metric} {dev[metric]:.3f}{tuned} on dev ({queries}). Test is for the winner, once confirmed."


def table(result: Mapping[str, Any]) -> Table:
    """BM25, base and tuned at the headline metrics, with delta, interval and wins/ties/losses."""
    base = result["base"]["test"]
    shown = [metric for metric in dict.fromkeys([*HEADLINE, result["metric"]]) if metric in base]
    shown += [metric for metric in base if "." in metric and metric not in shown and not dimension_of(metric)]
    lines = []
    for metric in shown:
        line = [metric, number(result["bm25"]["test"].get(metric)), number(base[metric])]
        if result["tuned"]:
            line += compared(result["tuned"]["test"][metric], result["delta"][metric])
        lines.append(line)
    return Table(["test", "BM25", "base", *(("tuned", *COMPARED) if result["tuned"] else [])], lines)


def dimensions(result: Mapping[str, Any]) -> Table:
    """The primary metric with the whole embedding and with its first dimensions alone; empty where none were scored."""
    base, metric = result["base"]["test"], result["metric"]
    plain = metric.removeprefix(f"dim{dimension_of(metric)}.")
    cut = [name for name in base if dimension_of(name) and name.endswith(f".{plain}")]
    lines = []
    for name in [plain, *sorted(cut, key=dimension_of, reverse=True)] if cut else []:
        line = [str(dimension_of(name) or "all"), number(base[name])]
        if result["tuned"]:
            line += compared(result["tuned"]["test"][name], result["delta"][name])
        lines.append(line)
    return Table([f"{plain} by dimensions", "base", *(("tuned", *COMPARED) if result["tuned"] else [])], lines)


def dimension_of(metric: str) -> int:
    """64 for dim64.recall@10, 0 for a metric of whole embeddings."""
    found = re.match(r"dim(\d+)\.", metric)
    return int(found[1]) if found else 0


def negatives_line(result: Mapping[str, Any]) -> str:
    """How many negatives were drawn and how many of them a second judge doubts; empty where none were drawn."""
    drawn = result["counts"].get("negatives")
    if not drawn:
        return ""
    by = FOUND_BY[drawn["found_by"]]
    line = f"Negatives: {drawn['drawn']} found {by}"
    if drawn["filled_at_random"]:
        line += f", {drawn['filled_at_random']} of them filled in at random"
    if drawn["doubtful"] is None:
        return line + "."
    judge = {"model": "the base model", "bm25": "BM25"}.get(drawn["second_look"], drawn["second_look"])
    return line + (
        f"; {judge} finds {drawn['doubtful']:.1%} of {drawn['looked_at']} at least as good as the known answer."
    )


def slices(result: Mapping[str, Any]) -> list[Block]:
    """The primary metric by slice, and what the slices are; empty where there are none."""
    if not result["slices"]:
        return []
    metric = result["metric"]
    lines = []
    for name, part in result["slices"].items():
        scores = [number(part["bm25"].get(metric)), number(part["base"][metric])]
        shown = f"{name} ({counted(part['queries'], 'query', 'queries')})"
        tuned = compared(part["tuned"][metric], part["delta"][metric]) if result["delta"] else []
        lines.append([shown, *scores, *tuned])
    meant = {"seen", "unseen", *result["slices"]} & SLICES.keys()
    return [
        Table([f"{metric} by slice", "BM25", "base", *(("tuned", *COMPARED) if result["delta"] else [])], lines),
        "; ".join(f"{name}: {SLICES[name]}" for name in SLICES if name in meant) + ".",
    ]


def ranked_runs(results: Sequence[tuple[str, str, Mapping[str, Any] | None, str]]) -> str:
    """One table over many runs, the best on dev first; each is (its number, overrides, result, what happened)."""

    def dev(result: Mapping[str, Any] | None) -> float | None:
        if not result or result["status"] != "completed":
            return None
        arm = result["tuned"] or result["base"]
        return arm["dev"][result["metric"]] if arm["dev"] else None

    scored = sorted((run for run in results if dev(run[2]) is not None), key=lambda run: -(dev(run[2]) or 0.0))
    failed = [run for run in results if dev(run[2]) is None]
    lines = []
    for place, overrides, result, state in [*scored, *failed]:
        if result is None or result["status"] != "completed":
            lines.append([place, overrides, "-", "-", "-", "-", state])
            continue
        metric = result["metric"]
        delta = result["delta"][metric] if result["delta"] else None
        test = (result["tuned"] or result["base"])["test"][metric]
        comparison = f"{signed(delta)} {interval(delta)}" if delta else "-"
        verdict = (result["verdict"] or "base only") + ("*" if result["caveat"] else "")
        lines.append([place, overrides, number(dev(result)), number(test), comparison, verdict, state])
    metrics = {run[2]["metric"] for run in scored if run[2]}
    name = metrics.pop() if len(metrics) == 1 else "metric"
    shown = aligned(["run", "overrides", f"dev {name}", "test", "delta on test", "verdict", "status"], lines)
    caveats = dict.fromkeys(run[2]["caveat"] for run in scored if run[2] and run[2]["caveat"])
    return "\n\n".join([shown, *(f"\\* {caveat}" for caveat in caveats)])
