"""Exact search, metrics and hard negatives beside what others do: time, memory and whether they find the same.

    python benchmarks/search.py            # about half an hour; 8 GB of memory, 3 GB of temporary files
    python benchmarks/search.py --quick    # tiny data, one process

Embeddings are given to every arm, so that none embeds anything. Each runs in a process of its own, and what is timed is
its work alone. faiss is used where it can be imported (pip install faiss-cpu).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import Clock, apart, in_turn, peak_mib, ratios, spread, table

K = [1, 3, 5, 10, 100]
WITH_FAISS = ("faiss", "mine-faiss")
MINED = {"relative_margin": 0.05}  # as conf/negatives/hard.yaml
LAST_RANK = 30
LABELS = {
    "score-embexp": "scored by embexp",
    "score-library": "scored by sentence-transformers' InformationRetrievalEvaluator",
    "faiss": "searched by faiss IndexFlatIP, no metrics",
    "mine-embexp": "hard negatives by embexp",
    "mine-library": "hard negatives by sentence-transformers' mine_hard_negatives",
    "mine-faiss": "hard negatives by mine_hard_negatives with use_faiss",
}


def main() -> None:
    """Make the data, run every arm in turn and print the table."""
    options = parsed()
    absent = () if importlib.util.find_spec("faiss") else WITH_FAISS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        score, mine = options.score, options.mine
        make_data(folder / "score", queries=score[0], passages=score[1])
        make_data(folder / "mine", queries=mine[0], passages=mine[1])
        make_data(folder / "memory", queries=score[0], passages=options.memory)
        names = [arm for arm in LABELS if arm not in absent]
        data = {arm: folder / ("mine" if arm.startswith("mine") else "score") for arm in names}
        how = measured if options.quick else run
        found = in_turn({arm: partial(how, data[arm], arm) for arm in names}, rounds=options.rounds)
        held = run(folder / "memory", "score-embexp", memory_gib=8)
        print(report(options, found, held, folder, absent))


def run(folder: Path, arm: str, memory_gib: float | None = None) -> dict[str, Any]:
    """One arm in a process of its own."""
    return apart(__file__, "--arm", arm, str(folder), memory_gib=memory_gib)


def report(
    options: argparse.Namespace,
    found: dict[str, list[Any]],
    held: dict[str, Any],
    folder: Path,
    absent: tuple[str, ...],
) -> str:
    """The table and what is needed to read it."""
    rows = []
    for arm, rounds in found.items():
        own = "mine-embexp" if arm.startswith("mine") else "score-embexp"
        seconds, ours = ([each["seconds"] for each in part] for part in (rounds, found[own]))
        times = ratios(seconds, ours) if arm != own else ""
        agrees = agreement(folder / own.partition("-")[0], own, arm) if arm != own else ""
        rows.append([LABELS[arm], spread(seconds, 3), times, max(each["peak_mib"] for each in rounds), agrees])
    label = f"{options.memory:,} passages scored by embexp under a limit of 8 GiB"
    rows.append([label, spread([held["seconds"]], 3), "", held["peak_mib"], ""])
    (queries, passages), (mined, among) = options.score, options.mine
    head = ["", "seconds", "times embexp's", "peak MiB", "agreement"]
    missing = "faiss can't be imported here and is left out. " if absent else ""
    return (
        f"{queries:,} queries over {passages:,} passages of 384 dimensions, the first 100 of each, with 30 metrics; "
        f"one hard negative for each of {mined:,} queries among the first {LAST_RANK} of {among:,} passages, with a "
        f"relative margin of 0.05. Median and spread of {options.rounds} rounds, arms in turn, each in a process of "
        "its own. Agreement: of metrics the largest difference, of faiss the share of queries with the same passages, "
        "of negatives with the same one, where the other found any. "
        f"{missing}\n\n{table(head, rows)}"
    )


def agreement(folder: Path, own: str, arm: str) -> str:
    """Of an arm's last answer with embexp's."""
    ours, theirs = (np.load(folder / f"{name}.npz") for name in (own, arm))
    if arm == "score-library":
        shared = sorted(set(ours.files) & set(theirs.files) - {"places"})
        return f"{max(abs(float(ours[name]) - float(theirs[name])) for name in shared):.0e} in {len(shared)} metrics"
    pairs = zip(ours["places"].tolist(), theirs["places"].tolist(), strict=True)
    return f"{np.mean([set(one) == set(other) for one, other in pairs if -1 not in other]):.4f}"


def make_data(folder: Path, *, queries: int, passages: int) -> None:
    """Random unit vectors; a query is somewhat near its two relevant passages. Written in blocks, as float32."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    shape = (passages, 384)
    rows = np.lib.format.open_memmap(folder / "passages.npy", mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, passages, 10_000):
        block = rng.standard_normal((min(10_000, passages - start), 384), dtype=np.float32)
        rows[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    first = rng.integers(0, passages, queries)
    relevant = np.stack([first, (first + rng.integers(1, passages, queries)) % passages], axis=1)
    near = rows[relevant].sum(axis=1) + 0.2 * rng.standard_normal((queries, 384), dtype=np.float32)
    np.save(folder / "queries.npy", near / np.linalg.norm(near, axis=1, keepdims=True))
    np.save(folder / "relevant.npy", relevant)


# --- in a process of its own ------------------------------------------------------------------------------------------


class Given:
    """Stands for an encoder, and for a model of sentence-transformers: a text is its row's number."""

    identity, similarity_fn_name = None, "dot"

    def __init__(self, folder: Path) -> None:
        import torch
        from sentence_transformers.util import dot_score, pairwise_dot_score

        self.device = torch.device("cpu")
        self.similarity, self.similarity_pairwise = dot_score, pairwise_dot_score
        self.query_rows = np.load(folder / "queries.npy")
        self.passage_rows = np.load(folder / "passages.npy", mmap_mode="c")

    def queries(self, texts: list[str]) -> np.ndarray:
        return self.query_rows

    def passages(self, texts: list[str]) -> np.ndarray:
        return self.passage_rows

    def encode_query(self, texts: list[str], *, convert_to_tensor: bool = False, **_: Any) -> Any:
        import torch

        return torch.from_numpy(self.query_rows) if convert_to_tensor else self.query_rows

    def encode_document(self, texts: list[str], **_: Any) -> np.ndarray:
        return np.array(self.passage_rows)

    def get_embedding_dimension(self) -> int:
        return 384

    @property
    def model_card_data(self) -> Given:
        return self

    def set_evaluation_metrics(self, *_: Any) -> None:
        """Nothing is written to a card."""


def retrieval_set(folder: Path) -> Any:
    """As embexp has it: texts and ids are numbers."""
    from embexp.data.retrieval_set import RetrievalSet

    relevant = np.load(folder / "relevant.npy").tolist()
    passages = len(np.load(folder / "passages.npy", mmap_mode="r"))
    names = [str(place) for place in range(passages)]
    queries = [f"q{row}" for row in range(len(relevant))]
    qrels = {query: {names[place]: 1 for place in places} for query, places in zip(queries, relevant, strict=True)}
    return RetrievalSet(dict(zip(queries, queries, strict=True)), dict(zip(names, names, strict=True)), qrels, {})


def score_embexp(given: Given, folder: Path) -> Callable[[], dict[str, Any]]:
    """Ranking and 30 metrics."""
    from embexp.evaluation.evaluators import Retrieval
    from embexp.evaluation.search import Dense
    from embexp.rows.negatives import draw_random

    data = retrieval_set(folder)

    def work() -> dict[str, Any]:
        found = Retrieval(K)(Dense(given), data, negatives=draw_random, seed=0)  # type: ignore[arg-type]
        assert found.ranking is not None
        return {**found.metrics, "places": found.ranking.places}

    return work


def score_library(given: Given, folder: Path) -> Callable[[], dict[str, Any]]:
    """The same by the library's evaluator; map@1 has another definition there and is not compared."""
    import torch
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    data = retrieval_set(folder)
    relevant = {query: set(grades) for query, grades in data.qrels.items()}
    depths = {f"{name}_at_k": K for name in ("mrr", "ndcg", "accuracy", "precision_recall", "map")}
    evaluator = InformationRetrievalEvaluator(dict(data.queries), dict(data.corpus), relevant, **depths)
    rows = torch.from_numpy(np.array(given.passage_rows))

    def work() -> dict[str, Any]:
        found = evaluator(given, corpus_embeddings=rows)  # type: ignore[arg-type]
        return {name.removeprefix("dot_"): score for name, score in found.items() if name != "dot_map@1"}

    return work


def faiss_search(given: Given, folder: Path) -> Callable[[], dict[str, Any]]:
    """The search alone, with blocks of passages that suit it better than its default of 1,024."""
    import faiss

    faiss.cvar.distance_compute_blas_database_bs = 8192
    index = faiss.IndexFlatIP(384)
    index.add(np.array(given.passage_rows))
    return lambda: {"places": index.search(given.query_rows, min(max(K), index.ntotal))[1]}


def mine_embexp(given: Given, folder: Path) -> Callable[[], dict[str, Any]]:
    """One negative per query."""
    from embexp.rows.negatives import draw_hard

    data = retrieval_set(folder)

    def work() -> dict[str, Any]:
        drawn = draw_hard(data, per_query=1, rank_range=[1, LAST_RANK], seed=0, encoder=given, **MINED)  # type: ignore[arg-type]
        return {"places": np.array([[int(passage) for passage in passages] for passages in drawn.values()])}

    return work


def mine_library(given: Given, folder: Path, *, use_faiss: bool = False) -> Callable[[], dict[str, Any]]:
    """The same; in blocks of 4,096 queries, since those of its default take 13 GB over 200,000 passages."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    data = retrieval_set(folder)
    pairs = [(query, passage) for query, grades in data.qrels.items() for passage in grades]
    columns = {"anchor": [query for query, _ in pairs], "positive": [passage for _, passage in pairs]}
    options = {"range_max": LAST_RANK, "num_negatives": 1, "faiss_batch_size": 4096, "output_format": "n-tuple"}

    def work() -> dict[str, Any]:
        corpus = list(data.corpus.values())
        found = mine_hard_negatives(
            Dataset.from_dict(columns), given, corpus=corpus, use_faiss=use_faiss, verbose=False, **options, **MINED
        )  # type: ignore[call-overload]
        first = dict(zip(found["anchor"], found[found.column_names[-1]], strict=True))
        return {"places": np.array([[int(first.get(query, -1))] for query in data.queries])}

    return work


ARMS: dict[str, Callable[[Given, Path], Callable[[], dict[str, Any]]]] = {
    "score-embexp": score_embexp,
    "score-library": score_library,
    "faiss": faiss_search,
    "mine-embexp": mine_embexp,
    "mine-library": mine_library,
    "mine-faiss": lambda given, folder: mine_library(given, folder, use_faiss=True),
}


def measured(folder: Path, arm: str) -> dict[str, Any]:
    """Do one arm's work here, keep what it found beside its data; its time and this process's memory."""
    work = ARMS[arm](Given(folder), folder)
    clock = Clock()
    with clock:
        found = work()
    np.savez(folder / f"{arm}.npz", **found)
    return {"seconds": clock.seconds, "peak_mib": peak_mib()}


def parsed() -> argparse.Namespace:
    """Sizes as queries and passages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--score", type=int, nargs=2, metavar=("QUERIES", "PASSAGES"), default=(5000, 200_000))
    parser.add_argument("--mine", type=int, nargs=2, metavar=("QUERIES", "PASSAGES"), default=(100_000, 200_000))
    parser.add_argument("--memory", type=int, metavar="PASSAGES", default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round")
    options = parser.parse_args()
    if options.quick:
        options.score, options.mine, options.memory, options.rounds = (60, 700), (80, 500), 3000, 1
    return options


if __name__ == "__main__":
    if sys.argv[1:2] == ["--arm"]:
        print(json.dumps(measured(Path(sys.argv[3]), sys.argv[2])))
    else:
        main()
