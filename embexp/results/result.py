"""A run's result: what was measured, as result.json and the files under retrieval/. Called by `experiment`."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embexp.cache import digest
from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.durable import sync, write_whole
from embexp.evaluation.evaluators import Evaluation
from embexp.evaluation.ranking import Ranking
from embexp.evaluation.significance import Delta, Scores, compare
from embexp.results import changes
from embexp.results.keys import KEYS

if TYPE_CHECKING:
    import pandas as pd

PACKAGES = [
    "embexp",
    "sentence-transformers",
    "transformers",
    "torch",
    "datasets",
    "hydra-core",
    "numpy",
    "bm25s",
    "wandb",
]
BY_SPLIT = Mapping[str, Evaluation]  # "dev" and "test" -> what was measured on it


def empty(config: Mapping[str, Any]) -> dict[str, Any]:
    """A result with every key, as a failed run leaves it where it got no further."""
    return dict.fromkeys(KEYS) | {
        "metric": config["metric"],
        "seed": config["seed"],
        "config": dict(config),
        "versions": _versions(),
        "git": _git(),
        "notes": [],  # what a reader of the scores must know, as sentences
        "counts": {},
        "seconds": {},
        "fingerprint": {},
    }


def metrics_of(evaluations: BY_SPLIT, splits: Splits) -> dict[str, dict[str, float] | None]:
    """Split -> metric -> score; of test, over the queries that the verdict is about; null for what was not scored."""
    dev = evaluations["dev"].metrics if "dev" in evaluations else None
    test = Evaluation(judged(evaluations["test"], splits)).metrics if "test" in evaluations else None
    return {"dev": dev, "test": test}


def judged(evaluation: Evaluation, splits: Splits) -> Mapping[str, Scores]:
    """Of the queries of test that the verdict is about."""
    if len(splits.judged) == len(splits.test.queries):
        return evaluation.scores
    kept = set(splits.judged)
    return {metric: scores.of_queries(kept) for metric, scores in evaluation.scores.items()}


def compared(arms: Mapping[str, Evaluation], splits: Splits, *, metric: str) -> dict[str, Any]:
    """The keys delta, slices and verdict: tuned against base on test with intervals, as a whole and by slice.

    arms: base and bm25, and tuned unless nothing was trained; then delta and verdict are null. Of others the scores are
    among the slices'. By slice a statistic that is no mean has an interval only when it is the primary `metric`: each
    takes seconds.
    """

    def delta(part: Mapping[str, Mapping[str, Scores]], metrics: Iterable[str]) -> dict[str, Any] | None:
        return _delta(part["base"], part["tuned"], metrics, splits) if "tuned" in part else None

    slices = {}
    for name, queries in splits.slices.items():
        kept = set(queries)
        part = {arm: {m: s.of_queries(kept) for m, s in evaluation.scores.items()} for arm, evaluation in arms.items()}
        quick = [m for m, scores in part["base"].items() if scores.values is not None or m == metric]
        slices[name] = {
            **dict.fromkeys(("base", "tuned", "bm25")),
            **{arm: Evaluation(scores).metrics for arm, scores in part.items()},
            "delta": delta(part, quick),
            "queries": len(queries),
        }
    whole = {arm: judged(evaluation, splits) for arm, evaluation in arms.items()}
    deltas = delta(whole, whole["base"])
    return {"delta": deltas, "slices": slices, "verdict": Delta(**deltas[metric]).verdict if deltas else None}


def reordered(arms: Mapping[str, Evaluation], splits: Splits, *, metric: str) -> dict[str, Any]:
    """The keys of, delta and verdict of what re-ordering has changed on test: `reranked` against the arm whose passages
    it has re-ordered, tuned, or base where nothing was tuned."""
    since = "tuned" if "tuned" in arms else "base"
    before, after = (judged(arms[name], splits) for name in (since, "reranked"))
    deltas = _delta(before, after, after, splits)
    return {"of": since, "delta": deltas, "verdict": Delta(**deltas[metric]).verdict}


def _delta(
    before: Mapping[str, Scores], after: Mapping[str, Scores], metrics: Iterable[str], splits: Splits
) -> dict[str, Any]:
    document_of = {query: splits.test.document_of(query) for query in splits.test.queries}
    chosen = {name: before[name] for name in metrics}
    return {name: asdict(each) for name, each in compare(chosen, after, document_of=document_of).items()}


def fingerprint(
    splits: Splits, origin: Mapping[str, str | None], helpers: Mapping[str, Mapping[str, str | None]]
) -> dict[str, Any]:
    """What a score depends on, by content: each split's queries and qrels, the corpus, the base weights, and the models
    that helped to train (`helpers`, by the setting that names them)."""
    return {
        **data_digests(splits),
        "dataset": dict(splits.origin),
        "model": dict(origin),
        "helpers": dict(helpers),
    }


def data_digests(splits: Splits) -> dict[str, str]:
    """Of each split, train, dev and test, and of test's corpus."""
    sides = {"train": splits.train, "dev": splits.dev, "test": splits.test}
    corpora = {id(side.corpus): side.corpus for side in sides.values()}  # most often one
    digests = {key: digest(corpus) for key, corpus in corpora.items()}
    data = {
        name: digest({"queries": s.queries, "qrels": s.qrels, "corpus": digests[id(s.corpus)]})
        for name, s in sides.items()
    }
    return {**data, "corpus": digests[id(splits.test.corpus)]}


