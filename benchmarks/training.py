"""Rows per second of one epoch with embexp and with a plain sentence-transformers script, in turn, in one run.

Usage: python benchmarks/training.py [--data FOLDER|docstrings] [--rounds N] [--steps N] [--arms NAME ...]

Each arm trains in a process of its own on the same rows with the same learning rate, warm-up and seed; only the
training is timed, and no arm looks at dev. The processor's own seconds stand beside the clock's: they say whether the
machine was shared. Afterwards each arm's weights are measured on the same test set.

Two more arms have identical settings: the library's trainer with embexp's batches, attention and dropout, one pass for
each column, and embexp with the same (its parts are off). What the second takes longer is what the framework costs.
Useful arithmetic is 6 x parameters x real tokens (those of tables of vectors and padding left out), beside the matrix
product of this machine, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PUBMEDQA = REPOSITORY.parent / "shared" / "data" / "PubMedQA"
ARMS = ("plain", "plain bf16", "embexp")
IDENTICAL = ("library, identical", "embexp, identical")
BATCH, LENGTH, LEARNING_RATE, WARMUP, SEED = 64, 256, 5e-5, 0.1, 0


def conf(group: str, name: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    node = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "conf" / group / f"{name}.yaml"))
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def splits_of(data: str) -> Any:
    from embexp.components import build

    if data.startswith("docstrings"):  # docstrings:PACKAGE reads one package
        packages = {"packages": [data.partition(":")[2]]} if ":" in data else {}
        return build({**conf("dataset", "docstrings"), **packages}, allowed=[])
    return build({**conf("dataset", "pubmedqa"), "path": data, "name": "pqa_labeled"}, allowed=[])


def source_of(model: str) -> Any:
    from embexp.components import build

    chosen = {"path": model, "packaged": None} if Path(model).is_dir() else {}
    length = {} if chosen else {"max_seq_length": LENGTH}
    return build({**conf("model", "minilm"), **chosen, **length}, allowed=[])


class Measured:
    """Times a trainer's `train` and counts the texts and tokens that reach the transformer."""

    def __init__(self) -> None:
        from sentence_transformers import SentenceTransformerTrainer

        self._lock = threading.Lock()  # embexp embeds in several threads
        self.seconds = self.cpu_seconds = 0.0
        self.texts = self.real = self.padded = self.mib = 0
        usual = SentenceTransformerTrainer.train

        def train(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            hook = trainer.model[0].register_forward_pre_hook(self._count)
            start, cpu_start = time.perf_counter(), time.process_time()
            try:
                return usual(trainer, *args, **kwargs)
            finally:
                self.seconds = time.perf_counter() - start
                self.cpu_seconds = time.process_time() - cpu_start
                self.mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
                hook.remove()

        SentenceTransformerTrainer.train = train

    def _count(self, module: Any, inputs: Any) -> None:
        mask = inputs[0]["attention_mask"]
        with self._lock:
            self.texts += len(mask)
            self.padded += mask.numel()
            self.real += int(mask.sum())

    @property
    def counts(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


def train_plain(rows: Any, source: Any, folder: Path, *, bf16: bool, steps: int) -> Any:
    """What a reader of the library's documentation would write."""
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = SentenceTransformer(str(source._folder), local_files_only=True)
    model.max_seq_length = min(LENGTH, model.max_seq_length)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=1,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        warmup_steps=WARMUP,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),  # bf16 is refused without it
        seed=SEED,
        save_strategy="no",
        disable_tqdm=True,
    )
    SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(dict(rows.columns)),
        loss=MultipleNegativesRankingLoss(model),
    ).train()
    return model


