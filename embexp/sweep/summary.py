"""What a person reads of a sweep: a line a trial, the ranked table, the confirmation, what mattered, figures.

Reads studies and nothing else, so that any machine that reaches the study can show it. Called by `sweep.sweeper`.
"""

from __future__ import annotations

import statistics
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from embexp import libraries
from embexp.durable import write_whole
from embexp.errors import counted
from embexp.reporting.tables import aligned, number
from embexp.sweep.trial import MEASURED, REASON, RESULT

STATUS = {TrialState.COMPLETE: "completed", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
FEWEST_FOR_IMPORTANCE = 4  # completed trials


def best_of(study: optuna.Study) -> FrozenTrial | None:
    """The completed trial that is best on dev, the first of equals; by the first of several objectives."""
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1
    return min(ended, key=lambda trial: (sign * trial.values[0], trial.number), default=None)


def reasons(trials: Sequence[FrozenTrial]) -> str:
    """Why trials failed, the most frequent first, a line each."""
    found = Counter(_reason(trial) for trial in trials if trial.state == TrialState.FAIL)
    return "\n".join(f"  - {counted(count, 'trial')}: {reason}" for reason, count in found.most_common(5))


def line(trial: FrozenTrial, label: str, best: FrozenTrial | None) -> str:
    """What became of a trial, in a line; best: of those so far."""
    said = f"#{label} {STATUS[trial.state]}"
    if trial.state == TrialState.FAIL:
        return f"{said}: {_reason(trial)}"
    so_far = f", best {_values(best)} (#{best.number})" if best is not None else ""
    if trial.state == TrialState.PRUNED:
        return f"{said} at look {trial.last_step} ({_values(trial)} there) after {_seconds(trial)} s{so_far}"
    return f"{said}: {_values(trial)} on dev in {_seconds(trial)} s{so_far}"


@dataclass(frozen=True)
class Summary:
    """study: with its trials ended. objectives: their names. metric: what the objective `metric` stands for.
    confirmation: the study of the winner's further seeds. command: trains the winner."""

    study: optuna.Study
    objectives: tuple[str, ...]
    metric: str
    confirmation: optuna.Study | None
    command: str
    folder: Path

    def text(self) -> str:
        """All of it, as Markdown."""
        parts = [self._front() if len(self.objectives) > 1 else "", self._table(), self._beside(), self._confirmed()]
        if importance := self._importance():
            completed = counted(len(self._ended(TrialState.COMPLETE)), "completed trial")
            parts.append(f"What mattered (PED-ANOVA, from {completed}): {importance}.")
        parts.append(f"To train the best again:\n\n    {self.command}")
        return "\n\n".join(part for part in parts if part)

    def write(self) -> None:
        """Write summary.md and figures/ into the sweep's folder."""
        figures = [f"![{path.stem}](figures/{path.name})" for path in self._figures()]
        title = f"# Sweep {self.study.study_name}"
        write_whole(self.folder / "summary.md", "\n\n".join([title, self.text(), *figures]) + "\n")

    def _ended(self, state: TrialState) -> list[FrozenTrial]:
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state == state]

    def _table(self) -> str:
        sign = -1 if self.study.directions[0] == StudyDirection.MAXIMIZE else 1
        completed = sorted(self._ended(TrialState.COMPLETE), key=lambda trial: (sign * trial.values[0], trial.number))
        others = [*self._ended(TrialState.PRUNED), *self._ended(TrialState.FAIL)]
        rows = [
            [
                str(trial.number),
                _params(trial),
                *(_bracketed(_score(value), trial) for value in (trial.values or [])),
                *("-" for _ in self.objectives[len(trial.values or []) :]),
                _seconds(trial),
                f"failed: {_reason(trial)[:80]}" if trial.state == TrialState.FAIL else STATUS[trial.state],
            ]
            for trial in [*completed, *others]
        ]
        table = aligned(["trial", "chosen", *self._headings(), "s", "status"], rows)
        if not self._ended(TrialState.PRUNED):
            return table
        return f"{table}\n\nIn brackets: at a pruned trial's last look, where fewer passages are searched."

    def _beside(self) -> str:
        """What the base model and BM25 have on dev, by the best's metric, and whether any trial was better."""
        best = best_of(self.study)
        result = best.user_attrs.get(RESULT, {}) if best is not None else {}
        if "dev" not in result:
            return ""
        metric, base, bm25 = result["metric"], result["base"], result["bm25"]
        keyword = f", BM25 {number(bm25)}" if bm25 is not None else ""
        lines = [f"Beside it, {metric} on dev: base {number(base)}{keyword}."]
        if result["dev"] <= base:
            lines.append(
                "**No trial was better than the base model on dev.** Search elsewhere, or keep the base model."
            )
        lines += [f"Note: {note}." for note in result["notes"]]
        return "\n\n".join(lines)

    def _headings(self) -> list[str]:
        special = set(MEASURED) - {"metric"}
        return [name if name in special else f"{name} on dev" for name in self._names()]

    def _names(self) -> list[str]:
        return [self.metric if name == "metric" else name for name in self.objectives]

    def _front(self) -> str:
        rows = [
            [str(trial.number), *(_score(value) for value in trial.values), _params(trial)]
            for trial in sorted(self.study.best_trials, key=lambda trial: trial.values)
        ]
        table = aligned(["trial", *self._names(), "chosen"], rows)
        return f"No other trial beats these in every objective (the Pareto front):\n\n{table}"

    def _confirmed(self) -> str:
        if self.confirmation is None:
            return ""
        best = best_of(self.study)
        assert best is not None
        rows, dev = [], []
        for trial in self.confirmation.get_trials(deepcopy=False):
            result = trial.user_attrs.get(RESULT, {})
            if trial.state != TrialState.COMPLETE or "test" not in result:
                rows.append([str(trial.params["seed"]), "-", "-", "-", f"failed: {_reason(trial)[:80]}"])
                continue
            test = result["test"]
            dev.append(result["dev"])
            interval = f"{test['absolute']:+.3f} ({test['ci_low']:+.3f} to {test['ci_high']:+.3f})"
            shown = [number(result["dev"]), f"{number(test['base'])} -> {number(test['tuned'])}", interval]
            rows.append([str(trial.params["seed"]), *shown, result["verdict"]])
        table = aligned(["seed", "on dev", "on test", "delta (95 % interval)", "verdict"], rows)
        by = f" by {self._names()[0]}" if len(self.objectives) > 1 else ""
        metric = best.user_attrs[RESULT]["metric"]
        text = f"The best{by}, #{best.number}, trained again with other seeds; {metric}:\n\n{table}"
        if dev:
            spread = f" ± {(max(dev) - min(dev)) / 2:.3f} (half the range)" if len(dev) > 1 else ""
            own = best.user_attrs[RESULT]["dev"]
            text += f"\n\nOn dev {statistics.mean(dev):.3f}{spread} over these seeds; the trial itself had {own:.3f}."
        return text

    def _first_as_loss(self, trial: FrozenTrial) -> float:
        """What importance is about: PED-ANOVA takes low values of a target for the good ones."""
        value = float(trial.values[0])
        return -value if self.study.directions[0] == StudyDirection.MAXIMIZE else value

    def _importance(self) -> str:
        if len(self._ended(TrialState.COMPLETE)) < FEWEST_FOR_IMPORTANCE:
            return ""
        if len({trial.values[0] for trial in self._ended(TrialState.COMPLETE)}) == 1:
            return "nothing, all scored the same"
        target = None if len(self.objectives) == 1 else self._first_as_loss
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is experimental
            try:
                found = optuna.importance.get_param_importances(self.study, target=target)
            except (ValueError, RuntimeError):  # all trials equal
                return ""
        return ", ".join(f"{name} {share:.0%}" for name, share in found.items())

    def _figures(self) -> list[Path]:
        libraries.quiet("matplotlib")
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
        from optuna.visualization import matplotlib as plots

        folder = self.folder / "figures"
        folder.mkdir(exist_ok=True)
        target: dict[str, Any] = {}
        losses: dict[str, Any] = {}
        if len(self.objectives) > 1:
            target = {"target": _first_value, "target_name": self._names()[0]}
            losses = {"target": self._first_as_loss, "target_name": self._names()[0]}
        wanted: dict[str, Any] = {"history": plots.plot_optimization_history, "slices": plots.plot_slice}
        if "%" in self._importance():
            wanted["importance"] = plots.plot_param_importances
        made = []
        for name, plot in wanted.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that they are experimental
                axes = plot(self.study, **(losses if name == "importance" else target))
            figure = axes.figure if hasattr(axes, "figure") else axes.flat[0].figure
            figure.savefig(folder / f"{name}.svg", bbox_inches="tight")
            plt.close(figure)
            made.append(folder / f"{name}.svg")
        return made


