"""Has the reranker that conf/reranker names, trained first or only loaded, and measures what it does.

Called by `arms.measured`. The training itself is in `reranking.training`, which is imported, with the libraries that it
needs, once there is something to train. What re-orders is `reordering.Reranked`.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embexp.config.components import build
from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.encoding.encoder import Encoder
from embexp.errors import UserError
from embexp.evaluation.evaluators import Evaluation
from embexp.evaluation.ranking import Ranking
from embexp.evaluation.search import Arm, Dense
from embexp.models.embedding_model import Transformer
from embexp.models.sources import model_folder
from embexp.preparing import note
from embexp.reranking.pair_scores import pair_scores
from embexp.reranking.reordering import Pretrained, Reranked, Trained, weighed
from embexp.results import result as results
from embexp.rows.negatives import second_look
from embexp.rows.shapes import Rows, to_rows
from embexp.rows.teachers import CrossEncoderScores, Judge
from embexp.stages import Timer
from embexp.starting import uncollected
from embexp.training.tuning import Run

if TYPE_CHECKING:
    from embexp.reranking.training import Looks

log = logging.getLogger(__name__)

FOLDER = "reranker"  # in a run's folder
TRAINING = 3  # times what scoring a pair costs: forward once, backward twice as much
AT_A_LOOK = 20  # passages of each query that are scored at a look at dev, fewer than at the end
QUERIES = 100  # a score of fewer says little
BETTER = "train it for longer (reranker.num_train_epochs), or choose a stronger one (reranker=pretrained)"
WORSE = f"with the reranker {{metric}} on dev is {{reranked:.3f}}, without it {{first:.3f}}: leave it out, {BETTER}"
NO_USE = f"no weight of the reranker is better on dev than none: leave it out, {BETTER}"
NO_DEV = "without dev questions nothing chooses reranker.weight: the order is the reranker's alone (reranker.weight=1)"
Evaluated = Callable[[Arm, RetrievalSet], Evaluation]


def rerank(
    run: Run,
    source: Any,
    first: Dense,
    train_set: RetrievalSet,
    splits: Splits,
    sides: Mapping[str, RetrievalSet],
    evaluated: Evaluated,
    stage: Timer,
) -> tuple[dict[str, Evaluation], Judge]:
    """What `first` comes to when re-ordered, by side, and by what scorer; its scores, its weight and what it is go into
    the result's `reranker`."""
    config, result = run.config, run.result
    with stage("reranker"):
        scorer = reranker_of(
            config, first, train_set, splits.dev, source=source, evaluated=evaluated, folder=run.folder, result=result
        )
    with stage("reranked"):
        arm = _weighed(Reranked(first, scorer, depth=config["reranker"]["depth"]), config, sides, evaluated, result)
        found = {side: evaluated(arm, data) for side, data in sides.items()}
        result["reranker"] |= results.metrics_of(found, splits)
        _say_if_worse(result)
    ready, scoring = (result["seconds"][name] for name in ("reranker", "reranked"))
    result["reranker"]["seconds"] = {"ready": ready, "scoring": scoring}
    return found, scorer


def reranker_of(
    config: Mapping[str, Any],
    first: Dense,
    train_set: RetrievalSet,
    dev: RetrievalSet,
    *,
    source: Any,
    evaluated: Evaluated,
    folder: Path,
    result: dict[str, Any],
) -> Judge:
    """The scorer that conf/reranker names; one that is trained is kept in the run's `folder`, under FOLDER.

    first: whose passages it is to re-order. source: what config's model is built as. evaluated: measures an arm on a
    set. What there is to say of it goes into the result's `reranker`. Raises UserError when it can't be had.
    """
    settings = build(config["reranker"], allowed=config["allowed_packages"])
    if isinstance(settings, Pretrained):
        result["reranker"] = {"path": settings.path, "depth": settings.depth}
        return CrossEncoderScores(settings.path, setting="reranker.path")
    start = _start(settings, source)
    with uncollected():
        training = importlib.import_module("embexp.reranking.training")
    rows = _rows(settings, first, train_set, seed=config["seed"])
    done = training.train(
        start, rows, train_set, settings, seed=config["seed"], bfloat16=config["model"].get("dtype") != "float32",
        looks=_looks(training.Looks, settings, first, dev, evaluated, metric=config["metric"], pairs=len(rows)),
        to=folder / FOLDER,
    )  # fmt: skip
    assert first.encoder is not None
    assert rows.drawn is not None
    drawn = second_look(rows.drawn, train_set, encoder=first.encoder, seed=config["seed"])
    result["reranker"] = {"path": FOLDER, "depth": settings.depth, **done, "negatives": drawn}
    return CrossEncoderScores(str(folder / FOLDER), setting="reranker")


