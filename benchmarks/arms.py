"""Every arm of experiment=arms on one data set: what it scores, what it costs, which one the run names.

The peers are sentence-transformers' own: its ReciprocalRankFusionEvaluator fuses the same two rankings, and its
encode_query with semantic_search answers the same questions over the same vectors, each in turn with embexp's.

Usage: python benchmarks/arms.py [--data DATA] [--reranker NAME] [--rounds N] [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import DATA_HELP, DOCSTRINGS, data_at, in_turn, name_of, ratios, run_of, table

HEAD = [
    "arm", "recall@1", "recall@10 dev", "recall@10", "minus base (95 %)", "minus the best on dev (95 %)",
    "ms a question", "MiB of index", "s to index", "s to train",
]  # fmt: skip
DEEP = 100  # passages of each ranking that are fused
METRIC = "recall@10"


def data_words(data: str) -> list[str]:
    """How `python -m embexp` is told of the data."""
    if data.startswith(DOCSTRINGS):
        return ["dataset=docstrings", *([f"dataset.packages=[{data.partition(':')[2]}]"] if ":" in data else [])]
    return ["dataset=pubmedqa", f"dataset.path={data}", "dataset.name=pqa_labeled"]


def lines(result: Mapping[str, Any]) -> list[list[Any]]:
    """A line an arm."""
    from embexp.arms.shown import change, names

    found = []
    for name, arm in result["arms"].items():
        cost = [f"{arm['cost'][key]:.1f}" for key in ("query_ms", "index_mib", "index_s", "training_s")]
        scores = [arm["test"]["recall@1"], arm["dev"][METRIC], arm["test"][METRIC]]
        changes = [change(arm[key], METRIC) for key in ("delta", "against_best")]
        found.append([names(result)[name], *(f"{score:.3f}" for score in scores), *changes, *cost])
    return found


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what it returns."""
    start = time.perf_counter()
    returned = call()
    return time.perf_counter() - start, returned


def fusing(splits: Any, folder: Path, *, rounds: int) -> str:
    """Both fuse the run's rankings of BM25 and of the tuned model, and score them; embexp's seconds over the peer's."""
    import numpy as np
    from sentence_transformers.sparse_encoder.evaluation import ReciprocalRankFusionEvaluator

    from embexp.evaluation.evaluators import Retrieval
    from embexp.evaluation.ranking import NEVER, Ranking
    from embexp.evaluation.search import fused

    test, places = splits.test, {passage: place for place, passage in enumerate(splits.test.corpus)}
    ranked: dict[str, dict[str, list[str]]] = {arm: {query: [] for query in test.queries} for arm in ("tuned", "bm25")}
    for arm, of_query in ranked.items():
        for line in (folder / "retrieval" / f"{arm}.test.trec").read_text(encoding="utf-8").splitlines():
            query, _, passage, *_ = line.split()
            of_query[query].append(passage)

    def as_ranking(of_query: Mapping[str, Sequence[str]]) -> Ranking:
        found = np.full((len(of_query), DEEP), -1)
        for row, passages in enumerate(of_query.values()):
            found[row, : len(passages)] = [places[passage] for passage in passages]
        scores = np.full(found.shape, NEVER, dtype=np.float32)
        return Ranking(list(of_query), list(places), found, scores, scores[:, 0])

    first, second = as_ranking(ranked["tuned"]), as_ranking(ranked["bm25"])
    samples = {
        arm: [
            {"query_id": query, "query": query, "positive": test.relevant(query), "documents": passages}
            for query, passages in of_query.items()
        ]
        for arm, of_query in ranked.items()
    }

    def own() -> tuple[float, Any]:
        return timed(lambda: Retrieval([10]).measured(fused(first, second, top=DEEP), test).metrics["mrr@10"])

    def peer() -> tuple[float, Any]:
        evaluator = ReciprocalRankFusionEvaluator(samples["tuned"], samples["bm25"], at_k=10, write_csv=False)
        return timed(lambda: evaluator()["mrr@10"])

    found = in_turn({"embexp": own, "peer": peer}, rounds=rounds)
    mine, its = ([seconds for seconds, _ in found[name]] for name in found)
    scores = {name: each[0][1] for name, each in found.items()}
    return (
        f"Fused and scored by sentence-transformers' ReciprocalRankFusionEvaluator the tuned model's hybrid has mrr@10 "
        f"{scores['peer']:.4f}, by embexp {scores['embexp']:.4f}, in {ratios(mine, its)} of its time."
    )


