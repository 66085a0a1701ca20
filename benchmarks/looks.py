"""What looks at dev cost of a training, and how well they agree with the whole of dev over the whole corpus.

Usage: python benchmarks/looks.py [--models static minilm] [--overrides KEY=VALUE ...] [--checks N] [--quick]

One run for each learning rate, as configured by default. Its looks are timed inside the training that they belong to,
on the wall's and on the processor's clock. At further steps in between the run stands still: the look's measure and a
full one, which a look would be without the bound, are taken of the same weights. Both clocks leave that out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import Clock, apart, run_of, spread, table

METRIC = "recall@10"
RATES = {"static": [0.001, 0.003, 0.01, 0.02, 0.05, 0.1], "minilm": [5e-5]}
# MiniLM's full measures take minutes on two cores: shorter texts make both the training and the looks shorter
SHORT = {"static": [], "minilm": ["model.max_seq_length=64", "limit=640"]}
QUICK = ["model.dimension=16", "dataset.packages=[json,logging,email]"]


class Watched:
    """A run whose training is timed, with the looks in it, and stopped now and then to compare two measures of dev."""

    def __init__(self, checks: int) -> None:
        self._checks = checks
        self.training, self.looks, self.small, self.whole = Clock(), Clock(), Clock(), Clock()
        self.looked: list[tuple[float, float]] = []  # seconds of each look, by the wall and by the processor
        self.scores: list[tuple[int, float, float]] = []  # step, the look's measure, the full one
        self._trains = False

    def run(self, words: list[str]) -> dict[str, Any]:
        """The result of what `python -m embexp words` runs."""
        from sentence_transformers import SentenceTransformerTrainer

        from embexp.training import looks
        from embexp.training.looks import Plan

        with (
            tempfile.TemporaryDirectory() as folder,
            patch.object(looks, "planned", partial(self._planned, looks.planned)),
            patch.object(Plan, "score", self._timed(Plan.score)),
            patch.object(SentenceTransformerTrainer, "train", self._trained(SentenceTransformerTrainer.train)),
        ):
            return run_of(words, Path(folder))

    def _planned(self, usual: Any, evaluators: Any, base: Any, dev: Any, **options: Any) -> Any:
        from embexp.training.looks import Plan

        self._plan = usual(evaluators, base, dev, **options)
        self._full = Plan([(evaluator, dev) for evaluator in evaluators], options["negatives"])
        self._model = options["model"]
        return self._plan

    def _timed(self, usual: Any) -> Any:
        def score(plan: Any, arm: Any) -> dict[str, float]:
            if not self._trains:  # before the first step, on the base model's embeddings; or a comparison of ours
                return usual(plan, arm)
            before = self.looks.seconds, self.looks.cpu_seconds
            with self.looks:
                found: dict[str, float] = usual(plan, arm)
            self.looked.append((self.looks.seconds - before[0], self.looks.cpu_seconds - before[1]))
            return found

        return score

    def _trained(self, usual: Any) -> Any:
        from transformers import TrainerCallback

        checks, compare = self._checks, self._compare

        class Stops(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> None:
                if state.global_step in {round(state.max_steps * (1 + each) / checks) for each in range(checks)}:
                    compare(state.global_step)

        def train(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            trainer.add_callback(Stops())
            self._trains = True
            try:
                with self.training:
                    return usual(trainer, *args, **kwargs)
            finally:
                self._trains = False

        return train

    def _compare(self, step: int) -> None:
        """With an encoder each: neither gains from what the other has embedded."""
        from embexp.encoding.encoder import Encoder
        from embexp.evaluation.search import Dense

        self._trains = False
        with self.small:
            small = self._plan.score(Dense(Encoder(self._model)))
        with self.whole:
            whole = self._full.score(Dense(Encoder(self._model)))
        self._trains = True
        self.scores.append((step, small[METRIC], whole[METRIC]))


def one(words: list[str], checks: int) -> dict[str, Any]:
    """A run's times, in seconds by the wall and by the processor, and its pairs of scores."""
    watched = Watched(checks)
    result = watched.run(words)

    def training(kind: str) -> float:
        whole, *parts = (getattr(clock, kind) for clock in (watched.training, watched.small, watched.whole))
        return whole - sum(parts) - getattr(watched.looks, kind)

    full = watched.whole.cpu_seconds / watched.whole.times
    return {
        "looks": [dict(zip(("seconds", "cpu_seconds"), each, strict=True)) for each in watched.looked],
        "training": {kind: training(kind) for kind in ("seconds", "cpu_seconds")},
        "full": full,
        "scores": watched.scores,
        "queries": result["counts"]["queries"]["dev"],
    }


