"""Runs that may be ranked against each other, those that differ by their seed alone taken together.

Called by `compare.cli`. Ranks by dev, as everything here that chooses; test stands beside.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from embexp.reporting.report import judged_queries
from embexp.results.runs import Run, leaves

# what does not change a score, or is what a group is over
APART = {
    "seed",
    "debug",
    "cache",
    "cache_size_gb",
    "report_texts",
    "keep_checkpoints",
    "logger",
    "sweep",
    "allowed_packages",
}
TRAIN, SHORT = "train data", 8  # the column for other training data, and the characters of its digest that it shows
BY_NAME = {"loss", "model", "dataset"}  # their keys follow from the choice, unless they differ within it


@dataclass(frozen=True)
class Spread:
    """A mean over runs and their standard deviation, which a single run has none of."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """Over those that there are; None where there are none."""
        found = [value for value in values if value is not None]
        if not found:
            return None
        return cls(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None)


@dataclass(frozen=True)
class Group:
    """Completed runs that differ by seed alone, one for each seed. repeats: older runs of the same seeds, which count
    for nothing. varied: the keys, by their full names, in which groups of the board differ. delta: tuned minus base on
    test. verdicts: how many of those scored on test came to each."""

    number: int
    runs: tuple[Run, ...]
    repeats: tuple[Run, ...]
    varied: Mapping[str, Any]
    dev: Spread | None
    test: Spread | None
    delta: Spread | None
    verdicts: Mapping[str, int]
    seconds: float

    @property
    def names(self) -> Mapping[str, str]:
        """Of loss, model and data set."""
        return {**self.runs[0].names, "loss": self.runs[0].names["loss"] if self.tuned else "(not trained)"}

    @property
    def caveat(self) -> str | None:
        """What is to be said beside each verdict: of a data set that leaks by design."""
        return next((caveat for run in self.runs if (caveat := (run.result or {})["caveat"])), None)

    @property
    def tuned(self) -> bool:
        """Whether there is a tuned model."""
        return bool(self.runs[0].result and self.runs[0].result["tuned"])


@dataclass(frozen=True)
class Board:
    """Groups that were measured by one metric on the same dev and test, the best on dev first.

    number: tells boards of one title apart, else 0. queries: of dev and test that the scores are over.
    beside: what BM25 and each base model have on dev.
    """

    number: int
    metric: str
    datasets: tuple[str, ...]
    queries: Mapping[str, int]
    beside: Mapping[str, float]
    groups: tuple[Group, ...]

    @property
    def title(self) -> str:
        """The data set, by a number where another board has one of the same name, and the metric."""
        return f"{self.data}: {self.metric}"

    @property
    def data(self) -> str:
        """The data set, and a number where another board has one of the same name."""
        return ", ".join(self.datasets) + (f" ({self.number})" if self.number else "")

    @property
    def varied(self) -> list[str]:
        """The keys in which the groups differ."""
        return list(self.groups[0].varied)


def boards(found: Sequence[Run], *, metric: str | None) -> list[Board]:
    """The completed runs as boards, the largest first. metric: instead of each run's own."""
    alike: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in found:
        if run.status == "completed":
            own = metric or run.config["metric"]
            if run.score("dev", own) is not None or run.score("test", own) is not None:
                fingerprint = (run.result or {})["fingerprint"]
                alike[own, fingerprint["dev"], fingerprint["test"]].append(run)
    made = sorted((_board(key[0], those) for key, those in alike.items()), key=lambda board: -len(board.groups))
    titles = Counter(board.title for board in made)
    seen: Counter[str] = Counter()
    for place, board in enumerate(made):
        if titles[board.title] > 1:  # such as the same data set with another limit
            seen[board.title] += 1
            made[place] = replace(board, number=seen[board.title])
    return made


