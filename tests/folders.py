"""Folders as runs leave them, made without running anything: results with scores that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

METRICS = ("recall@1", "recall@10", "ndcg@1", "ndcg@10", "mrr@100")
CHOICES = "hydra: {{runtime: {{choices: {{loss: {loss}, model: {model}, dataset: {dataset}}}}}}}"


def per_query(
    base: Sequence[float],
    tuned: Sequence[float],
    *,
    texts: Sequence[str] | None = None,
    metrics: Sequence[str] = METRICS,
) -> pd.DataFrame:
    """Two queries a document, with these values of every metric for base and tuned; BM25 has none right."""
    ids = [f"q{place}" for place in range(len(base))]
    frame: dict[str, Any] = {
        "query_id": ids,
        "query": list(texts) if texts else [f"what is {name}" for name in ids],
        "document": [f"d{place // 2}" for place in range(len(base))],
        "slice": ["unseen"] * len(base),
    }
    for arm, values in (("base", base), ("tuned", tuned), ("bm25", [0.0] * len(base))):
        frame |= {f"{arm}.{metric}": list(values) for metric in metrics}
    return pd.DataFrame(frame)


def run_folder(
    folder: Path,
    *,
    dev: float = 0.5,
    test: float | None = 0.6,
    seed: int = 0,
    names: Mapping[str, str] | None = None,
    status: str | None = "completed",
    learning_rate: float = 2e-5,
    data: str = "a",
    scores: pd.DataFrame | None = None,
    **result: Any,
) -> Path:
    """A run's folder. test: None for a trial. status: None for a run without a result. data: what the fingerprints of
    dev, test and corpus are made of. result: keys of result.json instead of the usual ones."""
    chosen = {"loss": "mnrl", "model": "static", "dataset": "pairs", **(names or {})}
    config = {
        "metric": "recall@10", "seed": seed, "limit": None, "model": {"dimension": 16}, "loss": {"scale": 20.0},
        "dataset": {"path": f"{data}.jsonl"}, "evaluator": {"retrieval": {}},
        "trainer": {"learning_rate": learning_rate}, "debug": False,
    }  # fmt: skip
    hydra = folder / ".hydra"
    hydra.mkdir(parents=True)
    (hydra / "hydra.yaml").write_text(CHOICES.format(**chosen))
    (hydra / "config.yaml").write_text(json.dumps(config))
    lines = [
        {"step": step, "seconds": 1.0, "train/loss": 3.0 - step, "dev/recall@10": 0.4 + step / 10} for step in (0, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if scores is not None:
        (folder / "retrieval").mkdir()
        scores.to_parquet(folder / "retrieval" / "per_query.parquet", index=False)
    if status is not None:
        content = {**_result(config, chosen, dev, test, status, data), **result}
        (folder / "result.json").write_text(json.dumps(content))
    return folder


def _result(
    config: Mapping[str, Any], names: Mapping[str, str], dev: float, test: float | None, status: str, data: str
) -> dict[str, Any]:
    def arm(on_dev: float, on_test: float | None) -> dict[str, Any]:
        sides = {"dev": on_dev, "test": on_test}
        return {side: None if value is None else dict.fromkeys(METRICS, value) for side, value in sides.items()}

    delta = None if test is None else dict.fromkeys(METRICS, _delta(test - 0.4))
    completed = status == "completed"
    splits = ("train", "dev", "test")
    return {
        "status": status, "error": None if completed else f"it {status}, said line one\nand line two",
        "metric": "recall@10", "base": arm(0.3, None if test is None else 0.4),
        "tuned": arm(dev, test) if completed else None,
        "bm25": arm(0.2, None if test is None else 0.25), "delta": delta if completed else None, "slices": {},
        "verdict": "better" if completed and delta else None, "caveat": None, "notes": [], "seed": config["seed"],
        "counts": {
            "queries": {"train": 9, "dev": 20, "test": 40}, "relevant": dict.fromkeys(splits, 40),
            "passages": dict.fromkeys(splits, 100), "slices": {"unseen": 40}, "left_out": {}, "truncated": 0,
            "paraphrases_dropped": 0, "train_rows": 9, "negatives": None, "masked_conflicts": 0, "steps": 100,
            "best_step": 1,
        },
        "seconds": {"training": 7.0}, "versions": {"torch": "2"}, "git": None, "names": dict(names),
        "fingerprint": {
            "dev": f"dev {data}", "test": f"test {data}", "corpus": f"corpus {data}", "train": "train", "dataset": {},
            "model": {"content": "weights"}, "helpers": {},
        },
        "config": dict(config),
    }  # fmt: skip


def _delta(absolute: float) -> dict[str, Any]:
    return {
        "absolute": absolute, "relative": 0.5, "ci_low": absolute - 0.05, "ci_high": absolute + 0.05, "p_value": 0.001,
        "wins": 30, "ties": 5, "losses": 5, "queries": 40, "documents": 20,
    }  # fmt: skip