def line(name: str, found: dict[str, Any]) -> list[Any]:
    """A row of the table."""
    looks, training = found["looks"], found["training"]

    def shares(part: list[dict[str, float]]) -> str:
        both = [sum(each[kind] for each in part) / training[kind] for kind in ("seconds", "cpu_seconds")]
        return f"{both[0]:.1%} ({both[1]:.1%})"

    full = len(looks) * found["full"] / training["cpu_seconds"]
    more = spread((small - whole for _, small, whole in found["scores"]), 3)
    return [name, len(looks), f"{training['seconds']:.1f}", shares(looks[:-1]), shares(looks), f"{full:.0%}", more]


def agreement(runs: list[dict[str, Any]]) -> str:
    """How the two measures rank all compared weights of a model's runs, and the last of each run."""
    from scipy.stats import spearmanr

    pairs = [(small, whole) for run in runs for _, small, whole in run["scores"]]
    said = f"over {len(pairs)} sets of weights the rank correlation is {rank(spearmanr, pairs)}"
    if len(runs) > 1:
        last = [(small, whole) for _, small, whole in (run["scores"][-1] for run in runs)]
        said += f"; over the {len(runs)} learning rates at the last comparison the rank correlation is "
        said += rank(spearmanr, last)
    return said


def rank(correlation: Any, pairs: list[tuple[float, float]]) -> str:
    return f"{correlation(*zip(*pairs, strict=True)).statistic:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(RATES), choices=RATES)
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates, instead of each model's own")
    parser.add_argument("--overrides", nargs="*", default=[], help="of the runs, such as experiment=pubmedqa")
    parser.add_argument("--checks", type=int, default=4, help="comparisons in a run")
    parser.add_argument("--quick", action="store_true", help="a small model on a small package, two rates")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.checks)))
        return
    if options.quick:
        options.models, options.rates, options.overrides = ["static"], [0.01, 0.1], QUICK
    with tempfile.TemporaryDirectory() as cache:
        print(report(options, [*options.overrides, f"cache={cache}"]))


def report(options: argparse.Namespace, overrides: list[str]) -> str:
    """Run everything; the table and what is needed to read it."""
    rows, said = [], []
    for model in options.models:
        runs = []
        for rate in options.rates or RATES[model]:
            words = [f"model={model}", f"trainer.learning_rate={rate}", *SHORT[model], *overrides]
            call = ["--checks", str(options.checks), "--one", *words]
            runs.append(one(words, options.checks) if options.quick else apart(__file__, *call))
            rows.append(line(f"{model}, {rate:g}", runs[-1]))
            print(f"{rows[-1]}, {time.ctime()}", file=sys.stderr, flush=True)
        how = ", ".join(SHORT[model]) or "as configured"
        said.append(f"- {model} ({how}; {runs[0]['queries']} dev queries): {agreement(runs)}.")
    head = ["model, learning rate", "looks", "training s", "looks but the last, of its time (CPU time)", "all looks"]
    head += ["were each of all of dev (CPU time)", f"{METRIC} of a look minus that of all of dev"]
    return (
        "Shares are of the training's time without looks. The last look is left out once: where the last step is the "
        "best one, the tuned model's evaluation takes its embeddings over. Both measures are compared at "
        f"{options.checks} steps of each run; all of dev is searched in the whole corpus.\n\n"
        "{}\n\n{}".format("\n".join(said), table(head, rows))
    )


if __name__ == "__main__":
    main()
