"""Can the verdict be trusted? Measures embexp's search, metrics, intervals and leak guards where the truth is known.

    python benchmarks/trust.py [<folder of PubMedQA>]

Prints Markdown tables: coverage of the intervals, planted leaks, A/A comparisons. About four minutes of
one CPU core (twelve where others use it), and some more the first time, when texts are embedded (kept in the cache).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.reworded import MODERATE, NEAR_MISS, STRONG
from embexp import cache
from embexp.config.checks import CONFIG_FOLDER
from embexp.config.components import build
from embexp.data.copies import near_duplicates
from embexp.data.leaks import refuse_leaks
from embexp.data.paraphrases import centred, common_mean, similar
from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.data.splits import NEAR_COPIES
from embexp.encoding.encoder import Encoder
from embexp.errors import UserError
from embexp.evaluation import significance
from embexp.evaluation.evaluators import graded
from embexp.evaluation.metrics import ndcg, recall
from embexp.evaluation.search import nearest
from embexp.evaluation.significance import Scores, compare
from embexp.models.embedding_model import EmbeddingModel

NOISE = 300  # noisy copies for each kind of noise
DRAWS = 1000  # of the bootstrap here; a run draws 10,000
SIMULATIONS = {20: 600, 50: 600, 120: 500, 500: 160}  # documents -> simulated test sets
SIZES = [60, 200, 500]
NEAR_DUPLICATE = 0.9  # conf/dataset/*.yaml
THRESHOLDS = [0.75, 0.8, 0.85, 0.9, 0.95]


def main() -> None:
    """Print the three parts."""
    start = time.monotonic()
    significance.DRAWS_OF_MEANS = DRAWS
    model = configured("model/minilm").load([])
    splits = configured("dataset/docstrings")
    coverage()
    real = {"docstrings": splits}
    if len(sys.argv) > 1:
        real["PubMedQA labeled"] = configured("dataset/pubmedqa", path=sys.argv[1])
    with cache.kept_in(cache.default_folder()):
        planted_leaks(model, real)
        queries, passages = embedded(model, splits.test.queries), embedded(model, splits.test.corpus)
        same_model(splits.test, queries, passages)
    print(f"\n{time.monotonic() - start:.0f} s")


def configured(file: str, **changes: Any) -> Any:
    """What a file in conf/ makes."""
    node = OmegaConf.to_container(OmegaConf.load(CONFIG_FOLDER / f"{file}.yaml"))
    assert isinstance(node, dict)
    return build({**node, **changes}, allowed=[])


def embedded(model: EmbeddingModel, texts: Mapping[str, str]) -> np.ndarray:
    """One row per text, kept between calls."""
    parts = [model.origin, cache.digest(list(texts.values()))]
    make = lambda: {"rows": Encoder(model, progress="embedding").queries(list(texts.values()))}  # noqa: E731
    return cache.arrays_kept("trust", parts, make)["rows"]


# --- the same model twice --------------------------------------------------------------------------------------------


def same_model(test: RetrievalSet, queries: np.ndarray, passages: np.ndarray) -> None:
    """A/A: copies that differ by noise alone.

    Copy against copy is the fair test: both have the same law, so neither is better. Base against copy is one only
    while the noise costs nothing, so its mean delta stands beside.
    """
    print(f"## The same model twice\n\nrecall@10 and ndcg@10 on docstrings, {len(test.queries)} test queries on")
    print(
        f"{len(set(map(test.document_of, test.queries)))} documents; a smaller test set is drawn anew for each copy.\n"
    )
    print("| compared | noise | metric | queries | pairs | better | worse | called different | mean delta |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|")
    rng = np.random.default_rng(0)
    base = scored(test, queries, passages)
    for kind, size in (
        ("base and copy", 0.004),
        ("copy and copy", 0.05),
        ("copy and copy", 0.3),
    ):
        copies = (scored(test, noisy(queries, size, rng), noisy(passages, size, rng)) for _ in range(10**9))
        pairs = [(base if kind == "base and copy" else next(copies), next(copies)) for _ in range(NOISE)]
        verdicts_on(test, pairs, f"{kind} | {size} of each vector's length", rng)
    print()


def noisy(rows: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Each unit vector with a random vector of length about `size` added, back at length 1."""
    moved = rows + rng.standard_normal(rows.shape, dtype=np.float32) * np.float32(size / rows.shape[1] ** 0.5)
    return np.asarray(moved / np.linalg.norm(moved, axis=1, keepdims=True))


def scored(test: RetrievalSet, queries: np.ndarray, passages: np.ndarray) -> dict[str, Scores]:
    """Both metrics by query, as a run measures them."""
    ids = list(test.queries)
    found = graded(nearest(test, queries, passages, top=10), test.qrels, ids, ranks=10)
    return {"recall@10": Scores(ids, recall(found, 10)), "ndcg@10": Scores(ids, ndcg(found, 10))}


