"""What is said of many runs: tables for terminal and page, and the same as CSV and JSON. Called by `compare.cli`."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from embexp.arms.shown import NAMES, change
from embexp.compare.groups import Board, Group, Spread
from embexp.compare.pairs import Pair
from embexp.errors import counted, listed
from embexp.reporting.tables import Block, Listing, Table, markdown, number
from embexp.results.runs import Run

MOST_SHOWN = 20  # groups in the terminal; the page and --csv have all
MOST_KEYS = 5  # columns for what differs
MOST_OTHERS = 10  # runs without a score, and folders that can't be read


def text(found: Sequence[Board], compared: Mapping[str, tuple[list[Pair], list[str]]], others: Sequence[Run]) -> str:
    """All boards as Markdown, and the runs that have no place on one."""
    blocks: list[Block] = []
    for board in found:
        shown, missing = compared[board.title]
        said = [f"\\{line}" if line.startswith("*") else line for line in remarks(board)]  # a star, no list
        blocks += [f"## {board.title}", beside(board), ranking(board, most=MOST_SHOWN), left_out(board), *said]
        blocks += [arms_table(board)]
        blocks += [*by_choice(board), pairs_table(against_first(shown)), pairs_words(shown), *missing]
    if any(pairs for pairs, _ in compared.values()):
        blocks.append("All pairs are in compare.html; --pair RUN_A RUN_B compares any two runs.")
    return markdown([*blocks, others_table(others)])


def ranking(board: Board, *, most: int | None = None) -> Table:
    """A line a group, the best on dev first; test beside."""
    keys = board.varied[:MOST_KEYS]
    names = short_names(keys)
    header = ["#", "loss", "model", *names.values(), "seeds", "dev", "test", "delta on test", "verdict", "s"]
    return Table(header, [_line(group, keys) for group in board.groups[:most]])


def arms_table(board: Board) -> Table:
    """The arms of the first groups' runs that were asked for them; empty where none was."""
    lines = []
    for group in board.groups[:MOST_SHOWN]:
        results = [run.result for run in group.runs if run.result and run.result["arms"]]
        for arm in results[0]["arms"] if results else ():
            those = [result["arms"][arm] for result in results if arm in result["arms"]]
            # None for what an arm has not, as BM25 no metric of vectors cut short
            both = [Spread.of([each[side].get(board.metric) for each in those]) for side in ("dev", "test")]
            means = [number(None if found is None else found.mean) for found in both]
            named = sum(result["arms_verdict"]["cheapest"] == arm for result in results)
            lines.append(
                [str(group.number), NAMES[arm], str(len(those)), *means, _above_base(those, board.metric), str(named)]
            )
    return Table(["#", "arm", "seeds", "dev", "test", "minus base", "arm to run"], lines)


def _above_base(arms: Sequence[Mapping[str, Any]], metric: str) -> str:
    """One arm's difference with its interval, or the mean over seeds with its deviation; a dash for none."""
    if len(arms) == 1 or not all(metric in (arm["delta"] or {}) for arm in arms):
        return change(arms[0]["delta"], metric)
    return spread(Spread.of([arm["delta"][metric]["absolute"] for arm in arms]), signed=True)


def left_out(board: Board) -> str:
    """What the table in the terminal has no room for."""
    more = len(board.groups) - MOST_SHOWN
    keys = len(board.varied) - MOST_KEYS
    parts = [f"{more:,} more are in compare.html and --csv"] if more > 0 else []
    parts += [f"{counted(keys, 'more key')} differ: {listed(board.varied[MOST_KEYS:], most=5)}"] if keys > 0 else []
    return f"{'; '.join(parts)}." if parts else ""


def remarks(board: Board) -> list[str]:
    """What a reader must know of the verdicts: each caveat once, behind the star of a verdict, and notes."""
    caveats = dict.fromkeys(caveat for group in board.groups if (caveat := group.caveat))
    places: dict[str, list[str]] = defaultdict(list)
    for group in board.groups:
        for note in dict.fromkeys(note for run in group.runs for note in (run.result or {})["notes"]):
            places[note].append(f"#{group.number}")
    notes = [f"Note on {listed(numbers, most=8)}: {note}." for note, numbers in places.items()]
    more = [f"{counted(len(notes) - MOST_OTHERS, 'more note')} in --csv."] if len(notes) > MOST_OTHERS else []
    return [*(f"* {caveat}" for caveat in caveats), *notes[:MOST_OTHERS], *more]


