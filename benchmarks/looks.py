"""What looks at dev cost of a training, and how well they agree with the whole of dev.

Usage: python benchmarks/looks.py [--model static|minilm] [--rates RATE ...] [--quick]

A run for each learning rate, as configured by default, and one more without any look. A look's score at the step that
was kept stands beside the score of the tuned model on all of dev over the whole corpus.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import REPOSITORY, machine, table

METRIC = "recall@10"
RATES = {"static": [0.001, 0.003, 0.01, 0.02, 0.05, 0.1], "minilm": [1e-5, 5e-5, 2e-4]}


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    """result.json of a run in the folder, and the dev score of the look at the step that was kept."""
    call = [sys.executable, "-m", "embexp", "logger=none", f"hydra.run.dir={folder}", *overrides]
    ended = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{' '.join(call)} failed:\n{ended.stderr[-4000:]}")
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    looks = {line["step"]: line[f"dev/{METRIC}"] for line in lines if f"dev/{METRIC}" in line and line["step"]}
    print(f"{' '.join(overrides)}: done", file=sys.stderr, flush=True)
    return {**result, "looks": looks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="static", choices=RATES)
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates")
    parser.add_argument("--overrides", nargs="*", default=[], help="of the runs, such as experiment=pubmedqa")
    parser.add_argument("--quick", action="store_true", help="a small model on a small package, two rates")
    options = parser.parse_args()
    rates = options.rates or RATES[options.model]
    if options.quick:
        rates, options.overrides = [0.01, 0.1], ["model.dimension=16", "dataset.packages=[json,logging,email]"]
    from scipy.stats import spearmanr

    rows, small, whole = [], [], []
    with tempfile.TemporaryDirectory() as name:
        for rate in rates:
            settings = [f"model={options.model}", f"trainer.learning_rate={rate}", *options.overrides]
            with_looks = run(Path(name, f"{rate}"), *settings)
            without = run(Path(name, f"{rate} without"), *settings, "trainer.eval_strategy=no")
            after = [one["seconds"]["training"] + one["seconds"]["tuned"] for one in (with_looks, without)]
            best = with_looks["counts"]["best_step"]
            small.append(with_looks["looks"][best])
            whole.append(with_looks["tuned"]["dev"][METRIC])
            share = (after[0] - after[1]) / without["seconds"]["training"]
            rows.append([rate, len(with_looks["looks"]), f"{small[-1]:.3f}", f"{whole[-1]:.3f}", f"{share:+.1%}"])
    print(
        f"{machine()}\n\n{options.model}: rank correlation of the two measures {spearmanr(small, whole).statistic:.2f} "
    )
    print(f"over {len(rates)} learning rates; the share is of training and tuned evaluation with looks and without.\n")
    head = ["learning rate", "looks", f"{METRIC} at the look", f"{METRIC} on all of dev", "share of training's time"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
