"""One experiment, top to bottom: config -> splits -> rows -> train -> evaluate -> result.

Read this module first; every step is one call into the module that does it. Called by `run`, which keeps the folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from embexp.arms.measured import MeasuredArms
from embexp.config.components import build
from embexp.data import manifest
from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.encoding.encoder import Encoder
from embexp.evaluation.evaluators import Evaluation, Evaluator, evaluate
from embexp.evaluation.search import Arm, Dense
from embexp.forgetting import merging
from embexp.models.embedding_model import EmbeddingModel
from embexp.preparing import base_of, begun, data_of, note, rows_of, train_set_of
from embexp.results import result as results
from embexp.rows.negatives import draw_random
from embexp.rows.shapes import Rows
from embexp.stages import timer
from embexp.training import tuning
from embexp.training.looks import Plan, plan_of
from embexp.training.tuning import Run

if TYPE_CHECKING:
    from embexp.parallel.processes import Processes

# the pairs that dev and test are measured on do not depend on what is trained with, so that runs compare
EVALUATION_NEGATIVES: dict[str, Any] = {"negatives": partial(draw_random, per_query=1), "seed": 0}
AT_THE_TOP = (
    "the base model's {metric} on dev is 1 already, so training could raise nothing there: more documents or "
    "questions, or a stricter metric (metric=recall@1, metric=mrr@10), would tell models apart"
)
UNMOVED = (
    "training has changed no score on dev, so its steps were too small or too few; raise trainer.learning_rate "
    "(model=static needs about 0.02, an adapter 0.001) or trainer.num_train_epochs"
)


def measure(run: Run, processes: Processes | None) -> None:
    """Run the experiment that the run's config describes and fill in its result. processes: see EmbeddingModel."""
    config, result, stage = run.config, run.result, timer(run.result["seconds"])
    tests = run.watch is None or run.watch.scores_test  # a trial of a sweep must not see test
    evaluators = [build(node, allowed=config["allowed_packages"]) for node in config["evaluator"].values()]
    score = partial(_score, evaluators)
    source, splits, guard, model = begun(config, result, stage, score, tests=tests, processes=processes)
    arms = MeasuredArms(run, splits, _sides(splits, tests=tests), score, guard, stage)

    with stage("bm25"):
        result["bm25"] = arms.measure("bm25", arms.keyword)
    with stage("base"):
        encoder = Encoder(model, progress="base model", content=model.origin["content"])
        result["base"] = arms.measure("base", Dense(encoder))
    arms.of_base(model, encoder)

    if config["trainer"] is not None:
        with stage("rows"):
            train_set, rows = rows_of(config, model, splits, encoder, result)
            plan, untrained = _plan(run, model, encoder, evaluators, arms.found["base"]["dev"], splits, train_set, rows)
        with stage("libraries"):
            learner = tuning.learner(model, encoder, rows)
        arms.before_training(learner, encoder, train_set, rows, plan, untrained)
        del encoder  # as large as the corpus, and the tuned model's embeddings will be too; an adapter needs it
        with stage("training"):
            encoder = tuning.tune(learner, train_set, rows, plan, run, untrained=untrained)
        if config["merge"]:
            with stage("merging"):
                result["fully_tuned"] = arms.measure("fully_tuned", Dense(encoder))
                shares = merging.shares_of(config["merge"])
                encoder, result["merge"] = arms.merge(learner, encoder, shares=shares)
        with stage("tuned"):
            tuning.keep(learner, run)
            result["tuned"] = arms.measure("tuned", Dense(encoder))
            _say_if_unmoved(result)
        arms.of_tuned(learner, encoder)
    else:
        with stage("rows"):
            train_set = train_set_of(config, model, splits, encoder, result)
    if tests:
        arms.rerank(encoder, train_set, source)
        arms.finish(encoder, base=partial(base_of, config, source, splits, processes))
        with stage("comparison"):
            _compare(run, arms.on_test, splits)


def _score(evaluators: Sequence[Evaluator], arm: Arm, data: RetrievalSet) -> Evaluation:
    return evaluate(evaluators, arm, data, **EVALUATION_NEGATIVES)


def _plan(
    run: Run, model: EmbeddingModel, encoder: Encoder, evaluators: Sequence[Evaluator], base: Evaluation,
    splits: Splits, train_set: RetrievalSet, rows: Rows,
) -> tuple[Plan, dict[str, float]]:  # fmt: skip
    """What is measured of dev while the model trains, and what that is of the base."""
    plan = plan_of(
        run.config["trainer"], evaluators, base, splits.dev, model=model, train_set=train_set, rows=len(rows),
        looks_per_epoch=run.watch.looks if run.watch is not None else None, negatives=EVALUATION_NEGATIVES,
        folder=run.folder,
    )  # fmt: skip
    return plan, plan.score(Dense(encoder))


def _compare(run: Run, on_test: Mapping[str, Evaluation], splits: Splits) -> None:
    run.result.update(results.compared(on_test, splits, metric=run.config["metric"]))
    if "reranked" in on_test:
        run.result["reranker"] |= results.reordered(on_test, splits, metric=run.config["metric"])
    results.write_retrieval(on_test, splits, run.folder / "retrieval", run.config)
    if run.config["limit"] is None:  # else the run has not seen all that there was
        manifest.write(manifest.of(splits), run.folder)


def _sides(splits: Splits, *, tests: bool) -> dict[str, RetrievalSet]:
    """What is scored: dev, where there is one, and test."""
    return ({"dev": splits.dev} if splits.dev.queries else {}) | ({"test": splits.test} if tests else {})


def digests(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of each split, of the corpus and of the base model, without loading it."""
    source = build(config["model"], allowed=config["allowed_packages"], without=["kind"])
    return {**results.data_digests(splits_of(config)), "base model": source.content()}


def splits_of(config: Mapping[str, Any]) -> Splits:
    """The data set that a config names, checked and limited as a run would."""
    return data_of(config, results.empty(config))


def _say_if_unmoved(result: dict[str, Any]) -> None:
    nothing_kept = result["merge"] is not None and result["merge"]["chosen"] == 0  # which the report says
    if result["tuned"]["dev"] == result["base"]["dev"] and not nothing_kept:
        at_the_top = result["base"]["dev"][result["metric"]] == 1
        note(result, AT_THE_TOP.format(metric=result["metric"]) if at_the_top else UNMOVED)
