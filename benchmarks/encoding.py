"""Embedding a corpus with embexp and with SentenceTransformer.encode at its defaults, in pairs, in one process.

Usage: python benchmarks/encoding.py [--texts N] [--rounds N] [--quick]

Both have the same texts, weights, precision (float32), device and number of torch's threads. The processor's seconds
stand beside the clock's: they say what was computed, whatever else the machine did.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # also for `benchmarks`, which is no package that is installed

from benchmarks.measuring import in_turn, machine, ratios, spread, table  # noqa: E402
from benchmarks.training import PUBMEDQA, source_of, splits_of  # noqa: E402

K = 10


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    start, cpu_start = time.perf_counter(), time.process_time()
    rows = work()
    return {"rows": rows, "seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu_start}


def recall(model: Any, data: Any, passages: Any) -> float:
    """recall@10 of test's queries over these passages; the queries are embedded by the library, for both alike."""
    import numpy as np

    queries = model.encode(list(data.queries.values()), normalize_embeddings=True, show_progress_bar=False)
    nearest = np.argsort(-(queries @ passages.T), axis=1, kind="stable")[:, :K]
    ids = list(data.corpus)
    found = []
    for query, places in zip(data.queries, nearest, strict=True):
        relevant = set(data.relevant(query))
        found.append(len(relevant & {ids[place] for place in places}) / len(relevant))
    return float(np.mean(found))


def measure(data: str, options: argparse.Namespace) -> list[str]:
    import numpy as np
    import torch

    from embexp.encoding import Encoder, token_lengths

    embedding_model = source_of(options.model).load([])
    model = embedding_model.model
    test = splits_of(data).test
    if options.texts:
        generator = np.random.default_rng(0)
        keep = {passage for query in list(test.queries)[: options.texts // 8] for passage in test.relevant(query)}
        others = [passage for passage in generator.permutation(list(test.corpus)).tolist() if passage not in keep]
        test = test.with_queries(list(test.queries)[: options.texts // 8])
        test = test.with_passages([*keep, *others[: max(0, options.texts - len(keep))]])
    texts = list(test.corpus.values())
    tokens = sum(min(length, model.max_seq_length) for length in token_lengths(embedding_model, texts, ""))
    arms = {
        "model.encode": lambda: timed(
            lambda: model.encode(texts, normalize_embeddings=True, show_progress_bar=False)  # as embexp's rows are
        ),
        "embexp": lambda: timed(lambda: Encoder(embedding_model).passages(texts)),
    }
    for warm in (lambda: model.encode(texts[:64]), lambda: Encoder(embedding_model).passages(texts[:64])):
        warm()
    found = in_turn(arms, rounds=options.rounds)
    theirs, ours = found["model.encode"], found["embexp"]
    difference = float(np.abs(theirs[-1]["rows"] - ours[-1]["rows"]).max())
    recalls = [recall(model, test, arm[-1]["rows"]) for arm in (theirs, ours)]
    name = "docstrings" if data.startswith("docstrings") else "PubMedQA"
    return [
        f"{name}, {len(texts)} passages, {tokens} tokens, {torch.get_num_threads()} threads",
        *(spread((run["seconds"] for run in arm), 1) for arm in (theirs, ours)),
        ratios([run["seconds"] for run in theirs], [run["seconds"] for run in ours]),
        *(spread((run["cpu"] for run in arm), 1) for arm in (theirs, ours)),
        ratios([run["cpu"] for run in theirs], [run["cpu"] for run in ours]),
        f"{difference:.0e}",
        f"{recalls[0]:.4f}, {recalls[1]:.4f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", nargs="+", default=[str(PUBMEDQA), "docstrings"], help="PubMedQA's folder, docstrings"
    )
    parser.add_argument("--model", default="minilm", help="minilm or a model's folder")
    parser.add_argument("--texts", type=int, default=0, help="at most so many passages; 0: the whole corpus")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a few texts of the standard library, one round")
    options = parser.parse_args()
    if options.quick:
        options.data, options.texts, options.rounds = ["docstrings:json"], 32, 1
    head = ["corpus", "model.encode s", "embexp s", "times as fast", "model.encode CPU s", "embexp CPU s"]
    head += ["times less CPU", "largest difference", f"recall@{K}, theirs and ours"]
    rows = [measure(data, options) for data in options.data]
    print(f"{machine()}\n\nEmbedding a corpus in float32; median (least to most) of {options.rounds} rounds.\n")
    print(table(head, rows))


if __name__ == "__main__":
    main()
