"""What a reranker trained on the same questions adds to MiniLM, tuned or not, and what training and asking it cost.

The peer is sentence-transformers' own way: its CrossEncoderTrainer with its default batches, and CrossEncoder.predict.
It trains on the same pairs and scores the same passages, timed in turn with embexp's.

Usage: python benchmarks/reranker.py [--data DATA] [--seeds N] [--rounds N] [--pairs N] [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.adapters import data_words
from benchmarks.measuring import (
    DATA_HELP,
    DOCSTRINGS,
    Clock,
    data_at,
    in_turn,
    name_of,
    ratios,
    run_of,
    spread,
    table,
)

METRICS = ("recall@1", "recall@10", "ndcg@10")
HEAD = [
    "searched and re-ordered by", "seeds", *(f"{metric} on {side}" for side in ("dev", "test") for metric in METRICS),
    "ndcg@10 on test, with - without (95 %, seed 0)", "seconds of training", "seconds of scoring",
]  # fmt: skip
SPEED = ["what is timed", "rounds", "embexp, seconds", "sentence-transformers, seconds", "the latter / the former"]


def trained(words: Sequence[str], seed: int) -> dict[str, Any]:
    """The result of a run with a reranker."""
    with tempfile.TemporaryDirectory() as folder:
        return run_of([*words, "reranker=trained", f"seed={seed}"], Path(folder))


def line(name: str, runs: Sequence[dict[str, Any]], *, arm: str) -> list[Any]:
    """A line of the first table: medians over seeds; of a reranker the difference, and the seconds that it took."""
    scores = [spread((run[arm][side][metric] for run in runs), 3) for side in ("dev", "test") for metric in METRICS]
    if arm != "reranker":
        training = spread((run["seconds"]["training"] for run in runs), 0) if arm == "tuned" else ""
        return [name, len(runs), *scores, "", training, ""]
    delta = runs[0]["reranker"]["delta"]["ndcg@10"]
    interval = f"{delta['absolute']:+.3f} ({delta['ci_low']:+.3f} to {delta['ci_high']:+.3f})"
    seconds = [spread((run["seconds"][stage] for run in runs), 0) for stage in ("reranker", "reranked")]
    return [name, len(runs), *scores, interval, *seconds]


class Pairs:
    """What both sides train on and score: pairs of a data set, and the folder of the model that both start from."""

    def __init__(self, words: Sequence[str], *, count: int) -> None:
        """count: pairs that are trained on, and so many that are scored."""
        from hydra import compose, initialize_config_dir

        from embexp.config.checks import CONFIG_FOLDER, plain
        from embexp.config.components import build
        from embexp.data.splits import trainable
        from embexp.experiment import splits_of
        from embexp.rows.negatives import draw_random
        from embexp.rows.shapes import to_rows

        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            self.config = plain(compose("config", [*words, "reranker=trained"]))
        self.start = build(self.config["model"], allowed=[], without=["kind"]).folder
        splits = splits_of(self.config)
        data = trainable(splits)
        queries = list(data.queries)[: max(2, count // 5)]
        self.data = data.with_queries(queries)
        self.rows = to_rows(self.data, "labelled_pair", negatives=partial(draw_random, per_query=4), seed=0)
        asked = list(splits.test.queries.values())
        passages = list(splits.test.corpus.values())
        self.scored = [(asked[n % len(asked)], passages[n * 7 % len(passages)]) for n in range(count)]

    def settings(self) -> Any:
        """conf/reranker/trained.yaml for one epoch without looks at dev."""
        from embexp.config.components import build

        return build({**self.config["reranker"], "num_train_epochs": 1}, allowed=[])


def own_training(pairs: Pairs) -> float:
    """Seconds of embexp's training."""
    from embexp.reranking.training import Looks, train

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, clock:
        train(
            pairs.start, pairs.rows, pairs.data, pairs.settings(), looks=Looks(lambda model: 0.0, 0, ""), seed=0,
            bfloat16=False, to=Path(folder),
        )  # fmt: skip
    return clock.seconds