def _line(group: Group, keys: Sequence[str]) -> list[str]:
    scored = sum(group.verdicts.values())
    verdicts = ", ".join(name if count == scored else f"{count} {name}" for name, count in group.verdicts.items())
    star = "*" if group.caveat else ""
    return [
        str(group.number), group.names["loss"], group.names["model"], *(value(group.varied[key]) for key in keys),
        str(len(group.runs)), spread(group.dev), spread(group.test), spread(group.delta, signed=True),
        f"{verdicts or '-'}{star}", f"{group.seconds:.0f}",
    ]  # fmt: skip


def beside(board: Board) -> str:
    """What the numbers are over, and what stands beside them."""
    counts = counted(board.queries["dev"], "query", "queries"), counted(board.queries["test"], "query", "queries")
    scores = ", ".join(f"{name} {score:.3f}" for name, score in board.beside.items())
    seeds = " ± is the standard deviation over seeds." if any(len(group.runs) > 1 for group in board.groups) else ""
    left = sum(len(group.repeats) for group in board.groups)
    repeats = f" {counted(left, 'repeat')} of a seed left out: the newest run of each counts." if left else ""
    return f"Ranked by {board.metric} on dev ({counts[0]}); test has {counts[1]}. On dev: {scores}.{seeds}{repeats}"


def by_choice(board: Board) -> list[Table]:
    """For loss and model, where there are several: how many settings had it, the best of them, their mean on dev."""
    tables = []
    for choice in ("loss", "model"):
        having: dict[str, list[Group]] = defaultdict(list)
        for group in board.groups:
            if group.dev is not None:
                having[group.names[choice]].append(group)
        if len(having) > 1:
            lines = [
                [name, str(len(those)), f"#{those[0].number}", spread(those[0].dev), spread(those[0].test),
                 spread(Spread.of([group.dev.mean for group in those if group.dev]))]
                for name, those in having.items()
            ]  # fmt: skip
            tables.append(Table([f"by {choice}", "settings", "best", "its dev", "its test", "mean dev of all"], lines))
    return tables


def pairs_table(compared: Sequence[Pair]) -> Table:
    """A line a pair: the second minus the first on test."""
    lines = [
        [
            f"#{pair.second.number} minus #{pair.first.number}", f"{pair.delta.absolute:+.3f}",
            f"{pair.delta.ci_low:+.3f} to {pair.delta.ci_high:+.3f}", f"{pair.delta.p_value:.4f}",
            f"{pair.p_value:.4f}", f"{pair.delta.wins}/{pair.delta.ties}/{pair.delta.losses}", pair.verdict,
        ]
        for pair in compared
    ]  # fmt: skip
    return Table(["on test", "delta", "95 % interval", "p", "p (Holm)", "wins/ties/losses", "verdict"], lines)


def against_first(compared: Sequence[Pair]) -> list[Pair]:
    """The pairs of the best on dev with each of the others."""
    return [pair for pair in compared if pair.first.number == compared[0].first.number]


def pairs_words(compared: Sequence[Pair]) -> str:
    """What the verdicts of pairs stand for."""
    if not compared:
        return ""
    return (
        "Query by query, over seeds by their mean. Of many pairs some differ by chance, so the verdict takes p "
        f"corrected for {counted(len(compared), 'pair')} (Holm). To choose by test would spend it: dev ranks."
    )


def others_table(others: Sequence[Run], *, most: int | None = MOST_OTHERS) -> Block:
    """The runs that no board has: how they stand, and why."""
    counts = Counter(run.status for run in others)
    lines = [[str(run.folder), run.status, _reason(run)] for run in others[:most]]
    more = len(others) - len(lines)
    if more > 0:
        lines.append([f"{more:,} more", ", ".join(f"{count} {status}" for status, count in counts.items()), ""])
    return Table(["not ranked", "status", "why"], lines)


