"""One process with all cores against several with a share each: the same run, in turn, rows per second and losses.

    python benchmarks/processes.py                          # MiniLM on five packages' docstrings, minutes
    python benchmarks/processes.py --data FOLDER            # PubMedQA's labelled questions
    python benchmarks/processes.py --quick --model FOLDER   # seconds, with a small model

On one machine's cores several processes can win only what threads lose inside a process; with a GPU each they win more.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import apart, in_turn, ratios, run_of, spread, table

WARM = 2  # steps before the clock runs


def one(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train with one number of processes."""
    packages = "json,logging,email" if arguments.quick else "asyncio,email,http,unittest,logging"
    data = ["dataset=docstrings", f"dataset.packages=[{packages}]"]
    if arguments.data:
        data = ["dataset=pubmedqa", f"dataset.path={arguments.data}", "dataset.name=pqa_labeled"]
    model = ["model=local", f"model.path={arguments.model}"] if arguments.model else ["model=minilm"]
    # without dropout, whose draws are each process's own, so that the losses can be compared
    chosen = ["model.dropout=0", f"trainer.processes={arguments.one}", f"+trainer.max_steps={arguments.steps}"]
    few = ["limit=64"] if arguments.quick else ["limit=1000"]
    always = [
        *few,
        "trainer.eval_strategy=no",
        "trainer.logging_steps=1",
        "cache=false",
        "paraphrase=null",
    ]
    with tempfile.TemporaryDirectory() as folder:
        result = run_of([*data, *model, *chosen, *always], Path(folder))
        lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "train/loss" in line]
    seconds = steps[-1]["seconds"] - steps[WARM - 1]["seconds"]
    rows = (len(steps) - WARM) * result["batch"]
    return {
        "rows": rows / seconds,
        "embedding": result["seconds"]["base"],
        "losses": [line["train/loss"] for line in steps],
    }


def shown(found: dict[str, list[dict[str, Any]]]) -> str:
    """The table and the sentence about the losses."""
    first = next(iter(found.values()))
    lines = []
    for name, runs in found.items():
        rows, embedding = ([run[key] for run in runs] for key in ("rows", "embedding"))
        against = ratios(rows, [run["rows"] for run in first])
        lines.append([name, spread(rows, 1), against, spread(embedding, 1)])
    apart_by = max(
        abs(loss - expected) / expected
        for runs in found.values()
        for run in runs
        for loss, expected in zip(run["losses"], first[0]["losses"], strict=True)
    )
    head = ["processes", "rows/s in training", "of one process", "seconds to embed and score dev and test"]
    losses = first[0]["losses"]
    return (
        f"{table(head, lines)}\n\nMedian (least to most) of {len(first)}, in turn; {os.cpu_count()} cores shared out. "
        f"Over {len(losses)} steps no loss differs by more than {apart_by:.1e} of its value; the last is "
        f"{first[0]['losses'][-1]:.4f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps on a little data")
    parser.add_argument("--data", help="a folder with pqa_labeled/*.parquet")
    parser.add_argument("--model", help="a folder that holds a model, instead of MiniLM")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, help="optimiser steps of a run (6; quick: 4)")
    parser.add_argument("--rounds", type=int, help="2; quick: 1")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.steps = arguments.steps or (4 if arguments.quick else 6)
    if arguments.one:
        found = one(arguments)
        print(json.dumps(found))
        return
    words = ["--steps", str(arguments.steps), *(["--quick"] if arguments.quick else [])]
    words += [word for key in ("data", "model") if (value := getattr(arguments, key)) for word in (f"--{key}", value)]
    arms = {
        f"{count} of {max(1, (os.cpu_count() or 1) // count)} threads": partial(
            apart, __file__, "--one", str(count), *words
        )
        for count in arguments.processes
    }
    print(shown(in_turn(arms, rounds=arguments.rounds or (1 if arguments.quick else 2))))


if __name__ == "__main__":
    main()
