"""Embedding a corpus with embexp and with SentenceTransformer.encode at its defaults, in pairs, in one process.

Usage: python benchmarks/encoding.py [--data FOLDER|docstrings ...] [--texts N] [--rounds N] [--quick]

Both have the same texts, weights, precision (float32), device and number of torch's threads. The processor's seconds
stand beside the clock's: they say what was computed, whatever else the machine did.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import (
    DATA_HELP,
    DOCSTRINGS,
    Clock,
    data_at,
    in_turn,
    name_of,
    ratios,
    source_of,
    splits_of,
    spread,
    table,
)

K = 10


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    clock = Clock()
    with clock:
        rows = work()
    return {"rows": rows, "seconds": clock.seconds, "cpu": clock.cpu_seconds}


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


def cut_to(test: Any, passages: int) -> Any:
    """About so many random passages, with the first queries and all that is relevant to them."""
    import numpy as np

    test = test.with_queries(list(test.queries)[: passages // 8])
    keep = {passage for query in test.queries for passage in test.relevant(query)}
    others = np.random.default_rng(0).permutation(list(test.corpus)).tolist()
    return test.with_passages(list(dict.fromkeys([*sorted(keep), *others]))[: max(len(keep), passages)])


def measure(data: str, options: argparse.Namespace) -> list[str]:
    import numpy as np
    import torch

    from embexp.encoding.encoder import Encoder
    from embexp.encoding.tokens import lengths

    embedding_model = source_of(options.model).load([])
    model = embedding_model.model
    test = splits_of(data).test
    if 0 < options.texts < len(test.corpus):
        test = cut_to(test, options.texts)
    texts = list(test.corpus.values())
    tokens = int(lengths(embedding_model, texts, "").sum())
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
    return [
        f"{name_of(data)}, {len(texts)} passages, {tokens} tokens, {torch.get_num_threads()} threads",
        *(spread((run["seconds"] for run in arm), 1) for arm in (theirs, ours)),
        ratios([run["seconds"] for run in theirs], [run["seconds"] for run in ours]),
        *(spread((run["cpu"] for run in arm), 1) for arm in (theirs, ours)),
        ratios([run["cpu"] for run in theirs], [run["cpu"] for run in ours]),
        f"{difference:.0e}",
        f"{recalls[0]:.4f}, {recalls[1]:.4f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=data_at, default=[DOCSTRINGS], help=DATA_HELP)
    parser.add_argument("--model", default="minilm", help="minilm or a model's folder")
    parser.add_argument("--texts", type=int, default=800, help="about so many passages; 0: the whole corpus")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a few texts of the standard library, one round")
    options = parser.parse_args()
    if options.quick:
        options.data, options.texts, options.rounds = [f"{DOCSTRINGS}:json"], 32, 1
    head = ["corpus", "model.encode s", "embexp s", "times as fast", "model.encode CPU s", "embexp CPU s"]
    head += ["times less CPU", "largest difference", f"recall@{K}, theirs and ours"]
    rows = [measure(data, options) for data in dict.fromkeys(options.data)]
    print(f"Embedding a corpus in float32; median (least to most) of {options.rounds} rounds.\n")
    print(table(head, rows))


if __name__ == "__main__":
    main()