def librarys_training(pairs: Pairs) -> float:
    """Seconds of the library's, with the same arguments where it has them, loading and saving included as above."""
    import torch
    from datasets import Dataset
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    from embexp.models.facts import dropouts

    names = ("num_train_epochs", "per_device_train_batch_size", "learning_rate", "warmup_steps", "weight_decay")
    same = {name: getattr(pairs.settings(), name) for name in names}
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr), clock:
        model = CrossEncoder(str(pairs.start), num_labels=1, local_files_only=True)
        for module, attribute in dropouts(model):
            setattr(module, attribute, 0.0)
        arguments = CrossEncoderTrainingArguments(
            folder, seed=0, report_to="none", save_strategy="no", logging_strategy="no",
            use_cpu=not torch.cuda.is_available(), **same,
        )  # fmt: skip
        data = Dataset.from_dict(dict(pairs.rows.columns))
        CrossEncoderTrainer(model, arguments, data, loss=BinaryCrossEntropyLoss(model)).train()
        model.save_pretrained(folder, create_model_card=False)
    return clock.seconds


def scoring(pairs: Pairs) -> dict[str, Callable[[], Any]]:
    """Both ways to score the pairs with one model."""
    from sentence_transformers import CrossEncoder

    from embexp.reranking.pair_scores import pair_scores

    model = CrossEncoder(str(pairs.start), num_labels=1, local_files_only=True)

    def timed(score: Callable[[], Any]) -> float:
        clock = Clock()
        with clock:
            score()
        return clock.seconds

    return {
        "embexp": lambda: timed(lambda: pair_scores(model, pairs.scored, progress=None)),
        "library": lambda: timed(lambda: model.predict(pairs.scored, show_progress_bar=False)),
    }


def speed(what: str, arms: Mapping[str, Callable[[], Any]], *, rounds: int) -> list[Any]:
    """A line of the second table."""
    found = in_turn(arms, rounds=rounds)
    own, library = found["embexp"], found["library"]
    return [what, rounds, spread(own, 1), spread(library, 1), ratios(library, own)]


def report(name: str, words: Sequence[str], *, seeds: int, rounds: int, count: int) -> None:
    """Measure and print both tables."""
    lines = []
    for first, more in {"base": ["trainer=none"], "tuned": []}.items():
        runs = [trained([*more, *words], seed) for seed in range(seeds)]
        lines += [line(first, runs, arm=first), line(f"{first} + reranker", runs, arm="reranker")]
    counts, found = runs[0]["counts"], runs[0]["reranker"]
    print(
        f"{name}: {counts['queries']['train']:,} questions to train on, {counts['queries']['dev']} of dev, "
        f"{counts['queries']['test']} of test; {found['pairs']:,} pairs; the first {found['depth']} passages "
        "are put in another order. Medians (least to most) over seeds. Training is with its looks at dev and the "
        "mining of its negatives; scoring is of dev and test.\n"
    )
    print(table(HEAD, lines))
    pairs = Pairs(words, count=count)
    arms = {"embexp": partial(own_training, pairs), "library": partial(librarys_training, pairs)}
    shown = [
        speed(f"training on {len(pairs.rows):,} pairs, one epoch", arms, rounds=rounds),
        speed(f"scoring {len(pairs.scored):,} pairs", scoring(pairs), rounds=rounds),
    ]
    print("\nThe same pairs, batch, steps and model on both sides, in turn; loading and saving are in the training.\n")
    print(table(SPEED, shown))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=data_at, default=DOCSTRINGS, help=DATA_HELP)
    parser.add_argument("--seeds", type=int, default=1, help="of each run (1)")
    parser.add_argument("--rounds", type=int, default=3, help="of what is timed in turn (3)")
    parser.add_argument("--pairs", type=int, default=1000, help="that are timed in turn (1000)")
    parser.add_argument("--quick", action="store_true", help="a model of 32 dimensions, few questions, one round")
    options = parser.parse_args()
    if not options.quick:
        words = data_words(options.data)
        report(name_of(options.data), words, seeds=options.seeds, rounds=options.rounds, count=options.pairs)
        return
    from tests.tiny import tiny_transformer

    with tempfile.TemporaryDirectory() as folder:
        model = str(tiny_transformer(Path(folder, "tiny")))
        small = ["dataset.packages=[json,logging,email]", "limit=10", "paraphrase=null", "reranker.depth=10"]
        words = [*data_words(DOCSTRINGS), *small, "model=local", f"model.path={model}"]
        report("docstrings of three packages", words, seeds=1, rounds=1, count=20)


if __name__ == "__main__":
    main()
