"""How long it takes to start: the command line beside `import hydra`, and all that a run does beside training.

    python benchmarks/startup.py            # the demo's data and MiniLM, about five minutes on two cores
    python benchmarks/startup.py --quick    # a toy model and a few queries, seconds

Every command is a process of its own, in turn with the others. A round's first run begins with an empty cache, and its
second runs, without and with wandb (offline), repeat it. Their training is two steps long and left out of the figures,
and so is the tuned model's evaluation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import in_turn, ratios, search_path, spread, table

QUICK = ["model=static", "model.dimension=16", "trainer=smoke", "limit=20"]
WANDB = ["logger.mode=offline"]  # whether this machine has a key or not
APART = ("training", "tuned")  # stages that take as long as the data and the model ask for


@dataclass(frozen=True)
class Timed:
    """A command: wall seconds without `APART`, those of them that loaded what trains, and the processor's seconds."""

    wall: float
    libraries: float | None
    processor: float


def command(*arguments: str, cache: Path) -> Timed:
    """`python arguments`, ended well."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": search_path(), "EMBEXP_CACHE": str(cache)}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    ended = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=variables, cwd=cache)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr[-4000:]}")
    return Timed(wall, None, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def run(*arguments: str, cache: Path, folder: Path) -> Timed:
    """A run into the folder, without the seconds of `APART`."""
    timed = command("-m", "embexp", f"hydra.run.dir={folder}", *arguments, cache=cache)
    seconds = json.loads((folder / "result.json").read_text())["seconds"]
    return Timed(timed.wall - sum(seconds[stage] for stage in APART), seconds["libraries"], timed.processor)


def measured(parent: Path, *, rounds: int, quick: bool) -> dict[str, list[Timed]]:
    """Every command's times, by round."""
    started = ["-m", "embexp"]
    shown = {
        "`import hydra`": ["-c", "import hydra"],
        "`import embexp`": ["-c", "import embexp"],
        "`--help`": [*started, "--help"],
        "`--cfg job`": [*started, "--cfg", "job"],
        "a mistyped override": ["-c", "import runpy, sys; sys.argv = ['embexp', 'los=mnrl']\n"
                                "try: runpy.run_module('embexp', run_name='__main__')\n"
                                "except SystemExit as end: sys.exit(end.code != 1)"],
    }  # fmt: skip
    found = in_turn(
        {name: partial(command, *call, cache=parent) for name, call in shown.items()}, rounds=2 if quick else 5 * rounds
    )
    common = QUICK if quick else ["trainer.max_steps=2"]
    runs = {
        "first run": [*common, "logger=none"],
        "second run": [*common, "logger=none"],
        "second run, `logger=wandb`": [*common, *WANDB],
    }
    for name in runs:
        found[name] = []
    for number in range(rounds):
        cache = parent / f"cache{number}"
        cache.mkdir()
        for (name, call), place in zip(runs.items(), itertools.count(), strict=False):
            found[name].append(run(*call, cache=cache, folder=parent / f"run{number}-{place}"))
            print(f"round {number + 1} of {rounds}: {name} done, {time.ctime()}", file=sys.stderr, flush=True)
    return found


def line(name: str, times: Sequence[Timed], beside: Sequence[Timed]) -> list[str]:
    """A row of the table."""
    libraries = [each.libraries for each in times if each.libraries is not None]
    processor = [each.processor for each in times]
    compared = "" if libraries else ratios(processor, [each.processor for each in beside])
    return [name, spread(each.wall for each in times), spread(libraries) if libraries else "",
            "" if libraries else spread(processor), compared]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="of the runs; commands have five times as many")
    parser.add_argument("--quick", action="store_true", help="a toy model, one round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as parent:
        found = measured(Path(parent), rounds=1 if options.quick else options.rounds, quick=options.quick)
    head = ["start", "seconds", "of them loading what trains", "processor seconds", "times `import hydra`"]
    rows = [line(name, times, found["`import hydra`"]) for name, times in found.items()]
    print(
        "Seconds are of the whole command, imports included; of a run without training and the tuned model's "
        "evaluation. The processor's seconds are compared, since others on the machine do not change them."
        f"\n\n{table(head, rows)}"
    )


if __name__ == "__main__":
    main()
