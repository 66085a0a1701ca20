"""Would more questions help? Trains on a quarter and a half of them too. Called by `arms.measured`.

Each is a training of its own from the base, with the run's own settings; that on all questions is the run's. What a
doubling of the questions has brought is the slope of the score over their logarithm, the usual form of such curves
(Figueroa et al., 2012, fit a power law; over few doublings the two differ little, and here both are fitted).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.encoding.encoder import Encoder
from embexp.errors import UserError
from embexp.evaluation.evaluators import Evaluation
from embexp.evaluation.metrics import FEWEST_DOCUMENTS
from embexp.evaluation.search import Arm, Dense
from embexp.evaluation.significance import Delta, Scores, compare
from embexp.models.embedding_model import EmbeddingModel
from embexp.results import result as results
from embexp.rows.shapes import Rows
from embexp.training import tuning
from embexp.training.looks import Plan
from embexp.training.tuning import Run

log = logging.getLogger(__name__)

SHARES = (0.25, 0.5)  # of the questions, beside all
FEWEST = 8  # questions to train on

BySide = Mapping[str, Evaluation]  # dev and test


@dataclass(frozen=True)
class LearningCurve:
    """What a run is trained on, to train on parts of it. untrained: what a look at dev, as planned, measures of the
    base."""

    run: Run
    splits: Splits
    train_set: RetrievalSet
    rows: Rows
    plan: Plan
    untrained: Mapping[str, float]

    def __post_init__(self) -> None:
        """Raises UserError for fewer than FEWEST questions, before anything is trained."""
        count = len(self.train_set.queries)
        if count < FEWEST:
            raise UserError(
                f"learning_curve=true: train has {count} questions, and its parts need {FEWEST} at least; add "
                "questions, or set learning_curve=false"
            )

    def measured(
        self, base: Callable[[], EmbeddingModel], score: Callable[[Arm], BySide], whole: BySide
    ) -> dict[str, Any]:
        """The key `learning_curve` of the result.

        base: loads it anew. score: measures an arm on dev and test. whole: the scores of the model that was trained on
        all questions.
        """
        config, count = self.run.config, len(self.train_set.queries)
        found = [(share, *self._trained(share, base, score)) for share in SHARES] + [(1.0, count, whole)]
        points = [
            {"share": share, "questions": questions, **results.metrics_of(sides, self.splits)}
            for share, questions, sides in found
        ]
        scores = [results.judged(sides["test"], self.splits)[config["metric"]] for _, _, sides in found]
        test, questions = self.splits.test, [questions for _, questions, _ in found]
        document_of = {query: test.document_of(query) for query in test.queries}
        more = extrapolated(questions, scores, document_of=document_of, margin=config["margin"])
        return {"metric": config["metric"], "seed": config["seed"], "points": points, **more}

    def _trained(
        self, share: float, base: Callable[[], EmbeddingModel], score: Callable[[Arm], BySide]
    ) -> tuple[int, BySide]:
        """How many questions this share is, and what a model trained on them scores."""
        queries = nested(self.train_set, share, seed=self.run.config["seed"])
        log.info("training on %d of %d questions", len(queries), len(self.train_set.queries))
        part, model = self.rows.of_queries(set(queries)), base()
        with tuning.beside(self.run, f"questions-{round(100 * share)}") as beside:
            learner = tuning.learner(model, Encoder(model, content=model.origin["content"]), part)
            part_set = self.train_set.with_queries(queries)
            tuned = tuning.tune(learner, part_set, part, self.plan, beside, untrained=self.untrained)
        return len(queries), score(Dense(tuned))


def nested(train_set: RetrievalSet, share: float, *, seed: int) -> list[str]:
    """This share of the questions, of documents drawn one by one, the last one's cut; a smaller share's are among them.

    In the set's order.
    """
    of_document: dict[str, list[str]] = {}
    for query in train_set.queries:
        of_document.setdefault(train_set.document_of(query), []).append(query)
    documents = sorted(of_document)
    drawn = np.random.default_rng(seed).permutation(len(documents)).tolist()
    taken = [query for place in drawn for query in of_document[documents[place]]]
    kept = set(taken[: math.ceil(share * len(taken))])
    return [query for query in train_set.queries if query in kept]


def extrapolated(
    questions: Sequence[int], scores: Sequence[Scores], *, document_of: Mapping[str, str], margin: float
) -> dict[str, Any]:
    """What twice as many questions may bring, in the metric. scores: on the same test queries, for each number.

    | key          | holds                                                                                       |
    |--------------|---------------------------------------------------------------------------------------------|
    | per_doubling | the least-squares slope over log2 of the questions: absolute, ci_low, ci_high               |
    | power_law    | what the next doubling brings if 1 - score falls by a power law; null where a score is 1    |
    | low, high    | the honest range of the next doubling: from the flatter of both fits less its interval's    |
    |              | lower half, to the slope's upper end; no score is above 1                                   |
    | would_help   | `yes`: low is above 0; `hardly`: high is below the margin; else, and on few documents,       |
    |              | `unknown`                                                                                   |

    The interval is that of the test questions (a paired bootstrap over documents). How far another seed of training
    would move the points is not in it.
    """
    x = np.log2(np.asarray(questions, dtype=float))
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    slopes = sum(weight * np.asarray(each.values) for weight, each in zip(weights, scores, strict=True))
    ids = scores[0].query_ids
    none = Scores(ids, values=np.zeros(len(ids)))
    slope: Delta = compare({"slope": none}, {"slope": Scores(ids, values=slopes)}, document_of=document_of)["slope"]
    errors = np.array([1 - each.score for each in scores])
    power = None
    if errors.min() > 0:
        exponent, start = np.polyfit(x, np.log2(errors), 1)
        power = float(2 ** (start + exponent * x[-1]) - 2 ** (start + exponent * (x[-1] + 1)))
    flatter = slope.absolute if power is None else min(slope.absolute, power)
    few = slope.documents < FEWEST_DOCUMENTS
    room = 1 - scores[-1].score
    low, high = min(flatter - (slope.absolute - slope.ci_low), room), min(slope.ci_high, room)
    return {
        "per_doubling": {"absolute": slope.absolute, "ci_low": slope.ci_low, "ci_high": slope.ci_high},
        "power_law": power,
        "low": low,
        "high": high,
        "would_help": "unknown" if few else "yes" if low > 0 else "hardly" if high < margin else "unknown",
    }
