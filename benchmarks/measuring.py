"""What the benchmarks share: arms in turn, each in a process of its own, clocks, spread, tables, data and configs.

A benchmark is a script that prints one Markdown table (with its sentence) on standard output and its progress on
standard error; `--quick` makes it small enough for a test. `make bench` puts what they print, and the machine's name,
into README.md. Each puts the repository into sys.path before it imports this, so that a plain checkout is enough.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

REPOSITORY = Path(__file__).resolve().parent.parent
LIBRARIES = ("torch", "sentence-transformers", "transformers", "numpy")
DOCSTRINGS = "docstrings"
DATA_HELP = (
    "a folder with pqa_labeled/*.parquet, a local copy of PubMedQA; or docstrings, the standard library's, or "
    "docstrings:PACKAGE"
)
LENGTH = 256  # tokens that MiniLM reads


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
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": search_path(), **(environment or {})}
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


def search_path() -> str:
    """PYTHONPATH of another process: the repository, then what this one was given."""
    return os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])


class Clock:
    """Sums the wall and the processor's seconds of the blocks that it is entered for, and counts them."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self.times = 0

    def __enter__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started[0]
        self.cpu_seconds += time.process_time() - self._started[1]
        self.times += 1


class Measured:
    """While entered, times a trainer's `train` and counts the texts and tokens that reach the transformer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # embexp embeds in several threads
        self._clock = Clock()
        self._texts = self._padded = self._mib = 0
        self._real: Any = 0

    def __enter__(self) -> Measured:
        from sentence_transformers import SentenceTransformerTrainer

        self._patched = patch.object(SentenceTransformerTrainer, "train", self._timed(SentenceTransformerTrainer.train))
        self._patched.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._patched.stop()

    def _timed(self, usual: Callable[..., Any]) -> Callable[..., Any]:
        def train(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            hook = trainer.model[0].register_forward_pre_hook(self._count)
            try:
                with self._clock:
                    return usual(trainer, *args, **kwargs)
            finally:
                self._mib = peak_mib()
                hook.remove()

        return train

    def _count(self, module: Any, inputs: Any) -> None:
        mask = inputs[0]["attention_mask"]
        with self._lock:
            self._texts += len(mask)
            self._padded += mask.numel()
            self._real = self._real + mask.sum()  # stays on a GPU, which need not wait for it

    @property
    def counts(self) -> dict[str, Any]:
        """Texts, real and padded tokens, seconds, CPU seconds and the process's most memory in MiB when it ended."""
        return {
            "texts": self._texts, "real": int(self._real), "padded": self._padded, "mib": self._mib,
            "seconds": self._clock.seconds, "cpu_seconds": self._clock.cpu_seconds,
        }  # fmt: skip


def product(dtype_name: str, *, side: int = 2048, device: str = "cpu") -> float:
    """The best of the machine's own matrix products, in operations a second; on a CPU with all of torch's threads."""
    import torch

    one, other = (torch.randn(side, side, dtype=getattr(torch, dtype_name), device=device) for _ in range(2))
    times = 10 if device == "cuda" else 1  # a GPU's are too short to time one by one

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(times):
            one @ other
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / times

    return 2 * side**3 / min(seconds() for _ in range(10))


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


# --- data and configs -------------------------------------------------------------------------------------------------


def data_at(data: str) -> str:
    """What --data names, for argparse to check."""
    if not data.startswith(DOCSTRINGS) and not Path(data, "pqa_labeled").is_dir():
        raise argparse.ArgumentTypeError(
            f"{data} has no folder pqa_labeled with PubMedQA's Parquet files; give a copy's folder with --data "
            f"(make bench DATA=FOLDER), or --data {DOCSTRINGS} for the standard library's docstrings"
        )
    return data


def name_of(data: str) -> str:
    """What a table calls it."""
    return data if data.startswith(DOCSTRINGS) else "PubMedQA-L"


def conf(group: str, name: str) -> dict[str, Any]:
    """A file in conf/, as plain values."""
    from omegaconf import OmegaConf

    node = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "conf" / group / f"{name}.yaml"))
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def splits_of(data: str) -> Any:
    """The splits of DOCSTRINGS, of DOCSTRINGS:PACKAGE or of a copy of PubMedQA."""
    from embexp.config.components import build

    if data.startswith(DOCSTRINGS):
        packages = {"packages": [data.partition(":")[2]]} if ":" in data else {}
        return build({**conf("dataset", "docstrings"), **packages}, allowed=[])
    return build({**conf("dataset", "pubmedqa"), "path": data, "name": "pqa_labeled"}, allowed=[])


def source_of(model: str) -> Any:
    """Where a run would load MiniLM, or the model in a folder, from."""
    from embexp.config.components import build

    chosen = {"path": model, "packaged": None} if Path(model).is_dir() else {"max_seq_length": LENGTH}
    return build({**conf("model", "minilm"), **chosen}, allowed=[], without=["kind"])


def run_of(words: Sequence[str], folder: Path) -> dict[str, Any]:
    """The result of what `python -m embexp words` runs, in this process and untracked; `folder` is the run's."""
    from hydra import compose, initialize_config_dir

    from embexp.config.checks import CONFIG_FOLDER, plain
    from embexp.run import run

    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = plain(compose("config", [*words, "logger=none"]))
    result = run(config, names={"loss": "mnrl", "model": "any", "dataset": "any"}, folder=folder)
    return {**result, "batch": config["trainer"]["per_device_train_batch_size"] if config["trainer"] else None}
