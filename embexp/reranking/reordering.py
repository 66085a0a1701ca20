"""Re-orders the first passages of an arm by a judge of pairs; and what the files in conf/reranker say of such a judge.

Called by `reranker`, `costs` and `arms.measured`; knows nothing of how a judge is trained.
"""

from __future__ import annotations

from collections.abc import Callable
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


class Reranked:
    """Another arm's ranking, its first passages in the order of a scorer."""

    encoder: Encoder | None = None

    def __init__(self, first: Arm, scorer: Judge, *, depth: int = 50) -> None:
        """depth: how many passages of `first` are scored for each query, by a scorer that gives from 0 to 1."""
        self._first, self._scorer, self._depth = first, scorer, depth

    def search(self, retrieval_set: RetrievalSet, *, top: int) -> Ranking:
        """The first `depth` passages by the scorer; see `ranking` for ties. The rest keep their order below.

        Their score is minus their rank, since the two scales can't be compared. Passages that `first` has not ranked
        are below all.
        """
        found = self._first.search(retrieval_set, top=max(top, self._depth))
        rows, columns = np.nonzero(found.places >= 0)
        places, scored = found.places[rows, columns], columns < self._depth
        queries, passages = list(retrieval_set.queries.values()), list(retrieval_set.corpus.values())
        scores = -(columns + 1).astype(np.float32)
        scores[scored] = self._scorer(
            [queries[row] for row in rows[scored].tolist()], [passages[place] for place in places[scored].tolist()]
        )
        return _ranked(retrieval_set, rows, places, scores, top=top)


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
    """A cross-encoder as it is. path: a local folder or a Hub id (id@revision). depth: see `Reranked`."""

    path: str
    depth: int = 50


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A cross-encoder that is trained on the run's train questions.

    | field            | meaning                                                                                   |
    |------------------|-------------------------------------------------------------------------------------------|
    | path             | what it starts from, as Pretrained's; None for the run's base model with a new last layer |
    | depth            | see `Reranked`                                                                            |
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
    max_length: int | None = None
    dropout: float | None = None

    def __post_init__(self) -> None:
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"reranker.dropout={self.dropout}; it must be from 0 up to, not including, 1")
