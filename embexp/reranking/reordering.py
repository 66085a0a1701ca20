"""Re-orders the first passages of an arm by a judge of pairs; and what the files in conf/reranker say of such a judge.

Called by `reranker` and `search.lookup`; knows nothing of how a judge is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from embexp.data.retrieval_set import RetrievalSet
from embexp.encoding.encoder import Encoder
from embexp.errors import UserError
from embexp.evaluation.ranking import NEVER, First, Ranking
from embexp.evaluation.search import Arm
from embexp.rows.negatives import Drawn
from embexp.rows.teachers import Judge

WEIGHTS = tuple(tenth / 10 for tenth in range(11))  # that dev chooses from


@dataclass(frozen=True)
class _Judged:
    """Pairs of query and passage that an arm found, (pairs,) each. columns: its rank, from 0. first: its score.
    scores: the scorer's, of those of the first ones."""

    rows: np.ndarray
    columns: np.ndarray
    places: np.ndarray
    first: np.ndarray
    scores: np.ndarray


class Reranked:
    """Another arm's ranking, its first passages in the order of a scorer, or of both by weight."""

    encoder: Encoder | None = None

    def __init__(self, first: Arm, scorer: Judge, *, depth: int = 50, weight: float = 1.0) -> None:
        """depth: how many passages of `first` are scored for each query, by a scorer that gives from 0 to 1. weight:
        see `blended`."""
        self._first, self._scorer, self._depth, self._weight = first, scorer, depth, weight
        self._found: dict[tuple[str, int], _Judged] = {}

    def weighing(self, weight: float) -> Reranked:
        """The same with another weight; what was searched and scored before is not done again."""
        other = Reranked(self._first, self._scorer, depth=self._depth, weight=weight)
        other._found = self._found
        return other

    def search(self, retrieval_set: RetrievalSet, *, top: int) -> Ranking:
        """The first `depth` passages anew; see `ranking` for ties. The rest keep their order below.

        Their score is minus their rank, since the two scales can't be compared. Passages that `first` has not ranked
        are below all.
        """
        found = self._judged(retrieval_set, top)
        scored = found.columns < self._depth
        scores = -(found.columns + 1).astype(np.float32)
        scores[scored] = blended(found.rows[scored], found.first[scored], found.scores, weight=self._weight)
        return _ranked(retrieval_set, found.rows, found.places, scores, top=top)

    def _judged(self, retrieval_set: RetrievalSet, top: int) -> _Judged:
        key = retrieval_set.digest, top
        if key not in self._found:
            found = self._first.search(retrieval_set, top=max(top, self._depth))
            rows, columns = np.nonzero(found.places >= 0)
            places, scored = found.places[rows, columns], columns < self._depth
            queries, passages = list(retrieval_set.queries.values()), list(retrieval_set.corpus.values())
            scores = self._scorer(
                [queries[row] for row in rows[scored].tolist()], [passages[place] for place in places[scored].tolist()]
            )
            self._found[key] = _Judged(rows, columns, places, found.scores[rows, columns], scores)
        return self._found[key]


def blended(rows: np.ndarray, first: np.ndarray, scores: np.ndarray, *, weight: float) -> np.ndarray:
    """(pairs,) float32 from 0 to 1: `weight` of the scorer's share and the rest of the search's.

    rows: the query of each pair. first, scores: what the search and the scorer give. A share is where a score lies
    between the lowest and the highest of its query, since cosines and scores of a cross-encoder have scales of their
    own. With weight 1 the scorer's scores stay as they are.
    """
    if weight == 1:
        return scores
    return (1 - weight) * _share(rows, first) + weight * _share(rows, scores)


def _share(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(pairs,) 0 for the lowest of each query, 1 for its highest; 0 where all are equal."""
    count = int(rows.max(initial=-1)) + 1
    low, high = np.full(count, np.inf, dtype=np.float32), np.full(count, -np.inf, dtype=np.float32)
    np.minimum.at(low, rows, values)
    np.maximum.at(high, rows, values)
    width = np.where(high > low, high - low, 1)
    return ((values - low[rows]) / width[rows]).astype(np.float32)


def weighed(
    arm: Reranked, measured: Callable[[Arm], Mapping[str, float]], *, metric: str
) -> tuple[float, dict[str, float]]:
    """The weight of WEIGHTS that is best by `metric`, and the metric by weight.

    measured: the metrics of an arm on dev. Among equals nDCG at the same place decides, where it is measured, since
    recall can't see an order within its first places; then the smaller weight.
    """
    closer = f"ndcg@{metric.rpartition('@')[2]}"
    found = {weight: measured(arm.weighing(weight)) for weight in WEIGHTS}
    best = max(found, key=lambda weight: (found[weight][metric], found[weight].get(closer, 0.0), -weight))
    return best, {f"{weight:g}": metrics[metric] for weight, metrics in found.items()}


def _ranked(
    retrieval_set: RetrievalSet, rows: np.ndarray, places: np.ndarray, scores: np.ndarray, *, top: int
) -> Ranking:
    """The ranking of these pairs, (pairs,) each; a relevant passage that is not among them scores NEVER."""
    first, size = First(retrieval_set, top=top), len(retrieval_set.corpus)
    part = first.part(range(len(retrieval_set.queries)))
    order = np.lexsort((places, rows))
    row, place, score = (torch.from_numpy(values[order]) for values in (rows, places, scores))
    part.add(score, row, place)
    part.settle()
    relevant_row, relevant_place = part.relevant(range(size))
    pairs, asked = row * size + place, relevant_row * size + relevant_place
    at = torch.searchsorted(pairs, asked)
    there = torch.isin(asked, pairs)
    part.relevant_score(relevant_row[there], score[at[there]])
    part.relevant_score(relevant_row[~there], torch.full((int((~there).sum()),), NEVER))
    return first.ranking()


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A cross-encoder as it is. path: a local folder or a Hub id (id@revision). depth: see `Reranked`. weight: see
    `blended`; None for the best on dev."""

    path: str
    depth: int = 50
    weight: float | None = None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A cross-encoder that is trained on the run's train questions.

    | field            | meaning                                                                                   |
    |------------------|-------------------------------------------------------------------------------------------|
    | path             | what it starts from, as Pretrained's; None for the run's base model with a new last layer |
    | depth            | see `Reranked`                                                                            |
    | weight           | see `blended`; None for the best on dev                                                   |
    | negatives        | as conf/negatives; drawn with the model whose passages are re-ordered                     |
    | max_length       | of a pair in tokens; None keeps the model's own                                           |
    | dropout          | while training; None keeps the model's own                                                |
    | evaluation_share | of the training's time, for looks at dev meanwhile; `looks` of them at most               |

    The others are training arguments under the library's names.
    """

    negatives: Callable[..., Drawn]
    num_train_epochs: float
    per_device_train_batch_size: int
    learning_rate: float
    warmup_steps: float
    weight_decay: float
    evaluation_share: float
    looks: int
    path: str | None = None
    depth: int = 50
    weight: float | None = None
    max_length: int | None = None
    dropout: float | None = None

    def __post_init__(self) -> None:
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"reranker.dropout={self.dropout}; it must be from 0 up to, not including, 1")
