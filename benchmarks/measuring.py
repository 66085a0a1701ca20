"""What the benchmarks share: arms in turn, each in a process of its own, their medians and spread, the machine's name.

A benchmark is a script that prints one Markdown table (with its sentence) on standard output and its progress on
standard error; `--quick` makes it small enough for a test. `make bench` puts what they print into README.md.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
LIBRARIES = ("torch", "sentence-transformers", "transformers", "numpy")


def in_turn(arms: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, list[Any]]:
    """What each arm returns, by round; in turn and then back, so that a drifting machine meets all of them alike."""
    found: dict[str, list[Any]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in list(arms) if number % 2 == 0 else list(arms)[::-1]:
            found[name].append(arms[name]())
            print(f"round {number + 1} of {rounds}: {name} done, {time.ctime()}", file=sys.stderr, flush=True)
    return found


def apart(
    script: str | Path, *arguments: str, memory_gib: float | None = None, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The JSON object in the last line that `python script arguments` prints, run in a process of its own.

    memory_gib: a limit of the kernel on its address space; above it the process ends and so does the benchmark. Adds
    `wall`, in seconds, imports included.
    """
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY), **(environment or {})}
    limit = None if memory_gib is None else int(memory_gib * 2**30)
    start = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        env=variables,
        preexec_fn=None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    if ended.returncode:
        sys.exit(f"{script} {' '.join(arguments)} ended with {ended.returncode}:\n{ended.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return {"wall": time.perf_counter() - start, **found}


def peak_mib() -> int:
    """The most resident memory that this process has had."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most // (2**20 if sys.platform == "darwin" else 2**10)


def spread(values: Iterable[float], digits: int = 2) -> str:
    """median (least to most), or the one value."""
    found = list(values)
    middle = f"{statistics.median(found):.{digits}f}"
    return middle if len(found) == 1 else f"{middle} ({min(found):.{digits}f} to {max(found):.{digits}f})"


def ratios(values: Sequence[float], others: Sequence[float]) -> str:
    """The spread of values / others, round by round."""
    return spread(one / other for one, other in zip(values, others, strict=True))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def machine() -> str:
    """Processor, cores, what it multiplies with, versions and the load of the last minutes: beside every figure."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    name = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")
    has = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if f" {flag} " in text]
    versions = ", ".join(f"{library} {version(library)}" for library in LIBRARIES)
    return (
        f"{name or platform.machine()}, {os.cpu_count()} cores, {' '.join(has)}; {platform.system()}, "
        f"Python {platform.python_version()}, {versions}; load {os.getloadavg()[2]:.1f} in 15 minutes; "
        f"{time.strftime('%Y-%m-%d')}"
    )