def train_identical(rows: Any, train_set: Any, source: Any, folder: Path, *, steps: int) -> Any:
    """The library's trainer with embexp's model, batches and settings."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.base.losses.merged_forward import column_merging_disabled
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from embexp.training import _sampler, _training_attention

    embedding_model = source.load([])
    model = embedding_model.model
    sampler = _sampler(
        embedding_model, rows, train_set, {"per_device_train_batch_size": BATCH, "num_train_epochs": 1}, seed=SEED
    )
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=1,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        batch_sampler=lambda *_, **__: sampler,
        learning_rate=LEARNING_RATE,
        warmup_steps=WARMUP,
        bf16=embedding_model.bfloat16,
        use_cpu=model.device.type == "cpu",
        seed=SEED,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(dict(rows.columns)),
        loss=MultipleNegativesRankingLoss(model),
    )
    with column_merging_disabled(), _training_attention(embedding_model):
        trainer.train()
    return model


def train_embexp(rows: Any, train_set: Any, source: Any, folder: Path, *, steps: int) -> Any:
    from embexp.tracking import Tracker
    from embexp.training import OURS, Task, train

    embedding_model = source.load([])
    arguments = {key: value for key, value in conf("trainer", "default").items() if key not in OURS}
    train(
        embedding_model,
        Task(
            rows,
            train_set,
            loss=conf("loss", "mnrl"),
            allowed_packages=[],
            arguments={
                **arguments,
                "num_train_epochs": 1,
                "max_steps": steps,
                "per_device_train_batch_size": BATCH,
                "learning_rate": LEARNING_RATE,
                "warmup_steps": WARMUP,
                "eval_strategy": "no",
            },
            metric="recall@10",
            seed=SEED,
            folder=folder,
            made_from="benchmark",
        ),
        dev_metrics=dict,
        tracker=Tracker(folder, None),
    )
    return embedding_model.model


def without_parts() -> None:
    from contextlib import nullcontext

    from embexp.trainer import Trainer

    Trainer._parts = lambda self: nullcontext()  # type: ignore[method-assign]


def weights_that_multiply(model: Any) -> int:
    """The parameters of a model but for its tables of vectors."""
    import torch

    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    return sum(weights.numel() for weights in model.parameters()) - sum(table.weight.numel() for table in tables)


def product(dtype_name: str) -> float:
    """The best of this machine's own matrix products, in GFLOP/s, all threads."""
    import torch

    one, other = (torch.randn(2048, 2048).to(getattr(torch, dtype_name)) for _ in range(2))
    found = []
    for _ in range(10):
        start = time.perf_counter()
        one @ other
        found.append(2 * 2048**3 / (time.perf_counter() - start) / 1e9)
    return max(found)


