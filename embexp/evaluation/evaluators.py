"""What is measured: retrieval metrics per query, or a sentence-transformers evaluator on pairs.

Named by the files in conf/evaluator. Each takes an arm (something that ranks) and a RetrievalSet and returns an
Evaluation. Called by `experiment`.
"""

from __future__ import annotations

import functools
import logging
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from embexp.data.retrieval_set import Qrels, RetrievalSet
from embexp.encoding.embedding import Embeddings
from embexp.encoding.encoder import Encoder, Truncated
from embexp.evaluation.metrics import MEASURES, Graded
from embexp.evaluation.ranking import Ranking, Relevant
from embexp.evaluation.search import Arm, Dense
from embexp.evaluation.significance import DRAWS_OF_STATISTICS, Scores
from embexp.rows.negatives import Negatives
from embexp.rows.shapes import to_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Scores by metric name, and the ranking they come from where there is one."""

    scores: Mapping[str, Scores]
    ranking: Ranking | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Metric name -> score."""
        return {name: scores.score for name, scores in self.scores.items()}


def evaluate(
    evaluators: Sequence[Evaluator], arm: Arm, data: RetrievalSet, *, negatives: Negatives, seed: int
) -> Evaluation:
    """Everything that the evaluators measure of one arm on one split, as one Evaluation."""
    parts = [evaluator(arm, data, negatives=negatives, seed=seed) for evaluator in evaluators]
    scores = {name: scores for part in parts for name, scores in part.scores.items()}
    return Evaluation(scores, next((part.ranking for part in parts if part.ranking is not None), None))


class Choice(Protocol):
    """What of dev is measured while training; cheap, as it is asked for again and again until the looks fit."""

    def __call__(self, part: RetrievalSet, *, at_most: int | None = None) -> RetrievalSet:
        """The part, or what of its corpus counts. at_most: hard distractors per query; None for as configured."""


class Evaluator(Protocol):
    """What the files in conf/evaluator name."""

    def __call__(self, arm: Arm, data: RetrievalSet, *, negatives: Negatives, seed: int) -> Evaluation:
        """Measure one arm on one split."""

    def during_training(self, base: Evaluation, dev: RetrievalSet) -> Choice:
        """Says what to measure dev, or a part of its queries, on while training. base: evaluated on all of dev."""

    def texts(self, data: RetrievalSet, *, negatives: Negatives, seed: int) -> tuple[list[str], list[str]]:
        """The queries and the passages that measuring `data` embeds."""


@dataclass(frozen=True)
class Retrieval:
    """Recall, precision, accuracy, MRR, MAP and nDCG at each k, per query, by exact search over the whole corpus.

    training_distractors: during training dev is searched in its relevant passages and at most this many more per query,
    the base model's nearest, instead of the whole corpus, which would be encoded at every look; null searches all.
    dimensions: the same once more with embeddings cut to each of these, under names such as `dim64.recall@10`.
    """

    k_values: list[int]
    training_distractors: int | None = 10
    dimensions: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.training_distractors is not None and self.training_distractors > max(self.k_values):
            log.warning(
                "evaluator.retrieval.training_distractors=%d: the base model's ranking holds %d passages, the largest "
                "of k_values, so a look has fewer; lower it, or raise k_values",
                self.training_distractors,
                max(self.k_values),
            )

    def __call__(self, arm: Arm, data: RetrievalSet, *, negatives: Negatives, seed: int) -> Evaluation:
        """Rank, then measure every query; one whose relevant passages are missing scores 0."""
        del negatives, seed
        whole = self.measured(arm.search(data, top=max(self.k_values)), data)
        scores = dict(whole.scores)
        for dimensions in self.dimensions:
            if arm.encoder is None:  # BM25 has no dimensions
                break
            cut = Dense(Truncated(arm.encoder, dimensions)).search(data, top=max(self.k_values))
            scores |= {f"dim{dimensions}.{name}": part for name, part in self.measured(cut, data).scores.items()}
        return Evaluation(scores, whole.ranking)

    def measured(self, ranking: Ranking, data: RetrievalSet) -> Evaluation:
        """The metrics of a ranking."""
        queries = list(data.queries)
        found = graded(ranking, data.qrels, queries, ranks=max(self.k_values))
        scores = {
            f"{name}@{k}": Scores(queries, measure(found, k))
            for name, measure in MEASURES.items()
            for k in self.k_values
        }
        return Evaluation(scores, ranking)

    def texts(self, data: RetrievalSet, *, negatives: Negatives, seed: int) -> tuple[list[str], list[str]]:
        """All of the set's."""
        del negatives, seed
        return list(data.queries.values()), list(data.corpus.values())

    def during_training(self, base: Evaluation, dev: RetrievalSet) -> Choice:
        """Dev with the relevant passages and the base model's nearest others as its corpus."""
        if self.training_distractors is None:
            return _all_of
        assert base.ranking is not None
        return _Nearby(base.ranking, dev.qrels, most=self.training_distractors)


def _all_of(part: RetrievalSet, *, at_most: int | None = None) -> RetrievalSet:
    del at_most
    return part