def counts(splits: Splits) -> dict[str, Any]:
    """Queries, relevant passages and passages searched per split; test queries per slice; what the source left out."""
    sides = {"train": splits.train, "dev": splits.dev, "test": splits.test}
    return {
        "queries": {name: len(side.queries) for name, side in sides.items()},
        "relevant": {name: sum(len(side.relevant(query)) for query in side.queries) for name, side in sides.items()},
        "passages": {name: len(side.corpus) for name, side in sides.items()},
        "slices": {name: len(queries) for name, queries in splits.slices.items()},
        "left_out": dict(splits.notes),
        "dimensions": None,
        "truncated": None,
        "paraphrases_dropped": None,
        "train_rows": None,
        "negatives": None,
        "masked_conflicts": None,
        "steps": None,
        "best_step": None,
    }


def write(result: Mapping[str, Any], folder: Path) -> None:
    """Write result.json so that it is whole or not there; as strict JSON, NaN and infinity are null.

    What it tells of, the model and the rankings, is on disk before.
    """
    content = json.dumps({**result, "peak_memory_mib": _peak_memory()}, default=str)
    strict = json.loads(content, parse_constant=lambda name: None)  # NaN, Infinity and -Infinity
    for made in (folder / "model", folder / "reranker", folder / "retrieval", folder / "arms"):
        if made.is_dir():
            sync(made)
    write_whole(folder / "result.json", json.dumps(strict, indent=2, allow_nan=False))


def write_retrieval(arms: Mapping[str, Evaluation], splits: Splits, folder: Path, config: Mapping[str, Any]) -> None:
    """Write test's rankings and qrels as TREC files and the scores per query as Parquet; nothing without rankings.

    config: its `metric` chooses the queries that changed most; without `report_texts` no text of a query or a passage
    is written, only ids.

    | file                | holds                                                                |
    |---------------------|----------------------------------------------------------------------|
    | <arm>.test.trec     | query-id Q0 passage-id rank score arm                                |
    | qrels.test.tsv      | query-id, corpus-id, score, with a header, as BEIR                   |
    | per_query.parquet   | a row per query: text, document, slice and <arm>.<metric>            |
    | examples.json       | the queries that changed most, their first passages, and their texts |
    """
    ranked = {name: evaluation for name, evaluation in arms.items() if evaluation.ranking is not None}
    if not ranked:
        return
    folder.mkdir(exist_ok=True)
    test = splits.test
    for name, evaluation in ranked.items():
        assert evaluation.ranking is not None
        with (folder / f"{name}.test.trec").open("w", encoding="utf-8") as file:
            file.writelines(_trec(evaluation.ranking, name))
    judged = ((query, *pair) for query in test.queries for pair in test.qrels[query].items())
    with (folder / "qrels.test.tsv").open("w", encoding="utf-8") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        file.writelines(f"{query}\t{passage}\t{grade}\n" for query, passage, grade in judged)
    frame = _per_query(ranked, test, splits.slices)
    shown = changes.examples(
        {name: arm.ranking or {} for name, arm in ranked.items()}, frame, test, metric=config["metric"]
    )
    if not config["report_texts"]:
        frame, shown = frame.assign(query=None), {**shown, "texts": {}}
    frame.to_parquet(folder / "per_query.parquet", index=False)
    (folder / "examples.json").write_text(json.dumps(shown, indent=1), encoding="utf-8")


def _trec(ranking: Ranking, tag: str) -> Iterator[str]:
    """A line at a time: those of a million queries would be gigabytes."""
    for query, hits in ranking.items():
        for rank, (passage, score) in enumerate(hits, start=1):
            yield f"{query} Q0 {passage} {rank} {score:.9g} {tag}\n"


def _per_query(arms: Mapping[str, Evaluation], test: RetrievalSet, slices: Mapping[str, Any]) -> pd.DataFrame:
    import pandas as pd  # once the scores are there

    slice_of = {query: name for name, queries in slices.items() for query in queries}
    frame: dict[str, Any] = {
        "query_id": list(test.queries),
        "query": list(test.queries.values()),
        "document": [test.document_of(query) for query in test.queries],
        "slice": [slice_of.get(query) for query in test.queries],
    }
    for arm, evaluation in arms.items():
        for metric, scores in evaluation.scores.items():
            if scores.values is not None:
                frame[f"{arm}.{metric}"] = scores.values
    return pd.DataFrame(frame)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _git() -> dict[str, Any] | None:
    """The commit of the folder that the run was started in, if it is in a repository."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "changed": bool(status.stdout.strip())}


def _peak_memory() -> int:
    """Peak resident memory of this process in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20
