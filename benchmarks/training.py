"""Rows per second of one epoch with embexp and with a plain sentence-transformers script, in turn, in one run.

Usage: python benchmarks/training.py [--data FOLDER|docstrings] [--rounds N] [--steps N] [--arms NAME ...] [--quick]

Each arm trains in a process of its own on the same rows with the same learning rate, warm-up and seed; only the
training is timed, and no arm looks at dev. The processor's own seconds stand beside the clock's: they say whether the
machine was shared. Each arm's weights are then measured on the same test set.

Two more arms have identical settings: the library's trainer with embexp's batches, attention and dropout, one pass for
each column, and embexp with the same (its parts are off). What the second takes longer is what the framework costs.
Useful arithmetic is 6 x parameters x real tokens (those of tables of vectors and padding left out), beside the matrix
product of this machine, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import (
    DATA_HELP,
    DOCSTRINGS,
    LENGTH,
    Measured,
    apart,
    conf,
    data_at,
    in_turn,
    name_of,
    product,
    ratios,
    source_of,
    splits_of,
    spread,
    table,
)

ARMS = ("plain", "plain bf16", "embexp")
IDENTICAL = ("library, identical", "embexp, identical")
BATCH, LEARNING_RATE, WARMUP, SEED = 64, 5e-5, 0.1, 0
HEAD = ("arm", "rows/s", "seconds", "CPU seconds", "times plain's rows/s", "real share of tokens", "peak MiB")
HEAD += ("recall@10", "delta to plain (95 % interval)", "useful GFLOP/s", "share of float32's, bf16's product")


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

    from embexp.training.fine_tuning import sampler_of, training_attention

    embedding_model = source.load([])
    model = embedding_model.model
    sampler = sampler_of(
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
    with column_merging_disabled(), training_attention(embedding_model):
        trainer.train()
    return model


def train_embexp(rows: Any, train_set: Any, source: Any, folder: Path, *, steps: int) -> Any:
    from embexp.tracking import Tracker
    from embexp.training.fine_tuning import OURS, Task, train

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

    from embexp.training.trainer import Trainer

    Trainer._parts = lambda self: nullcontext()  # type: ignore[method-assign]


def weights_that_multiply(model: Any) -> int:
    """The parameters of a model but for its tables of vectors."""
    import torch

    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    return sum(weights.numel() for weights in model.parameters()) - sum(table.weight.numel() for table in tables)


def trained_as(arm: str, rows: Any, train_set: Any, source: Any, folder: Path, *, steps: int) -> Any:
    if arm == IDENTICAL[1]:
        without_parts()
    if arm in ("embexp", IDENTICAL[1]):
        return train_embexp(rows, train_set, source, folder, steps=steps)
    if arm == IDENTICAL[0]:
        return train_identical(rows, train_set, source, folder, steps=steps)
    return train_plain(rows, source, folder, bf16=arm == "plain bf16", steps=steps)


def one(arm: str, data: str, model: str, steps: int) -> dict[str, Any]:
    """Train one arm, then measure its weights on test with embexp's evaluator, in float32."""
    from embexp import libraries
    from embexp.data.splits import trainable
    from embexp.encoding.encoder import Encoder
    from embexp.evaluation.evaluators import Retrieval
    from embexp.evaluation.search import Dense
    from embexp.models.embedding_model import Transformer
    from embexp.rows.negatives import draw_random
    from embexp.rows.shapes import to_rows

    libraries.loaded()
    libraries.quiet("bm25s")
    logging.disable(logging.INFO)
    splits = splits_of(data)
    train_set, source = trainable(splits), source_of(model)
    rows = to_rows(train_set, "pair", negatives=draw_random, seed=SEED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Measured() as measured:
            trained = trained_as(arm, rows, train_set, source, folder, steps=steps)
        found: dict[str, Any] = {**measured.counts, "rows": measured.counts["texts"] // 2}
        found["useful"] = 6 * weights_that_multiply(trained) * found["real"] / 1e9
        found |= {dtype: product(dtype) / 1e9 for dtype in ("float32", "bfloat16")}
        if steps < 0:
            trained.save_pretrained(str(folder / "model"), create_model_card=False)
            weights = Transformer(path=str(folder / "model"), dtype="float32")
            result = Retrieval([10])(Dense(Encoder(weights.load([]))), splits.test, negatives=draw_random, seed=SEED)
            scores = result.scores["recall@10"]
            assert scores.values is not None
            found["recall"] = dict(zip(scores.query_ids, scores.values.tolist(), strict=True))
            found["document_of"] = {query: splits.test.document_of(query) for query in scores.query_ids}
    return found


def delta(first: dict[str, Any], other: dict[str, Any]) -> str:
    import numpy as np

    from embexp.evaluation.significance import Scores, compare

    pair = (first["recall"], other["recall"])
    scores = [{"recall@10": Scores(list(each), np.asarray(list(each.values())))} for each in pair]
    found = compare(scores[0], scores[1], document_of=first["document_of"], seed=SEED)["recall@10"]
    return f"{found.absolute:+.3f} ({found.ci_low:+.3f} to {found.ci_high:+.3f})"


def rows_of(runs: dict[str, list[dict[str, Any]]]) -> list[list[Any]]:
    """A row per arm: medians over the rounds, rows per second against plain's round by round, the last's recall."""
    speeds = {arm: [run["rows"] / run["seconds"] for run in found] for arm, found in runs.items()}
    first = "plain" if "plain" in runs else next(iter(runs))
    rows = []
    for arm, found in runs.items():
        last = found[-1]
        recall, change = "", ""
        if "recall" in last:
            recall = f"{statistics.mean(last['recall'].values()):.3f} ({len(last['recall'])} queries)"
            change = delta(runs[first][-1], last) if arm != first else ""
        rows.append([
            arm, spread(speeds[arm]), spread((run["seconds"] for run in found), 0),
            spread((run["cpu_seconds"] for run in found), 0), ratios(speeds[arm], speeds[first]),
            f"{last['real'] / last['padded']:.2f}", max(run["mib"] for run in found), recall, change,
            *arithmetic(found),
        ])  # fmt: skip
    return rows


def arithmetic(found: list[dict[str, Any]]) -> list[str]:
    """Useful operations, and their share of the products measured in the same process."""
    rates = [run["useful"] / run["seconds"] for run in found]
    shares = [
        statistics.median(rate / run[kind] for rate, run in zip(rates, found, strict=True))
        for kind in ("float32", "bfloat16")
    ]
    return [f"{statistics.median(rates):.3g}", f"{shares[0]:.2f}, {shares[1]:.2f}"]


def identical(runs: dict[str, list[dict[str, Any]]]) -> str:
    """What embexp takes beyond the library at identical settings, by round."""
    theirs, ours = (runs[arm] for arm in IDENTICAL)
    costs = {
        kind: ", ".join(f"{one[kind] / other[kind] - 1:+.1%}" for one, other in zip(ours, theirs, strict=True))
        for kind in ("seconds", "cpu_seconds")
    }
    return f"At identical settings embexp takes {costs['seconds']} (CPU seconds {costs['cpu_seconds']}), by round."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=data_at, help=DATA_HELP)
    parser.add_argument("--model", default="minilm", help="minilm or a model's folder")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=-1, help="the first steps only, without recall")
    parser.add_argument("--arms", nargs="+", choices=(*ARMS, *IDENTICAL), default=(*ARMS, *IDENTICAL))
    parser.add_argument("--quick", action="store_true", help="two steps of the plain script and of embexp")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.data, options.steps = f"{DOCSTRINGS}:json", 2
    if options.data is None:
        print("no --data FOLDER with a copy of PubMedQA: these are the docstrings instead", file=sys.stderr)
        options.data = DOCSTRINGS
    if options.one:
        print(json.dumps(one(options.one, options.data, options.model, options.steps)))
        return
    words = ["--data", options.data, "--model", options.model, "--steps", str(options.steps)]
    arms = {arm: partial(apart, __file__, "--one", arm, *words) for arm in options.arms}
    runs = in_turn(arms, rounds=options.rounds)
    rows = next(iter(runs.values()))[-1]["rows"]
    print(f"{name_of(options.data)}, {rows} rows in batches of {BATCH}; median (least to most) of {options.rounds}.\n")
    print(table(HEAD, rows_of(runs)))
    if set(IDENTICAL) <= set(runs):
        print(f"\n{identical(runs)}")


if __name__ == "__main__":
    main()