class _Nearby:
    """Each query's relevant passages and the nearest `most` others, looked up once for all parts of the queries."""

    def __init__(self, ranking: Ranking, qrels: Qrels, *, most: int) -> None:
        self._ids = ranking.passage_ids
        self._row_of = {query: row for row, query in enumerate(ranking.query_ids)}
        relevant, places = Relevant(qrels, ranking.query_ids, self._ids), torch.from_numpy(ranking.places)
        grades = relevant.grades(torch.arange(len(ranking))[:, None], places)
        others = ((grades == 0) & (places >= 0)).numpy()
        rank = others.cumsum(axis=1, dtype=np.int32)  # among the others
        row, column = np.nonzero(others & (rank <= most))
        own_row, own_place = (found.numpy() for found in relevant.inside(range(len(ranking)), range(len(self._ids))))
        # a line for each passage of each query; a relevant one has rank 0, so that it is always in
        self._rows = np.concatenate([own_row, row])
        self._places = np.concatenate([own_place, ranking.places[row, column]])
        self._ranks = np.concatenate([np.zeros_like(own_row), rank[row, column]])

    def __call__(self, part: RetrievalSet, *, at_most: int | None = None) -> RetrievalSet:
        asked = np.zeros(len(self._row_of), dtype=bool)
        asked[[self._row_of[query] for query in part.queries]] = True
        here = asked[self._rows]
        if at_most is not None:
            here &= self._ranks <= at_most
        kept = [self._ids[place] for place in np.unique(self._places[here]).tolist()]  # in the corpus's order
        return replace(part, corpus={passage: part.corpus[passage] for passage in kept})


def graded(ranking: Ranking, qrels: Qrels, query_ids: Sequence[str], *, ranks: int) -> Graded:
    """Down to this rank, a row per query; one that the ranking lacks found nothing.

    Every query must have a relevant passage, or its recall is of nothing.
    """
    places = ranking.places_of(query_ids)[:, :ranks]
    relevant = Relevant(qrels, query_ids, ranking.passage_ids)
    found = np.zeros((len(query_ids), ranks), dtype=np.int64)
    found[:, : places.shape[1]] = relevant.grades(torch.arange(len(query_ids))[:, None], torch.from_numpy(places))
    best = np.zeros_like(found)
    grades = [sorted((grade for grade in qrels[query].values() if grade > 0), reverse=True) for query in query_ids]
    for row, ideal in enumerate(grades):
        best[row, : len(ideal)] = ideal[:ranks]
    assert all(grades), "a query without a relevant passage"
    return Graded(found, best, np.array([len(ideal) for ideal in grades]))


@dataclass(frozen=True)
class Pairs:
    """Any sentence-transformers evaluator that reads a shape's columns in order.

    evaluator: a callable that takes those columns and returns the evaluator. metrics: the names it returns that are
    reported, as `name.metric`. BM25 has no embeddings and is not measured.
    """

    name: str
    shape: str
    metrics: list[str]
    evaluator: Callable[..., Any]

    def __call__(self, arm: Arm, data: RetrievalSet, *, negatives: Negatives, seed: int) -> Evaluation:
        """Measure on the split's rows of the shape; negatives are drawn where it needs them."""
        if arm.encoder is None:
            return Evaluation({})
        rows = to_rows(data, self.shape, negatives=negatives, seed=seed)
        columns = {column: np.asarray(values, dtype=object) for column, values in rows.columns.items()}
        embedded = _Embedded(arm.encoder, columns[rows.text_columns[0]].tolist(), columns, rows.text_columns[1:])

        @functools.lru_cache(maxsize=DRAWS_OF_STATISTICS + 1)  # the metrics are asked for the same draws in turn
        def measured(items: bytes) -> Mapping[str, float]:
            positions = np.frombuffer(items, dtype=np.int64)
            part = [values[positions].tolist() for values in columns.values()]
            return self.evaluator(*part)(embedded)

        def statistic(metric: str) -> Callable[[np.ndarray], float]:
            return lambda items: float(measured(items.astype(np.int64).tobytes())[metric])

        return Evaluation(
            {f"{self.name}.{metric}": Scores(rows.query_ids, statistic=statistic(metric)) for metric in self.metrics}
        )

    def texts(self, data: RetrievalSet, *, negatives: Negatives, seed: int) -> tuple[list[str], list[str]]:
        """The rows' first column and the others."""
        rows = to_rows(data, self.shape, negatives=negatives, seed=seed)
        queries, *passages = rows.text_columns
        return list(rows.columns[queries]), [text for column in passages for text in rows.columns[column]]

    def during_training(self, base: Evaluation, dev: RetrievalSet) -> Choice:
        """All of it."""
        del base, dev
        return _all_of


class _Embedded:
    """Stands for the model in a sentence-transformers evaluator: gives embeddings made once, with the right prompts."""

    similarity_fn_name = "cosine"

    def __init__(
        self,
        encoder: Encoder,
        queries: Sequence[str],
        columns: Mapping[str, np.ndarray],
        passage_columns: Sequence[str],
    ) -> None:
        passages = [text for column in passage_columns for text in columns[column].tolist()]
        self._queries = dict(zip(queries, encoder.queries(queries), strict=True))
        self._passages = dict(zip(passages, encoder.passages(passages), strict=True))

    def encode(self, sentences: Sequence[str], **_: Any) -> Embeddings:
        """The embeddings of texts given at the start, (texts, dimensions); one in both roles counts as a query."""
        either = ChainMap(self._queries, self._passages)
        return np.stack([either[text] for text in sentences])

    def encode_query(self, sentences: Sequence[str], **_: Any) -> Embeddings:
        """The same for an evaluator that says which texts are queries."""
        return np.stack([self._queries[text] for text in sentences])

    def encode_document(self, sentences: Sequence[str], **_: Any) -> Embeddings:
        """The same for an evaluator that says which texts are passages."""
        return np.stack([self._passages[text] for text in sentences])

    @property
    def model_card_data(self) -> _Embedded:
        """Evaluators also write their scores to the model's card; here there is none."""
        return self

    def set_evaluation_metrics(self, *_: Any) -> None:
        """Take the scores for a model card and forget them."""
