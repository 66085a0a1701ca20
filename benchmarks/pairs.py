"""Seconds and memory from a file of question-passage pairs to one epoch of batches, by the number of rows.

Usage: python benchmarks/pairs.py [--rows N ...] [--limit GIB] [--quick]

Each size runs in a process of its own, on pairs made up from a seed. There is no peer to hold it against: the smaller
size is the measure, and what counts is by how much the time grows.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import Clock, apart, conf, peak_mib, source_of, table

SIZES, QUICK = (100_000, 1_000_000), (1_000, 2_000)
STAGES = ("read", "cut", "leaks", "rows", "sampler", "epoch")
BATCH, EPOCHS = 64, 1
PER_GROUP = 3  # questions; on two passages
NEAR_COPIES = 0.01  # share of the questions that repeat an earlier one with a word more
HEAD = ("rows", "read and checked", "cut", "leak check", "rows of a pair", "lengths and plan", "an epoch read", "sum")


def main() -> None:
    """Measure each size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--limit", type=float, help="GiB of address space that a size may have")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        print(json.dumps({"questions": write(options.write, options.rows[0])}))
    elif options.measure:
        print(json.dumps(measured(options.measure)))
    else:
        report(QUICK if options.quick else options.rows, limit=options.limit)


def report(sizes: Iterator[int] | Any, *, limit: float | None) -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for rows in sizes:
            file = Path(folder, f"{rows}.parquet")
            apart(__file__, "--rows", str(rows), "--write", str(file))
            found[rows] = apart(__file__, "--measure", str(file), memory_gib=limit)
    smallest, largest = min(found), max(found)
    sums = {rows: sum(one[stage] for stage in STAGES) for rows, one in found.items()}
    cpu = {rows: one["cpu"] for rows, one in found.items()}
    lines = [
        [f"{rows:,}", *(f"{one[stage]:.1f}" for stage in STAGES), f"{sums[rows]:.1f}", f"{cpu[rows]:.1f}", one["peak"]]
        for rows, one in found.items()
    ]
    print(
        f"Seconds per stage, from a Parquet file of (query, passage, group) to one epoch of batches of {BATCH}: "
        f"{PER_GROUP} questions a group on two passages, {NEAR_COPIES:.0%} near copies, cut anew without the cache. "
        f"{largest / smallest:g} times the rows take {sums[largest] / sums[smallest]:.1f} times the time. "
        "CPU s: of the process, all threads.\n"
    )
    print(table([*HEAD, "CPU s", "peak MiB"], lines))


def measured(file: Path) -> dict[str, float]:
    """Seconds by stage of one size, the processor's own, and the most memory."""
    from datasets import Dataset

    from embexp.config.components import build
    from embexp.data.leaks import refuse_leaks
    from embexp.data.splits import trainable
    from embexp.datasets import pairs
    from embexp.rows.shapes import to_rows
    from embexp.training import fine_tuning as training

    logging.disable(logging.WARNING)
    seconds: dict[str, float] = {}
    model = source_of("minilm").load([])

    def timed(stage: str, make: Callable[..., Any], *args: Any, **options: Any) -> Any:
        clock = Clock()
        with clock:
            made = make(*args, **options)
        seconds[stage] = clock.seconds
        return made

    cpu = time.process_time()
    config = {**conf("dataset", "pairs"), "path": str(file)}
    config["columns"] = {**config["columns"], "group": "group"}
    usual = pairs.cut
    with patch.object(pairs, "cut", lambda *args: timed("cut", usual, *args)):
        splits = timed("read", build, config, allowed=[])
    seconds["read"] -= seconds["cut"]
    timed("leaks", refuse_leaks, splits, near_duplicate=config["split"]["near_duplicate"])

    def rows_of() -> tuple[Any, Any, Any]:
        train = trainable(splits)
        rows = to_rows(train, "pair", negatives=None, seed=0)
        return train, rows, Dataset.from_dict({**rows.columns, training.ROW: list(range(len(rows)))})

    train, rows, _ = timed("rows", rows_of)
    arguments = {"per_device_train_batch_size": BATCH, "num_train_epochs": EPOCHS}
    sampler = timed("sampler", training.sampler_of, model, rows, train, arguments, seed=0)
    read = timed("epoch", lambda: sum(map(len, sampler)))
    assert read == len(rows), f"{read} of {len(rows)} rows came"
    return {**seconds, "cpu": time.process_time() - cpu, "peak": peak_mib()}


def write(file: Path, rows: int) -> int:
    """A Parquet file of so many made-up pairs; returns how many. Words are of syllables, as often as in a language."""
    import pyarrow
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    words = _vocabulary(rng, max(5_000, int(30 * (rows * 60) ** 0.5)))  # Heaps' law: new words with more text
    weights = np.cumsum(1 / np.arange(1, len(words) + 1))
    schema = pyarrow.schema([(name, pyarrow.string()) for name in ("query", "passage", "group")])
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, rows, 30_000):
            count = min(30_000, rows - start)
            questions = _texts(rng, words, weights, count, 6, 12)
            for place in rng.choice(count, int(count * NEAR_COPIES), replace=False):
                questions[place] = f"{questions[rng.integers(count)]} {words[rng.integers(50)]}"
            passages = _texts(rng, words, weights, -(-count // PER_GROUP) * 2, 30, 60)
            groups = [place // PER_GROUP for place in range(count)]
            shown = [passages[2 * group + place % PER_GROUP % 2] for place, group in enumerate(groups)]
            names = [f"document {start // PER_GROUP + group}" for group in groups]
            writer.write_table(pyarrow.table([questions, shown, names], schema=schema))
    return rows


def _vocabulary(rng: np.random.Generator, size: int) -> list[str]:
    """Different words; the frequent ones are short."""
    syllables = [a + b + c for a in ["", *"bcdfghklmnprstvw"] for b in "aeiou" for c in ["", *"lmnrst"]]
    usual = np.cumsum(1 / np.arange(1, len(syllables) + 1))
    rng.shuffle(syllables)
    words: dict[str, None] = {}
    while len(words) < size:
        longest = 2 + min(3, len(words) // 300)
        drawn = np.searchsorted(usual, rng.random((size, longest)) * usual[-1])
        for row, length in zip(drawn, rng.integers(1, longest, size), strict=True):
            words["".join(syllables[one] for one in row[:length])] = None
    return list(words)[:size]


def _texts(
    rng: np.random.Generator, words: list[str], weights: np.ndarray, count: int, least: int, most: int
) -> list[str]:
    lengths = rng.integers(least, most + 1, count)
    drawn = np.searchsorted(weights, rng.random(int(lengths.sum())) * weights[-1]).tolist()
    ends = np.cumsum(lengths).tolist()
    return [" ".join(words[one] for one in drawn[end - n : end]) for end, n in zip(ends, lengths.tolist(), strict=True)]


if __name__ == "__main__":
    main()