def _reason(run: Run) -> str:
    if run.result is None:
        return "no result.json: it is running, or was ended from outside"
    if run.status == "completed":
        return "it was not scored by this metric"
    return str(run.result["error"]).strip().splitlines()[0][:90]


def unread_listing(unread: Sequence[str]) -> Listing:
    """The folders that are broken, or no runs."""
    shown = {str(place): sentence for place, sentence in enumerate(unread[:MOST_OTHERS], start=1)}
    more = {"and": f"{len(unread) - MOST_OTHERS} more"} if len(unread) > MOST_OTHERS else {}
    return Listing("Left out:", shown | more)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Key -> its last word, or all of it where two end alike."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    return {key: key if last[key.rpartition(".")[2]] > 1 else key.rpartition(".")[2] for key in keys}


def value(found: Any) -> str:
    """A value of a config, numbers with few digits."""
    if isinstance(found, float):
        return f"{found:.3g}"
    return "null" if found is None else str(found)


def spread(found: Spread | None, *, signed: bool = False) -> str:
    """mean ± deviation; a dash where there is nothing."""
    if found is None:
        return "-"
    mean = f"{found.mean:+.3f}" if signed else number(found.mean)
    return mean if found.deviation is None else f"{mean} ± {found.deviation:.3f}"


def as_rows(found: Sequence[Board], others: Sequence[Run]) -> list[dict[str, Any]]:
    """A record a run: its place, scores, delta and what differs; those without a place last."""
    rows = []
    for board in found:
        for group in board.groups:
            rows += [_record(run, board.metric) | {"place": group.number, "data": board.title} | dict(group.varied)
                     for run in group.runs]  # fmt: skip
            rows += [_record(run, board.metric) | {"place": None, "data": board.title} for run in group.repeats]
    return rows + [_record(run, run.config["metric"]) | {"place": None, "data": None} for run in others]


def _record(run: Run, metric: str) -> dict[str, Any]:
    arms = (run.result or {}).get("arms") or {}
    delta = ((run.result or {}).get("delta") or {}).get(metric) or {}
    return {
        "folder": str(run.folder),
        "status": run.status,
        **run.names,
        "seed": run.config["seed"],
        "metric": metric,
        "dev": run.score("dev", metric),
        "test": run.score("test", metric),
        "base_dev": run.score("dev", metric, arm="base"),
        "base_test": run.score("test", metric, arm="base"),
        "bm25_dev": run.score("dev", metric, arm="bm25"),
        "bm25_test": run.score("test", metric, arm="bm25"),
        **{
            f"{name}_{side}": arm[side].get(metric)
            for name, arm in arms.items()
            if name not in ("base", "tuned", "bm25")
            for side in ("dev", "test")
        },
        **({"arm_to_run": run.result["arms_verdict"]["cheapest"]} if run.result and arms else {}),
        **{f"delta_{key}": delta.get(key) for key in ("absolute", "ci_low", "ci_high", "p_value")},
        "verdict": (run.result or {}).get("verdict"),
        "caveat": (run.result or {}).get("caveat"),
        "notes": "; ".join((run.result or {}).get("notes") or []) or None,
        "seconds": round(sum((run.result or {}).get("seconds", {}).values()), 1),
    }


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The records with every key that any of them has."""
    file = io.StringIO()
    keys = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(file, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def as_json(
    rows: Sequence[Mapping[str, Any]], compared: Mapping[str, tuple[list[Pair], list[str]]], unread: Sequence[str]
) -> str:
    """The records, the pairs by the places of their groups, and what could not be read."""
    pairs = [
        {"data": name, "first": pair.first.number, "second": pair.second.number, "p_holm": pair.p_value,
         **vars(pair.delta)}
        for name, (those, _) in compared.items() for pair in those
    ]  # fmt: skip
    return json.dumps({"runs": list(rows), "pairs": pairs, "unread": list(unread)}, indent=1, default=str)
