"""What each arm of a run costs to use: seconds to index, memory of the index, milliseconds of a question.

Called by `arms.measured` at the end of a run. All arms answer the same questions in turn, one at a time, so that a busy
machine meets them alike; nothing is taken from the cache.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from embexp.cache import kept_in
from embexp.encoding.embedding import Embeddings
from embexp.encoding.encoder import Encoder
from embexp.evaluation.search import FUSED, SMOOTHING, KeywordIndex
from embexp.models.embedding_model import EmbeddingModel

PASSAGES = 256  # that are embedded to see how long the corpus would take
QUESTIONS = 30
FEWEST, ENOUGH_S = 5, 10.0  # questions after which an arm that has taken this long is asked no more
FOUND = 10  # passages that a question asks for
MIB = 2**20

Scorer = Callable[[Sequence[str], Sequence[str]], np.ndarray]  # a score for each pair of texts
Key = tuple[int, ...]
Finder = Callable[[str, int], np.ndarray]  # a question's text and how many -> places of the first passages, best first


@dataclass(frozen=True)
class Serving:
    """What answers a question in production.

    model: embeds it; None for keyword search alone. The same model may serve several arms: where networks differ in
    their weights alone they cost the same, and one is measured. keyword: whether BM25 is asked too, and fused with the
    model. scorer: what puts the first `depth` passages in order again.
    """

    model: EmbeddingModel | None
    keyword: bool = False
    scorer: Scorer | None = None
    depth: int = 50

    @property
    def alike(self) -> tuple[int, ...]:
        """The same for arms that answer in the same way."""
        return id(self.model), self.keyword, id(self.scorer), self.depth


@dataclass(frozen=True)
class Cost:
    """index_s: of the whole corpus. index_mib: of float32 vectors and of BM25's arrays. query_ms: the median of single
    questions from text to passages."""

    index_s: float
    index_mib: float
    query_ms: float


def costs(
    arms: Mapping[str, Serving], corpus: Mapping[str, str], questions: Sequence[str], vectors: Embeddings, *, seed: int
) -> dict[str, Cost]:
    """Of each arm. questions: of which some are asked. vectors: the corpus's, (passages, dimensions), by any of the
    models: to search in others takes as long."""
    rng = np.random.default_rng(seed)
    texts = list(corpus.values())
    asked = [questions[place] for place in rng.permutation(len(questions))[: QUESTIONS + 1].tolist()]
    sample = [texts[place] for place in rng.permutation(len(texts))[:PASSAGES].tolist()]
    with kept_in(None):
        index, keyword_s = _timed(lambda: KeywordIndex(corpus))
        models = {id(arm.model): arm.model for arm in arms.values() if arm.model is not None}
        embed_s = {key: _seconds_to_embed(model, sample) * len(texts) / len(sample) for key, model in models.items()}
        finders = {arm.alike: _finder(arm, index, texts, vectors) for arm in arms.values()}
        waited = _in_turn(finders, asked)
    found = {}
    for name, arm in arms.items():
        by_keyword = arm.keyword or arm.model is None
        seconds = embed_s.get(id(arm.model), 0.0) + (keyword_s if by_keyword else 0.0)
        size = (vectors.nbytes if arm.model is not None else 0) + (index.nbytes if by_keyword else 0)
        found[name] = Cost(
            round(seconds, 3), round(size / MIB, 3), round(1000 * statistics.median(waited[arm.alike]), 3)
        )
    return found


def _timed(make: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    made = make()
    return made, time.perf_counter() - start


def _seconds_to_embed(model: EmbeddingModel, sample: Sequence[str]) -> float:
    Encoder(model).passages(sample[:8])  # the first pass makes room
    return _timed(lambda: Encoder(model).passages(sample))[1]


def _in_turn(finders: Mapping[Key, Finder], asked: Sequence[str]) -> dict[Key, list[float]]:
    """Seconds of each question by finder; the first, which warms up, is not counted where there are others."""
    waited: dict[Key, list[float]] = {name: [] for name in finders}
    for question in asked:
        for name, find in finders.items():
            if len(waited[name]) <= FEWEST or sum(waited[name]) < ENOUGH_S:
                waited[name].append(_timed(partial(find, question, FOUND))[1])
    return {name: seconds[1:] or seconds for name, seconds in waited.items()}


def _finder(arm: Serving, index: KeywordIndex, texts: Sequence[str], vectors: Embeddings) -> Finder:
    def by_keyword(question: str, top: int) -> np.ndarray:
        return _first(next(index.scores([question]))[0], top)

    if arm.model is None:
        return by_keyword
    encoder = Encoder(arm.model)

    def by_model(question: str, top: int) -> np.ndarray:
        return _first(vectors @ encoder.queries([question])[0], top)

    def by_both(question: str, top: int) -> np.ndarray:
        sums: dict[int, float] = {}
        for find in (by_model, by_keyword):
            for rank, place in enumerate(find(question, FUSED).tolist(), start=1):
                sums[place] = sums.get(place, 0.0) + 1 / (SMOOTHING + rank)
        return np.array(sorted(sums, key=lambda place: -sums[place])[:top])

    find = by_both if arm.keyword else by_model
    if (scorer := arm.scorer) is None:
        return find

    def again(question: str, top: int) -> np.ndarray:
        places = find(question, arm.depth)
        # by the scorer alone: to weigh it against the search takes no time
        scores = scorer([question] * len(places), [texts[place] for place in places.tolist()])
        return places[np.argsort(-scores, kind="stable")][:top]

    return again


def _first(scores: np.ndarray, top: int) -> np.ndarray:
    kept = np.argpartition(-scores, top - 1)[:top] if top < len(scores) else np.arange(len(scores))
    return kept[np.argsort(-scores[kept], kind="stable")]


def training_seconds(metrics: Path) -> float:
    """How long a training took, by its metrics.jsonl, whose clock starts anew where a killed run went on.

    From line to line of one attempt, looks at dev included; what was done again after a checkpoint counts once. From
    that checkpoint to the first line after it nothing counts.
    """
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    whole = sum(
        later["seconds"] - earlier["seconds"]
        for earlier, later in pairwise(lines)
        if later.get("attempt") == earlier.get("attempt")
    )
    return round(whole, 2)
