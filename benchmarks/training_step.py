"""Time of one training step on a CPU by attention implementation and dropout, in turn, several rounds, medians.

Usage: python benchmarks/training_step.py [--rounds N] [--quick]
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import Clock, apart, conf, in_turn, peak_mib, ratios, spread, table

SETTINGS = {
    "sdpa, dropout 0.1": {"attention": "sdpa", "dropout": None},
    "eager, dropout 0.1": {"attention": "eager", "dropout": None},
    "sdpa, dropout 0": {"attention": "sdpa", "dropout": 0.0},
    "eager, dropout 0": {"attention": "eager", "dropout": 0.0},
}
WORDS = (60, 120, 240)  # the passages' length in three steps


def measure(attention: str, dropout: float | None, rows: int) -> dict[str, float]:
    """Seconds of three steps (forward, backward, optimiser) after a warm-up, and the process's peak memory in MiB."""
    import torch
    from sentence_transformers.base.losses.merged_forward import column_merging_disabled
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from embexp.config.components import build

    node = {**conf("model", "minilm"), "attention": attention, "dropout": dropout}
    embedding_model = build(node, allowed=[], without=["kind"]).load([])
    model = embedding_model.model.train()
    loss = MultipleNegativesRankingLoss(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
    vocabulary = ["return", "the", "value", "of", "a", "list", "when", "called", "with", "file", "object", "string"]

    def step(words: int) -> None:
        texts = [" ".join(vocabulary[(row * 7 + i * i) % len(vocabulary)] for i in range(words)) for row in range(rows)]
        features = [model.preprocess([text[:60] for text in texts]), model.preprocess(texts)]
        with torch.autocast("cpu", torch.bfloat16, enabled=embedding_model.bfloat16), column_merging_disabled():
            value = loss(features, None)
        value.backward()
        optimiser.step()
        optimiser.zero_grad()

    step(WORDS[0])
    clock = Clock()
    with clock:
        for words in WORDS:
            step(words)
    return {"seconds": clock.seconds, "mib": peak_mib()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two rows, one round")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(**options.one)))
        return
    rows, rounds = (2, 1) if options.quick else (64, options.rounds)
    arms = {
        name: partial(apart, __file__, "--one", json.dumps({**setting, "rows": rows}))
        for name, setting in SETTINGS.items()
    }
    results = in_turn(arms, rounds=rounds)
    first = [run["seconds"] for run in results["sdpa, dropout 0.1"]]
    lines = []
    for name, runs in results.items():
        seconds = [run["seconds"] for run in runs]
        lines.append([name, spread(seconds, 1), ratios(seconds, first), max(run["mib"] for run in runs)])
    print(f"Seconds of three steps of {rows} rows, passages of {', '.join(map(str, WORDS))} words.\n")
    print(table(["setting", "seconds", "share of the first, in pairs", "peak MiB"], lines))


if __name__ == "__main__":
    main()
