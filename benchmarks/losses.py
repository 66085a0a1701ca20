"""Tables that compare losses over seeds, from the folders of multiruns, ranked by dev.

python -m embexp -m loss=mnrl,triplet,cosent seed=0,1,2 hydra.sweep.dir=multirun/losses
python benchmarks/losses.py multirun/losses [more folders]
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def results_in(folders: list[str]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Data set -> loss -> the results of its completed runs."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(file for folder in folders for file in Path(folder).rglob("result.json")):
        result = json.loads(file.read_text())
        choices = OmegaConf.load(file.parent / ".hydra" / "hydra.yaml").hydra.runtime.choices
        if result["status"] == "completed" and result["tuned"]:
            set_by_hand = OmegaConf.load(file.parent / ".hydra" / "overrides.yaml")
            keys = [str(word) for word in set_by_hand if str(word).startswith("loss.")]
            found[f"{choices.dataset}, {choices.model}"][" ".join([choices.loss, *keys])].append(result)
    return found


def spread(values: list[float]) -> str:
    """The mean, and half the range over the seeds."""
    half = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):.3f} ± {half:.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def table(losses: dict[str, list[dict[str, Any]]]) -> str:
    """One row per loss, the best on dev first, after the base model and BM25."""
    some = next(iter(losses.values()))[0]
    metric = some["metric"]
    lines = [
        f"| loss | runs | {metric} on dev | on test | recall@1 on test | verdicts | training, s |",
        "|---|---:|---:|---:|---:|---|---:|",
    ]
    for arm in ("base", "bm25"):
        dev, test = some[arm]["dev"], some[arm]["test"]
        lines.append(f"| *{arm}* | | {dev[metric]:.3f} | {test[metric]:.3f} | {test['recall@1']:.3f} | | |")
    for name, runs in sorted(losses.items(), key=lambda item: -statistics.mean(_dev(item[1], metric))):
        verdicts = [run["verdict"] for run in runs]
        said = ", ".join(f"{verdicts.count(word)} {word}" for word in sorted(set(verdicts)))
        tested = [[run["tuned"]["test"][key] for run in runs] for key in (metric, "recall@1")]
        seconds = statistics.median(run["seconds"]["training"] for run in runs)
        scores = " | ".join(map(spread, [_dev(runs, metric), *tested]))
        lines.append(f"| {name} | {len(runs)} | {scores} | {said} | {seconds:.0f} |")
    return "\n".join(lines)


def _dev(runs: list[dict[str, Any]], metric: str) -> list[float]:
    return [run["tuned"]["dev"][metric] for run in runs]


if __name__ == "__main__":
    for dataset, losses in results_in(sys.argv[1:]).items():
        queries = next(iter(losses.values()))[0]["counts"]["queries"]
        print(f"{dataset} ({queries['train']} train, {queries['dev']} dev, {queries['test']} test queries)\n")
        print(table(losses) + "\n")