def verdicts_on(test: RetrievalSet, pairs: Sequence[tuple[Any, Any]], label: str, rng: np.random.Generator) -> None:
    """Print a row per metric and test size; a test set of whole documents is drawn for each pair."""
    documents = {query: test.document_of(query) for query in test.queries}
    for size in SIZES:
        deltas = []
        for base, tuned in pairs:
            kept = by_documents(documents, size, rng)
            part = [{name: scores.of_queries(kept) for name, scores in side.items()} for side in (base, tuned)]
            deltas.append(compare(part[0], part[1], document_of=documents))
        for metric in deltas[0]:
            verdicts = [each[metric].verdict for each in deltas]
            moved = np.asarray([each[metric].absolute for each in deltas])
            called = sum(verdict != "no difference" for verdict in verdicts)
            queries = np.mean([each[metric].queries for each in deltas])
            print(
                f"| {label} | {metric} | {queries:.0f} | {len(pairs)} | {verdicts.count('better')} | "
                f"{verdicts.count('worse')} | {share(called, len(pairs))} | {moved.mean():+.4f} |",
                flush=True,
            )


def by_documents(documents: Mapping[str, str], size: int, rng: np.random.Generator) -> set[str]:
    """The queries of random documents, until there are `size`."""
    members: dict[str, list[str]] = {}
    for query, document in documents.items():
        members.setdefault(document, []).append(query)
    kept: set[str] = set()
    for document in rng.permutation(sorted(members)):
        if len(kept) < size:
            kept.update(members[document])
    return kept


# --- intervals -------------------------------------------------------------------------------------------------------

# chance of a win and of a loss; how much alike a document's questions are (0: not at all); sizes of documents; a
# gain that falls with the document's size
WORLDS: dict[str, dict[str, Any]] = {
    "no difference": {"wins": 0.10, "losses": 0.10, "alike": 0.25},
    "a gain": {"wins": 0.12, "losses": 0.03, "alike": 0.25},
    "a gain, few large documents": {"wins": 0.12, "losses": 0.03, "alike": 0.25, "heavy": True},
    "a gain, documents much alike": {"wins": 0.12, "losses": 0.03, "alike": 0.6},
    "a gain on short documents only": {"wins": 0.24, "losses": 0.03, "alike": 0.25, "short_only": True},
    "rare wins": {"wins": 0.03, "losses": 0.005, "alike": 0.25},
    "no difference, small wins and rare big losses": {"wins": 0.2, "losses": 0.04, "alike": 0.25, "win": 0.2},
}


