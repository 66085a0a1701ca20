"""What mining says: before it asks, what it would cost, and of the data set in mining.json, mining.md and at the end.

Called by `mining`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from embexp import __version__
from embexp.evaluation.metrics import FEWEST_DOCUMENTS
from embexp.mine.client import Client, Estimate
from embexp.mine.funnel import Sifted
from embexp.mine.knowledge import Knowledge
from embexp.mine.passages import Wanted
from embexp.mine.real import Real
from embexp.mine.written import DataSet

SAMPLES = 12  # questions of each kind that the page shows
UNREADABLE = 20  # files that are named
NO_PRICE = "cost unknown: {model} is not in the price table (conf/prices.yaml); set llm.price"


def of_knowledge(known: Knowledge, side_of: Mapping[str, str], wanted: Sequence[Wanted]) -> str:
    """What was read and how it is dealt out."""
    sides = Counter(side_of.values())
    lines = [
        f"{len({passage.document for passage in known.passages})} documents, {len(known.passages)} passages"
        + _bracketed(f"{count} {name}" for name, count in known.counts.items() if count),
        f"held out whole: {sides['test']} for test, {sides['dev']} for dev; {sides['train']} to train on",
        f"to ask: {sum(len(each.kinds) for each in wanted)} questions on {len(wanted)} passages",
    ]
    if 0 < sides["test"] < FEWEST_DOCUMENTS:
        lines.append(
            f"that is too little for a verdict, which needs {FEWEST_DOCUMENTS} in test: add documents, hold out "
            "sections (split.unit=section), or more of them (split.test=0.4)"
        )
    if known.unreadable:
        lines += [f"not read: {len(known.unreadable)} files", *_named(known.unreadable)]
    return "\n".join(lines)


def of_estimate(estimate: Estimate, config: Mapping[str, Any]) -> str:
    """What the questions would cost. Judging, completion and paraphrases come on top."""
    left = estimate.calls - estimate.answered
    lines = [
        f"Dry run: {estimate.calls} calls, {estimate.answered} of them answered before; no call was made.",
        f"{left} calls would take about {estimate.prompt_tokens:,} tokens of prompts and "
        f"{estimate.completion_tokens:,} of answers (at most {estimate.most_completion_tokens:,}).",
    ]
    model = config["llm"]["model"]
    if estimate.calls == 0:
        lines = ["Dry run: this miner asks no language model, so it costs nothing."]
    elif estimate.usd is None or estimate.most_usd is None:
        lines.append(NO_PRICE.format(model=model).capitalize() + ".")
    else:
        lines.append(f"With {model} about {estimate.usd:.2f} USD, at most {estimate.most_usd:.2f}.")
    further = {"judge": "judge=true", "complete": "complete", "paraphrases": "paraphrases"}
    further |= {"real_questions": "the passages of real_questions without ids"}
    asked = [word for key, word in further.items() if config[key] and config[key] != "dataset"]
    if asked and estimate.calls:
        lines.append(f"Not counted, since it depends on the answers: {', '.join(asked)}.")
    return "\n".join(lines)


def unanswered(client: Client) -> str | None:
    """Why the data set is not whole though nothing stopped mining: calls that failed for good, this time."""
    report = client.report()
    return f"{report.failed} calls got no answer ({report.last_fault})" if report.failed else None


def record(
    config: Mapping[str, Any],
    data: DataSet,
    known: Knowledge,
    sifted: Sifted,
    users: Real,
    paraphrase_problems: Mapping[str, int],
    client: Client,
) -> dict[str, Any]:
    """The content of mining.json, but for the digest of the data."""
    report = client.report()
    spent = report.answered
    copies = Counter(each.stage for each in data.rejected)
    return {
        "embexp": __version__,
        "config": dict(config),
        "documents": len({passage.document for passage in known.passages}),
        "passages": len(known.passages),
        "dropped_passages": dict(known.counts),
        "unreadable": dict(known.unreadable),
        "funnel": dict(sifted.counts),
        "problems": {**sifted.problems, **paraphrase_problems},
        "left_out": {**dict(copies), **users.left_out},
        "questions": dict(Counter(query.side for query in data.queries.values())),
        "kinds": dict(Counter(str(query.about["kind"]) for query in data.queries.values() if "kind" in query.about)),
        "bm25_first": sum(bool(query.about.get("bm25_first")) for query in data.queries.values()),
        "calls": {
            "answered": spent.calls,
            "this_time": report.sent,
            "failed": report.failed,
            "cut_off": report.lost.calls,
        },
        "tokens": {"prompt": spent.prompt_tokens, "completion": spent.completion_tokens, "estimated": spent.estimated},
        "usd": None if spent.unpriced else float(spent.usd),
        "usd_cut_off_at_most": None if report.lost.unpriced else float(report.lost.usd),
        "stopped": report.stopped,
    }


def page(record: Mapping[str, Any], data: DataSet) -> str:
    """mining.md: the counts, the funnel, samples of kept and of rejected questions."""
    parts = [
        "# Mined questions",
        of_counts(record),
        "## The funnel\n\n" + _table(("stage", "questions left"), record["funnel"].items()),
    ]
    if record["left_out"]:
        parts.append(
            "Rejected or left out, by reason:\n\n" + _table(("stage", "questions"), record["left_out"].items())
        )
    if record["unreadable"]:
        named = "\n".join(f"- {_plain(line)}" for line in _named(record["unreadable"]))
        parts.append(f"## Files that were not read ({len(record['unreadable'])})\n\n{named}")
    parts += ["## Samples of what was kept", *_kept_samples(data)]
    parts += ["## Samples of what was rejected", *_rejected_samples(data)]
    return "\n\n".join(parts) + "\n"


def of_counts(record: Mapping[str, Any]) -> str:
    """Questions by side, and what they cost, in a few lines."""
    sides = ", ".join(f"{name} {count}" for name, count in record["questions"].items()) or "none"
    mined = sum(record["kinds"].values())
    lines = [
        f"{record['documents']} documents, {record['passages']} passages; questions: {sides}.",
        f"Keyword search has the passage first for {record['bm25_first']} of {mined} mined questions: these are easy.",
    ]
    calls, tokens = record["calls"], record["tokens"]
    if calls["answered"]:
        unknown = NO_PRICE.format(model=record["config"]["llm"]["model"])
        cost = unknown if record["usd"] is None else f"{record['usd']:.4f} USD"
        lines.append(
            f"{calls['answered']} calls ({calls['this_time']} this time, {calls['failed']} failed), "
            f"{tokens['prompt']:,} tokens of prompts, {tokens['completion']:,} of answers; {cost}."
        )
    return "\n".join(lines)


def of_data_set(record: Mapping[str, Any], folder: Path) -> str:
    """What is printed at the end."""
    funnel = " -> ".join(f"{name} {count}" for name, count in record["funnel"].items())
    lines = [of_counts(record), f"funnel: {funnel}"]
    if record["problems"]:
        lines.append(
            "without a question: " + ", ".join(f"{count} {name}" for name, count in record["problems"].items())
        )
    if record["unreadable"]:
        lines += [f"not read: {len(record['unreadable'])} files", *_named(record["unreadable"])]
    lines += [f"samples: {folder / 'mining.md'}"]
    sides = record["questions"].keys()
    if {"train", "dev"} <= sides and sides & {"unseen", "seen", "real"}:
        so_far = "" if record["stopped"] is None else "  (on what there is so far)"
        lines.append(f"next:    python -m embexp dataset=mined dataset.path={folder}{so_far}")
    elif record["config"]["split"].get("test") == 1 and sides:  # for evaluation alone
        lines.append(f"next:    python -m embexp dataset=mined dataset.path={folder} trainer=none")
    return "\n".join(lines)


def _kept_samples(data: DataSet) -> Iterable[str]:
    kinds: dict[str, list[str]] = {}
    for _, query in sorted(data.queries.items()):  # ids are hashes, so this is a random order
        kind = str(query.about.get("kind", query.side))
        if len(kinds.setdefault(kind, [])) < SAMPLES:
            passage = next(iter(query.answers))
            answer = data.passages[passage]
            where = f"{query.side}, `{passage}`, {_plain(answer.document)}: {_plain(answer.text[:100])} ..."
            kinds[kind].append(f"- {_plain(query.text)}  \n  ({where})")
    return [f"### {kind}\n\n" + "\n".join(lines) for kind, lines in sorted(kinds.items())]


def _rejected_samples(data: DataSet) -> Iterable[str]:
    stages: dict[str, list[str]] = {}
    for each in sorted(data.rejected, key=lambda rejected: rejected.question.id):
        if len(stages.setdefault(each.stage, [])) < SAMPLES:
            stages[each.stage].append(f"- {_plain(each.question.text)}  \n  ({_plain(each.reason)})")
    return [f"### {stage}\n\n" + "\n".join(lines) for stage, lines in stages.items()]


def _table(head: tuple[str, str], rows: Iterable[tuple[str, Any]]) -> str:
    lines = [f"| {_plain(str(name))} | {value} |" for name, value in rows]
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---:|", *lines])


def _named(reasons: Mapping[str, str]) -> list[str]:
    lines = [f"  {name}: {reason}" for name, reason in list(reasons.items())[:UNREADABLE]]
    more = len(reasons) - len(lines)
    return [*lines, *([f"  and {more} more; mining.json has all"] if more > 0 else [])]


def _bracketed(words: Iterable[str]) -> str:
    found = ", ".join(words)
    return f" (dropped: {found})" if found else ""


def _plain(text: str) -> str:
    """On one line, without what would end a table's cell or start markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