def answering(splits: Any, folder: Path, *, rounds: int) -> str:
    """Single questions to the tuned model, by both in turn; embexp's seconds over the peer's."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import semantic_search

    from embexp.arms.costs import FOUND, KeywordIndex, Serving, _finder
    from embexp.encoding.encoder import Encoder
    from embexp.models.embedding_model import Transformer

    texts, questions = list(splits.test.corpus.values())[:2000], list(splits.test.queries.values())
    model = Transformer(path=str(folder / "model")).load([])
    vectors = Encoder(model).passages(texts)
    find = _finder(Serving(model), KeywordIndex(dict(enumerate(texts))), texts, vectors)  # type: ignore[arg-type]
    library, rows = SentenceTransformer(str(folder / "model"), device="cpu"), torch.from_numpy(vectors.copy())
    asked = iter(questions * (1 + 4 * rounds // len(questions)))
    pair = [next(asked)]

    def own() -> tuple[float, Any]:
        return timed(lambda: find(pair[0], FOUND))

    def peer() -> tuple[float, Any]:
        found = timed(
            lambda: semantic_search(library.encode_query([pair[0]], convert_to_tensor=True), rows, top_k=FOUND)
        )
        pair[0] = next(asked)
        return found

    for call in (own, peer):
        call()  # warm
    found = [(own()[0], peer()[0]) for _ in range(rounds)]
    return (
        f"A question to the tuned model takes embexp {ratios(*zip(*found, strict=True))} of the time of encode_query "
        f"and semantic_search ({1000 * statistics.median(its for _, its in found):.1f} ms); {len(found)} questions."
    )


def report(name: str, words: Sequence[str], *, rounds: int, questions: int) -> None:
    """Run the experiment, then the peers on what it left, and print the table."""
    from hydra import compose, initialize_config_dir

    from embexp.config.checks import CONFIG_FOLDER, plain
    from embexp.experiment import splits_of
    from embexp.reporting.report import at_the_end

    with tempfile.TemporaryDirectory() as folder:
        result = run_of(["experiment=arms", *words], Path(folder))
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            splits = splits_of(plain(compose("config", ["experiment=arms", *words])))
        peers = [fusing(splits, Path(folder), rounds=rounds), answering(splits, Path(folder), rounds=questions)]
    print(at_the_end(result), file=sys.stderr)
    from embexp.arms.shown import costs_line, sentences

    counts = result["counts"]
    print(
        f"{name}: {counts['train_rows']:,} rows to train on, {counts['queries']['dev']} questions of dev, "
        f"{counts['queries']['test']} of test; one seed. The arms without dev in their heading are on test.\n"
    )
    print(table(HEAD, lines(result)))
    print("\n" + " ".join([costs_line(result), *(line.replace("**", "") for line in sentences(result)), *peers]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=data_at, default=DOCSTRINGS, help=DATA_HELP)
    parser.add_argument("--reranker", default="trained", help="a file of conf/reranker (trained)")
    parser.add_argument("--rounds", type=int, default=5, help="of fusing by each (5)")
    parser.add_argument("--quick", action="store_true", help="a model of 32 dimensions, few questions, few steps")
    options = parser.parse_args()
    if not options.quick:
        words = [*data_words(options.data), f"reranker={options.reranker}"]
        report(name_of(options.data), words, rounds=options.rounds, questions=30)
        return
    from tests.tiny import tiny_transformer

    with tempfile.TemporaryDirectory() as folder:
        model = str(tiny_transformer(Path(folder, "tiny")))
        small = ["dataset.packages=[json,logging,email]", "paraphrase=null", "trainer=smoke", "limit=60"]
        few = ["reranker.num_train_epochs=0.1", "reranker.depth=5", "adapter_arm.num_train_epochs=2"]
        words = [*data_words(DOCSTRINGS), *small, *few, "model=local", f"model.path={model}"]
        report("docstrings of three packages", words, rounds=2, questions=4)


if __name__ == "__main__":
    main()
