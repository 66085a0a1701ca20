"""What an adapter, LoRA and full tuning each gain over the base, in how many seconds of training.

The peer trains the linear adapter too, as sentence-transformers' own trainer does with frozen weights: each batch goes
through the base again. It has one epoch, timed in turn with embexp's, which trains on vectors that are made once.

Usage: python benchmarks/adapters.py [--data DATA] [--seeds N] [--slow-seeds N] [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import DATA_HELP, DOCSTRINGS, Clock, data_at, in_turn, name_of, run_of, spread, table

ADAPTER = ["model.adapter=linear", "trainer=adapter"]
ADAPTERS = ("linear", "mlp", "query_linear")
PEER = "linear, base in the loop (sentence-transformers), one epoch"
SLOW = {"lora": ["model.peft=lora", "trainer=lora"], "full tuning": []}
METRICS = ("recall@1", "recall@10")
HEAD = [
    "trained", "seeds", "recall@1 dev", "recall@10 dev", "recall@1 test", "recall@10 test",
    "recall@10 test, tuned - base (95 %, seed 0)", "seconds of training", "seconds an epoch",
]  # fmt: skip


def data_words(data: str) -> list[str]:
    """How `python -m embexp` is told of the data."""
    if data.startswith(DOCSTRINGS):
        return ["dataset=docstrings", *([f"dataset.packages=[{data.partition(':')[2]}]"] if ":" in data else [])]
    return ["dataset=pubmedqa", f"dataset.path={data}", "dataset.name=pqa_labeled"]


def trained(words: Sequence[str], seed: int) -> dict[str, Any]:
    """The result of a run."""
    with tempfile.TemporaryDirectory() as folder:
        return run_of([*words, f"seed={seed}"], Path(folder))


def peer(words: Sequence[str], seed: int) -> dict[str, Any]:
    """Seconds of an epoch over the same pairs with the base in the loop, and how many there are."""
    import torch
    from datasets import Dataset
    from hydra import compose, initialize_config_dir
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments as Arguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from embexp.config.checks import CONFIG_FOLDER, plain
    from embexp.config.components import build
    from embexp.data.splits import trainable
    from embexp.experiment import splits_of
    from embexp.models.adapters import layers
    from embexp.rows.shapes import to_rows

    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = plain(compose("config", [*ADAPTER, *words]))
    base = build(config["model"], allowed=[]).load([]).model.requires_grad_(False)
    whole = SentenceTransformer(modules=[*base, *layers("linear", dimensions=base.get_embedding_dimension())])
    rows = to_rows(trainable(splits_of(config)), "pair", negatives=None, seed=seed)
    same = ("per_device_train_batch_size", "learning_rate", "warmup_steps", "lr_scheduler_type", "weight_decay")
    with tempfile.TemporaryDirectory() as folder:
        arguments = Arguments(
            folder, num_train_epochs=1, seed=seed, report_to="none", save_strategy="no", logging_strategy="no",
            use_cpu=not torch.cuda.is_available(), **{name: config["trainer"][name] for name in same},
        )  # fmt: skip
        trainer = SentenceTransformerTrainer(
            whole, arguments, Dataset.from_dict(dict(rows.columns)), loss=MultipleNegativesRankingLoss(whole)
        )
        clock = Clock()
        with clock, contextlib.redirect_stdout(sys.stderr):
            trainer.train()
    return {"epoch": clock.seconds, "rows": len(rows)}


def fewer(arm: Callable[[int], Any], *, times: int) -> Callable[[], Any]:
    """The arm with seeds 0, 1, ...; None from the `times`-th call on."""
    seeds = iter(range(times))

    def call() -> Any:
        seed = next(seeds, None)
        return None if seed is None else arm(seed)

    return call


def line(name: str, runs: Sequence[dict[str, Any]], *, arm: str = "tuned") -> list[Any]:
    """A line of the table: medians over seeds, the interval of seed 0's difference, seconds of training."""
    scores = [spread((run[arm][side][metric] for run in runs), 3) for side in ("dev", "test") for metric in METRICS]
    if arm == "base":
        return [name, len(runs), *scores, "", "", ""]
    delta = runs[0]["delta"]["recall@10"]
    interval = f"{delta['absolute']:+.3f} ({delta['ci_low']:+.3f} to {delta['ci_high']:+.3f})"
    seconds = [run["seconds"]["training"] for run in runs]
    epochs = [run["config"]["trainer"]["num_train_epochs"] for run in runs]
    each = [whole / number for whole, number in zip(seconds, epochs, strict=True)]
    return [name, len(runs), *scores, interval, spread(seconds, 1), spread(each, 2)]


def report(name: str, words: Sequence[str], *, seeds: int, slow_seeds: int) -> None:
    """Measure all arms in turn and print the table."""
    slow = {name: more for name, more in SLOW.items() if name != "lora" or importlib.util.find_spec("peft")}
    chosen = {name: [f"model.adapter={name}", "trainer=adapter"] for name in ADAPTERS} | slow
    arms: dict[str, Callable[[], Any]] = {
        name: fewer(lambda seed, more=more: trained([*more, *words], seed), times=slow_seeds if name in slow else seeds)
        for name, more in chosen.items()
    }
    arms[PEER] = fewer(partial(peer, words), times=slow_seeds)
    found = in_turn(arms, rounds=max(seeds, slow_seeds))
    done = {name: [run for run in runs if run is not None] for name, runs in found.items()}
    loop = done.pop(PEER)
    lines = [line("nothing (base)", done["linear"][:1], arm="base"), *(line(name, runs) for name, runs in done.items())]
    seconds = spread((run["epoch"] for run in loop), 1)
    lines.append([PEER, len(loop), *[""] * 5, seconds, seconds])
    counts = done["linear"][0]["counts"]
    print(
        f"{name}: {counts['train_rows']:,} rows to train on, {counts['queries']['dev']} questions of dev, "
        f"{counts['queries']['test']} of test. Medians (least to most) over seeds. Training is with its looks at dev; "
        "the base's embeddings of all texts, which an adapter is trained on, are made before it, for the base's scores."
        + ("" if "lora" in done else " Without peft there is no line of LoRA.")
        + "\n"
    )
    print(table(HEAD, lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=data_at, default=DOCSTRINGS, help=DATA_HELP)
    parser.add_argument("--seeds", type=int, default=3, help="of each adapter (3)")
    parser.add_argument("--slow-seeds", type=int, default=1, help="of LoRA, full tuning and the peer (1)")
    parser.add_argument("--quick", action="store_true", help="a model of 32 dimensions, few questions, one seed")
    options = parser.parse_args()
    if not options.quick:
        words = data_words(options.data)
        report(name_of(options.data), words, seeds=options.seeds, slow_seeds=options.slow_seeds)
        return
    from tests.tiny import tiny_transformer

    with tempfile.TemporaryDirectory() as folder:
        model = str(tiny_transformer(Path(folder, "tiny")))
        small = ["dataset.packages=[json,logging,email]", "paraphrase=null", "trainer.num_train_epochs=2"]
        words = [*data_words(DOCSTRINGS), *small, "model=local", f"model.path={model}"]
        report("docstrings of three packages", words, seeds=1, slow_seeds=1)


if __name__ == "__main__":
    main()