def coverage() -> None:
    """How often the 95 % interval holds the truth, which is the mean over endlessly many documents."""
    print("## Intervals\n\n| world | documents | test sets | truth inside | truth below | truth above | a verdict |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    rng = np.random.default_rng(0)
    for name, world in WORLDS.items():
        sums, sizes = drawn(500_000, rng, **world)
        truth = sums.sum() / sizes.sum()
        for documents, times in SIMULATIONS.items():
            below = above = called = 0
            for _ in range(times):
                delta = one_test_set(documents, rng, world)
                below += truth < delta.ci_low - 1e-12
                above += truth > delta.ci_high + 1e-12
                called += delta.verdict != "no difference"
            print(
                f"| {name} ({truth:+.3f}) | {documents} | {times} | {share(times - below - above, times)} | "
                f"{below / times:.1%} | {above / times:.1%} | {called / times:.0%} |",
                flush=True,
            )
    print()


def drawn(
    documents: int, rng: np.random.Generator, *, wins: float, losses: float, alike: float, heavy: bool = False,
    short_only: bool = False, win: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Sum of differences and number of questions per document: about four questions, geometric or (heavy) log-normal.

    win: what a win adds; a loss always takes 1.
    """
    if heavy:
        sizes = np.minimum(np.ceil(rng.lognormal(1.0, 1.0, documents)), 60).astype(int)
    else:
        sizes = rng.geometric(0.25, documents)
    chances = rng.dirichlet(np.array([wins, losses, 1 - wins - losses]) * (1 / alike - 1), size=documents)
    if short_only:
        chances[:, 0] *= sizes <= 4
    won = rng.binomial(sizes, chances[:, 0])
    lost = rng.binomial(sizes - won, np.clip(chances[:, 1] / np.maximum(1 - chances[:, 0], 1e-9), 0, 1))
    return win * won - lost, sizes


def one_test_set(documents: int, rng: np.random.Generator, world: Mapping[str, Any]) -> significance.Delta:
    """The delta that a run would report."""
    sums, sizes = drawn(documents, rng, **world)
    values = np.repeat(sums / sizes, sizes)  # only a document's sum enters the interval
    names = [f"q{place}" for place in range(len(values))]
    of = dict(zip(names, np.repeat(np.arange(documents), sizes).astype(str).tolist(), strict=True))
    zeros = Scores(names, np.zeros(len(values)))
    return compare({"m": zeros}, {"m": Scores(names, values.astype(float))}, document_of=of)["m"]


# --- leaks -----------------------------------------------------------------------------------------------------------

KINDS = {
    "an exact copy": lambda text, rng: text,
    "other case and punctuation": lambda text, rng: text.upper().rstrip(".?!") + " !",
    "a typo": lambda text, rng: swapped(text, rng),
    "a word added": lambda text, rng: f"Please {text[0].lower()}{text[1:]}",
    "a word left out": lambda text, rng: without_a_word(text, rng),
    "words in another order": lambda text, rng: " ".join(reversed(text.split())),
}


def planted_leaks(model: EmbeddingModel, real: Mapping[str, Splits]) -> None:
    """Copies and hand-written paraphrases of test queries: found or not; and what is dropped of untouched data."""
    print("## Planted leaks\n")
    heads = [f"meaning >= {threshold}" for threshold in THRESHOLDS]
    print(f"Found by the letters (near_duplicate: {NEAR_DUPLICATE}) and by the base model's cosine.\n")
    print(f"| planted | pairs | by letters | {' | '.join(heads)} |\n|---|---:|---:|{'---:|' * len(heads)}")
    rng = np.random.default_rng(0)
    test = real["docstrings"].test.queries
    chosen = {str(query): test[str(query)] for query in rng.choice(list(test), size=100, replace=False)}
    for kind, change in KINDS.items():
        pairs_found(model, kind, {query: change(text, rng) for query, text in chosen.items()}, chosen)
    for kind, pairs in (
        ("reworded a little", MODERATE),
        ("reworded strongly", STRONG),
        ("**another question**, most words equal", NEAR_MISS),
    ):
        sides = [{str(place): pair[side] for place, pair in enumerate(pairs)} for side in (0, 1)]
        pairs_found(model, kind, sides[0], sides[1])
    print("\n| untouched data | train queries | dropped by letters while cutting |", " | ".join(heads), "|")
    print(f"|---|---:|---:|{'---:|' * len(heads)}")
    for name, splits in real.items():
        cells = []
        for threshold in THRESHOLDS:
            found = dropped(model, splits, threshold)
            cells.append(f"{len(found)} ({len(found) / len(splits.train.queries):.1%})")
        print(f"| {name} | {len(splits.train.queries)} | {splits.notes[NEAR_COPIES]} | {' | '.join(cells)} |")
    shared_documents(real)


def pairs_found(model: EmbeddingModel, kind: str, planted: Mapping[str, str], test: Mapping[str, str]) -> None:
    """A row: how many of the pairs with the same id each guard finds."""
    by_letters = sum(left == right for left, right in near_duplicates(planted, test, threshold=NEAR_DUPLICATE))
    left, right = embedded(model, planted), embedded(model, test)
    mean = common_mean(left, right)
    cosines = (centred(left, mean) * centred(right, mean)).sum(axis=1)
    cells = [share(int((cosines >= threshold).sum()), len(test)) for threshold in THRESHOLDS]
    print(f"| {kind} | {len(test)} | {share(by_letters, len(test))} | {' | '.join(cells)} |")


def dropped(model: EmbeddingModel, splits: Splits, threshold: float) -> list[str]:
    """Train queries that the run would drop as paraphrases."""
    others = {f"{name} {key}": text for name in ("dev", "test") for key, text in getattr(splits, name).queries.items()}
    near = similar(embedded(model, splits.train.queries), embedded(model, others), threshold=threshold)
    return [query for query, is_near in zip(splits.train.queries, near, strict=True) if is_near]


def shared_documents(real: Mapping[str, Splits]) -> None:
    """For each `unseen` test query, train gets a question of its own on the same document; the run must refuse."""
    print("\n| shared document planted | trials | refused | untouched data refused |\n|---|---:|---:|---|")
    for name, splits in real.items():
        refused, trials = 0, list(splits.slices["unseen"])[:100]
        for query in trials:
            grown = RetrievalSet(
                {**splits.train.queries, "planted": f"zzz {query[::-1]}"}, splits.train.corpus,
                {**splits.train.qrels, "planted": splits.test.qrels[query]}, splits.train.documents,
            )  # fmt: skip
            refused += is_refused(replace(splits, train=grown.with_queries(["planted"]), slices={"unseen": (query,)}))
        print(f"| {name} | {len(trials)} | {share(refused, len(trials))} | {'yes' if is_refused(splits) else 'no'} |")


def is_refused(splits: Splits) -> bool:
    """Whether a run would not start on these splits."""
    try:
        refuse_leaks(splits, near_duplicate=NEAR_DUPLICATE)
    except UserError:
        return True
    return False


def swapped(text: str, rng: np.random.Generator) -> str:
    """Two neighbouring letters of the longest word in the wrong order."""
    word = max(text.split(), key=len)
    place = int(rng.integers(1, max(2, len(word) - 1)))
    typo = word[: place - 1] + word[place : place + 1] + word[place - 1] + word[place + 1 :]
    return text.replace(word, typo, 1)


def without_a_word(text: str, rng: np.random.Generator) -> str:
    """One word fewer."""
    words = text.split()
    del words[int(rng.integers(len(words)))]
    return " ".join(words)


def share(count: int, total: int) -> str:
    """A share in percent, with half the width of its binomial 95 % interval."""
    part = count / total
    return f"{part:.1%} ± {196 * (part * (1 - part) / total) ** 0.5:.1f}"


if __name__ == "__main__":
    assert Path(CONFIG_FOLDER).is_dir()
    main()