def _bracketed(text: str, trial: FrozenTrial) -> str:
    return f"({text})" if trial.state == TrialState.PRUNED else text


def short(text: str) -> str:
    """An override's value as it is shown: a number with few digits, anything else as it is."""
    try:
        return f"{float(text):.3g}" if "." in text or "e" in text else text
    except ValueError:
        return text


def _first_value(trial: FrozenTrial) -> float:
    return float(trial.values[0])


def _params(trial: FrozenTrial) -> str:
    return " ".join(
        f"{_short(name)}={_shown(value, trial.distributions[name])}" for name, value in sorted(trial.params.items())
    )


def _short(name: str) -> str:
    return name.partition(" if ")[0].rpartition(".")[2]


def _shown(value: Any, distribution: Any) -> str:
    is_number = isinstance(value, float) and not isinstance(distribution, CategoricalDistribution)
    return f"{value:.3g}" if is_number else str(value)


def _values(trial: FrozenTrial) -> str:
    return ", ".join(_score(value) for value in (trial.values or [])) or "-"


def _score(value: float) -> str:
    """With three decimals, but whole numbers such as dimensions as they are."""
    return f"{value:.0f}" if value > 1 and value == int(value) else number(value)


def _seconds(trial: FrozenTrial) -> str:
    if trial.datetime_complete is None or trial.datetime_start is None:
        return "-"
    return f"{(trial.datetime_complete - trial.datetime_start).total_seconds():.0f}"


def _reason(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get(REASON, "no reason is known")).splitlines()[0]