def _board(metric: str, found: Sequence[Run]) -> Board:
    same: dict[str, list[Run]] = defaultdict(list)
    for run in found:
        same[_identity(run)].append(run)
    varied = _varied([those[0] for those in same.values()])
    flat = {name: _flat(those[0]) for name, those in same.items()}
    groups = [_group(those, {key: flat[name].get(key) for key in varied}, metric) for name, those in same.items()]

    def order(group: Group) -> tuple[float, str]:
        return -(group.dev.mean if group.dev else float("-inf")), str(group.runs[0].folder)

    ranked = sorted(groups, key=order)
    counts = (found[0].result or {})["counts"]
    scores = [("BM25", "bm25", run) for run in found] + [(f"base {run.names['model']}", "base", run) for run in found]
    beside = {name: score for name, arm, run in scores if (score := run.score("dev", metric, arm=arm)) is not None}
    return Board(
        number=0,
        metric=metric,
        datasets=tuple(sorted({run.names["dataset"] for run in found})),
        queries={"dev": counts["queries"]["dev"], "test": judged_queries(counts)},
        beside=beside,
        groups=tuple(replace(group, number=place) for place, group in enumerate(ranked, start=1)),
    )


def _group(those: Sequence[Run], varied: Mapping[str, Any], metric: str) -> Group:
    found = _newest(those)
    deltas = [((run.result or {})["delta"] or {}).get(metric) for run in found]
    verdicts = Counter(_verdict(delta) for delta in deltas if delta)
    return Group(
        number=0,
        runs=tuple(found),
        repeats=tuple(run for run in those if all(run is not kept for kept in found)),
        varied=varied,
        dev=Spread.of([run.score("dev", metric) for run in found]),
        test=Spread.of([run.score("test", metric) for run in found]),
        delta=Spread.of([delta["absolute"] for delta in deltas if delta]),
        verdicts=dict(verdicts),
        seconds=statistics.fmean(sum((run.result or {})["seconds"].values()) for run in found),
    )


def _newest(found: Sequence[Run]) -> list[Run]:
    """One run for each seed, by seed: a repeat is no other draw, so it tells nothing of the spread over seeds.

    A run that was scored on test goes before a trial of a sweep, which was not; then the one that ended last.
    """

    def order(run: Run) -> tuple[int, bool, int, str]:
        scored = bool((run.result or {})["base"]["test"])
        return run.config["seed"], scored, (run.folder / "result.json").stat().st_mtime_ns, str(run.folder)

    return list({run.config["seed"]: run for run in sorted(found, key=order)}.values())


def _verdict(delta: Mapping[str, Any]) -> str:
    from embexp.evaluation.significance import Delta  # numpy and scipy: not for a thousand trials, which have none

    return Delta(**delta).verdict


def _identity(run: Run) -> str:
    """The same for runs that differ by their seed alone: config, what was trained on, base weights, helping models."""
    fingerprint = (run.result or {})["fingerprint"]
    config = {key: value for key, value in run.config.items() if key not in APART}
    content = [fingerprint["train"], fingerprint.get("model", {}).get("content"), fingerprint.get("helpers")]
    return json.dumps([dict(run.names), config, content], sort_keys=True, default=str)


def _flat(run: Run) -> dict[str, Any]:
    """Dotted key -> value of a run's config, and what its training data were."""
    return {**dict(leaves(run.config)), TRAIN: (run.result or {})["fingerprint"]["train"][:SHORT]}


def _varied(found: Sequence[Run]) -> list[str]:
    """The config's keys in which the runs differ, but for those that follow from the names of loss, model, data set."""
    values: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for run in found:
        for key, value in _flat(run).items():
            top = key.partition(".")[0]
            if top not in APART:
                values[key][run.names[top] if top in BY_NAME else ""].add(json.dumps(value, default=str))
    absent = {key for key in values if key.partition(".")[0] not in BY_NAME}
    counts = Counter(key for run in found for key in _flat(run) if key in absent)
    return [
        key
        for key, by_choice in values.items()
        if any(len(each) > 1 for each in by_choice.values()) or (key in absent and counts[key] < len(found))
    ]
