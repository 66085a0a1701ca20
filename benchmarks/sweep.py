"""A sweep against the same trials as separate commands, each in full: time, what pruning costs, overhead, idle slots.

python benchmarks/sweep.py FOLDER sweep=mnrl model=static [more overrides]

1. the sweep, with pruning and what trials share; 2. its parameters again, one `python -m embexp` each, to the end;
3. both winners with three other seeds. FOLDER keeps everything: the same command goes on where it was ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from embexp.sweep.reference import Address
from embexp.sweep.storage import opened

SEEDS = (1, 2, 3)


def timed(words: Sequence[str], folder: Path, name: str) -> dict[str, float]:
    """Run `python -m embexp` in `folder`; wall and CPU seconds, kept in a file so that it runs once."""
    kept = folder / f"{name}.time.json"
    if not kept.exists():
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        with (folder / f"{name}.log").open("w") as log:
            code = subprocess.run(
                [sys.executable, "-m", "embexp", *words], cwd=folder, stdout=log, stderr=log, check=False
            ).returncode
        wall = time.perf_counter() - start
        _reap_orphans()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if code:
            sys.exit(f"{name} ended with {code}; see {folder / name}.log")
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        kept.write_text(json.dumps({"wall": wall, "cpu": cpu}))
    found: dict[str, float] = json.loads(kept.read_text())
    return found


def _adopt_orphans() -> None:
    """Linux: who forks trials outlives the command, and its CPU time is counted where it is waited for."""
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


def _reap_orphans() -> None:
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def dev_of(folder: Path) -> float:
    """The primary metric on dev of the run in a folder."""
    result = json.loads((folder / "result.json").read_text())
    return float(result["tuned"]["dev"][result["metric"]])


def trials_of(folder: Path, name: str) -> list[FrozenTrial]:
    """The sweep's trials."""
    study = optuna.load_study(study_name=name, storage=opened(Address(str(folder / "multirun" / name))))
    return study.get_trials()


def overrides_of(trial: FrozenTrial) -> list[str]:
    """A trial's parameters as overrides."""
    return [f"{name.partition(' if ')[0]}={value}" for name, value in trial.params.items()]


def overheads(folder: Path, name: str, trials: Sequence[FrozenTrial]) -> list[float]:
    """Seconds of each trial beyond its run's own stages (model, data, training, evaluation)."""
    found = []
    for trial in trials:
        if trial.state != TrialState.FAIL:
            result = json.loads((folder / "multirun" / name / str(trial.number) / "result.json").read_text())
            assert trial.datetime_complete is not None
            assert trial.datetime_start is not None
            lasted = (trial.datetime_complete - trial.datetime_start).total_seconds()
            found.append(lasted - sum(result["seconds"].values()))
    return found


def idle(trials: Sequence[FrozenTrial], slots: int) -> float:
    """The share of the slots' time, from the first start until the last start, in which nothing ran."""
    assert all(trial.datetime_start and trial.datetime_complete for trial in trials)
    starts = sorted(trial.datetime_start.timestamp() for trial in trials)
    first, last = starts[0], starts[-1]
    busy = sum(min(t.datetime_complete.timestamp(), last) - t.datetime_start.timestamp() for t in trials)
    return 1 - busy / ((last - first) * slots)


def _shown(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"


def main(folder: Path, words: Sequence[str]) -> None:
    _adopt_orphans()
    folder.mkdir(parents=True, exist_ok=True)
    # the sweep fills the cache, and the separate commands find it filled
    os.environ.setdefault("EMBEXP_CACHE", str(folder.absolute() / "cache"))
    name = next(word.removeprefix("sweep=") for word in words if word.startswith("sweep="))
    slots = next((int(word.partition("=")[2]) for word in words if word.startswith("hydra.sweeper.n_jobs=")), 1)
    swept = timed(["-m", *words, "logger=none", "sweep.confirm_seeds=0"], folder, "sweep")
    trials = trials_of(folder, name)
    of_the_search = {"sweep", "sampler", "pruner", *(key for trial in trials for key in trial.params)}
    fixed = [word for word in words if word.partition("=")[0] not in of_the_search and "hydra.sweeper." not in word]
    common = ["logger=none", *fixed]
    separate = {"wall": 0.0, "cpu": 0.0}
    for trial in trials:
        run = f"separate/{trial.number}"
        (folder / "separate").mkdir(exist_ok=True)
        command = [*common, *overrides_of(trial), f"hydra.run.dir={run}"]
        for key, seconds in timed(command, folder, run).items():
            separate[key] += seconds
    timed(["-m", *words, "logger=none"], folder, "confirmation")
    best = max(trials, key=lambda trial: dev_of(folder / "separate" / str(trial.number)))
    confirmed: dict[str, Any] = {
        "sweep": [dev_of(path.parent) for path in (folder / "multirun" / name).glob("confirm-*/seed-*/result.json")],
        "separate": [],
    }
    (folder / "confirmed").mkdir(exist_ok=True)
    for seed in SEEDS:
        run = f"confirmed/{seed}"
        timed([*common, *overrides_of(best), f"seed={seed}", f"hydra.run.dir={run}"], folder, run)
        confirmed["separate"].append(dev_of(folder / run))
    pruned = sum(trial.state == TrialState.PRUNED for trial in trials)
    extra = overheads(folder, name, trials)
    print("| | seconds | CPU seconds | winner's dev, three other seeds |\n|---|---:|---:|---:|")
    print(f"| {len(trials)} separate commands | {separate['wall']:.0f} | {separate['cpu']:.0f} | "
          f"{_shown(confirmed['separate'])} |")  # fmt: skip
    print(f"| the sweep, {slots} at a time, {pruned} pruned | {swept['wall']:.0f} | {swept['cpu']:.0f} | "
          f"{_shown(confirmed['sweep'])} |")  # fmt: skip
    print(
        f"\nshare: {swept['wall'] / separate['wall']:.2f} of the time, {swept['cpu'] / separate['cpu']:.2f} of the CPU"
    )
    print(f"overhead of a trial: median {statistics.median(extra):.2f} s, most {max(extra):.2f} s")
    print(f"idle: {idle(trials, slots):.1%} of the slots' time until the last trial started")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