def _weighed(
    arm: Reranked, config: Mapping[str, Any], sides: Mapping[str, RetrievalSet], evaluated: Evaluated,
    result: dict[str, Any],
) -> Reranked:  # fmt: skip
    """The arm with the weight that the config sets, or else dev; which goes into the result."""
    weight, tried = config["reranker"].get("weight"), None
    if weight is None and "dev" in sides:
        weight, tried = weighed(arm, lambda each: evaluated(each, sides["dev"]).metrics, metric=config["metric"])
        log.info("reranker.weight=%g is the best on dev", weight)
    elif weight is None:
        weight = 1.0
        note(result, NO_DEV)
    if weight == 0 and tried is not None:
        note(result, NO_USE)
    result["reranker"] |= {"weight": weight, "weights": tried}
    return arm.weighing(weight)


def _start(settings: Trained, source: Any) -> Path:
    if settings.path is not None:
        return model_folder(settings.path, setting="reranker.path")[0]
    if isinstance(source, Transformer):
        return source.folder
    raise UserError(
        "reranker=trained starts from the run's own model, and this one has no transformer; name another with "
        "reranker.path=, a local folder or a Hub id, or choose model=minilm"
    )


def _rows(settings: Trained, first: Dense, train_set: RetrievalSet, *, seed: int) -> Rows:
    """Each question with its answers, labelled 1, and with its negatives, labelled 0."""
    negatives = partial(settings.negatives, encoder=first.encoder)
    return to_rows(train_set, "labelled_pair", negatives=negatives, seed=seed)


def _looks(
    looks: type[Looks],
    settings: Trained,
    first: Arm,
    dev: RetrievalSet,
    evaluated: Evaluated,
    *,
    metric: str,
    pairs: int,
) -> Looks:
    """As many looks as fit into their share of the training's time, at as many of dev's queries, counted in pairs."""
    depth = min(settings.depth, max(AT_A_LOOK, 2 * int(metric.rpartition("@")[2])))
    budget = settings.evaluation_share * TRAINING * settings.num_train_epochs * pairs / depth  # queries
    most = min(settings.looks, int(budget / min(QUERIES, len(dev.queries))))
    if most < 2:  # nothing to choose from
        log.info("no look at dev fits into reranker.evaluation_share: the last weights are taken")
        return looks(lambda model: 0.0, most=0, what="")
    order = np.random.default_rng(0).permutation(sorted(dev.queries)).tolist()
    part = dev.with_queries(sorted(order[: int(budget / most)]))
    found = _Already(first.search(part, top=depth))

    def score(model: Any) -> float:
        def scorer(queries: Any, passages: Any) -> np.ndarray:
            return pair_scores(model, list(zip(queries, passages, strict=True)), progress=None)

        arm = Reranked(found, scorer, depth=depth)
        if settings.weight is not None:
            return evaluated(arm.weighing(settings.weight), part).metrics[metric]
        weight, by_weight = weighed(arm, lambda each: evaluated(each, part).metrics, metric=metric)
        return by_weight[f"{weight:g}"]

    return looks(score, most, f"dev {metric}, {len(part.queries)} queries")


class _Already:
    """An arm that has searched before."""

    encoder: Encoder | None = None

    def __init__(self, ranking: Ranking) -> None:
        self._ranking = ranking

    def search(self, retrieval_set: RetrievalSet, *, top: int) -> Ranking:
        """What it found then."""
        del retrieval_set, top
        return self._ranking


def _say_if_worse(result: dict[str, Any]) -> None:
    """Note what dev, where there is one, says against the reranker."""
    metric = result["metric"]
    reranked, first = (arm["dev"] for arm in (result["reranker"], result["tuned"] or result["base"]))
    if reranked is not None and reranked[metric] < first[metric]:
        note(result, WORSE.format(metric=metric, reranked=reranked[metric], first=first[metric]))