def one(arm: str, data: str, model: str, steps: int, evaluate: bool) -> dict[str, Any]:
    """Train one arm, then measure its weights on test with embexp's evaluator, in float32."""
    from embexp import libraries
    from embexp.arms import Dense
    from embexp.encoding import Encoder
    from embexp.evaluators import Retrieval
    from embexp.models import Transformer
    from embexp.negatives import draw_random
    from embexp.shapes import to_rows
    from embexp.splits import trainable

    libraries.loaded()
    libraries.quiet_keyword_search()
    logging.disable(logging.INFO)
    splits = splits_of(data)
    train_set, source = trainable(splits), source_of(model)
    rows = to_rows(train_set, "pair", negatives=draw_random, seed=SEED)
    measured = Measured()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arm == IDENTICAL[1]:
            without_parts()
        if arm in ("embexp", IDENTICAL[1]):
            trained = train_embexp(rows, train_set, source, folder, steps=steps)
        elif arm == IDENTICAL[0]:
            trained = train_identical(rows, train_set, source, folder, steps=steps)
        elif arm != "base":
            trained = train_plain(rows, source, folder, bf16=arm == "plain bf16", steps=steps)
        found: dict[str, Any] = {**measured.counts, "rows": measured.texts // 2}
        if arm != "base":
            found["useful"] = 6 * weights_that_multiply(trained) * measured.real / 1e9
        found |= {"float32": product("float32"), "bfloat16": product("bfloat16")}
        if evaluate:
            if arm != "base":
                trained.save_pretrained(str(folder / "model"), create_model_card=False)
            weights = source if arm == "base" else Transformer(path=str(folder / "model"), dtype="float32")
            result = Retrieval([10])(Dense(Encoder(weights.load([]))), splits.test, negatives=draw_random, seed=SEED)
            scores = result.scores["recall@10"]
            assert scores.values is not None
            found["recall"] = dict(zip(scores.query_ids, scores.values.tolist(), strict=True))
            found["document_of"] = {query: splits.test.document_of(query) for query in scores.query_ids}
    return found


def run_arm(arm: str, options: argparse.Namespace, *, evaluate: bool) -> dict[str, Any]:
    call = [sys.executable, __file__, "--one", arm, "--data", options.data, "--model", options.model]
    call += ["--steps", str(options.steps), *(["--evaluate"] if evaluate else [])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(call, capture_output=True, text=True, env=environment)
    if ended.returncode:
        sys.exit(f"{arm} failed:\n{ended.stderr}")
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    recall = f", recall@10 {statistics.mean(found['recall'].values()):.3f}" if "recall" in found else ""
    print(
        f"{arm}: {found['rows']} rows in {found['seconds']:.1f} s{recall}, {time.ctime()}", file=sys.stderr, flush=True
    )
    return found


def delta(first: dict[str, Any], other: dict[str, Any]) -> str:
    import numpy as np

    from embexp.significance import Scores, compare

    pair = (first["recall"], other["recall"])
    scores = [{"recall@10": Scores(list(each), np.asarray(list(each.values())))} for each in pair]
    found = compare(scores[0], scores[1], document_of=first["document_of"], seed=SEED)["recall@10"]
    return f"{found.absolute:+.3f} ({found.ci_low:+.3f} to {found.ci_high:+.3f})"


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """One line per arm: medians over the rounds, ratios of rows per second within a round, recall of the last round."""
    lines = [
        "| arm | rows/s, median (min to max) | seconds | CPU seconds | times plain's rows/s, by round |"
        " real share of tokens | peak MiB | recall@10 | delta to plain (95 % interval) | useful GFLOP/s |"
        " share of float32's, bf16's product |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    speeds = {arm: [run["rows"] / run["seconds"] for run in found] for arm, found in runs.items()}
    first = "plain" if "plain" in runs else next(iter(runs))
    for arm, found in runs.items():
        last, speed = found[-1], speeds[arm]
        ratios = ", ".join(f"{a / b:.2f}" for a, b in zip(speed, speeds[first], strict=True))
        recall, change = "", ""
        if "recall" in last:
            recall = f"{statistics.mean(last['recall'].values()):.3f} ({len(last['recall'])} queries)"
            change = delta(runs[first][-1], last) if arm != first else ""
        lines.append(
            f"| {arm} | {statistics.median(speed):.2f} ({min(speed):.2f} to {max(speed):.2f}) "
            f"| {statistics.median(run['seconds'] for run in found):.0f} "
            f"| {statistics.median(run['cpu_seconds'] for run in found):.0f} | {ratios} "
            f"| {last['real'] / last['padded']:.2f} | {max(run['mib'] for run in found)} | {recall} | {change} "
            f"| {arithmetic(found)} |"
        )
    return "\n".join(lines)


def arithmetic(found: list[dict[str, Any]]) -> str:
    rates = [run["useful"] / run["seconds"] for run in found]
    shares = [
        statistics.median(rate / run[kind] for rate, run in zip(rates, found, strict=True))
        for kind in ("float32", "bfloat16")
    ]
    return f"{statistics.median(rates):.0f} | {shares[0]:.2f}, {shares[1]:.2f}"


def identical(runs: dict[str, list[dict[str, Any]]]) -> str:
    """What embexp takes beyond the library at identical settings, by round."""
    theirs, ours = (runs[arm] for arm in IDENTICAL)
    costs = {
        kind: ", ".join(f"{one[kind] / other[kind] - 1:+.1%}" for one, other in zip(ours, theirs, strict=True))
        for kind in ("seconds", "cpu_seconds")
    }
    return f"At identical settings embexp takes {costs['seconds']} (CPU seconds {costs['cpu_seconds']}), by round."


def machine() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    name = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")
    has = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if f" {flag} " in text]
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "sentence-transformers"))
    return f"{name or platform.machine()}, {os.cpu_count()} cores, {' '.join(has)}; {platform.system()}, {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(PUBMEDQA), help="a local copy of PubMedQA, or docstrings[:PACKAGE]")
    parser.add_argument("--model", default="minilm", help="minilm or a model's folder")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=-1, help="the first steps only, without recall")
    parser.add_argument("--arms", nargs="+", choices=(*ARMS, *IDENTICAL), default=(*ARMS, *IDENTICAL))
    parser.add_argument("--quick", action="store_true", help="two steps of the plain script and of embexp")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--evaluate", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.data, options.steps = "docstrings:json", 2
    if not options.data.startswith("docstrings") and not Path(options.data, "pqa_labeled").is_dir():
        parser.error(
            f"{options.data} has no folder pqa_labeled with PubMedQA's Parquet files; give a copy's folder with --data "
            "(make bench DATA=FOLDER), or --data docstrings for the standard library's docstrings"
        )
    if options.one:
        print(json.dumps(one(options.one, options.data, options.model, options.steps, options.evaluate)))
        return
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in options.arms}
    for number in range(options.rounds):
        # in turn and back, so that a drifting machine meets all of them
        for arm in options.arms if number % 2 == 0 else options.arms[::-1]:
            last = number == options.rounds - 1 and options.steps < 0
            runs[arm].append(run_arm(arm, options, evaluate=last))
    print(f"{machine()}; load {os.getloadavg()[2]:.1f} in the last 15 minutes; {time.ctime()}\n")
    print(table(runs))
    if set(IDENTICAL) <= set(runs):
        print(f"\n{identical(runs)}")


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    main()
