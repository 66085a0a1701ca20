"""One experiment, top to bottom: config -> splits -> rows -> train -> evaluate -> result.

Read this module first; every step is one call into the module that does it. Called by `run`, which keeps the folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embexp import manifest, tuning
from embexp import result as results
from embexp.arms import BM25, Arm, Dense
from embexp.components import build
from embexp.encoding import Encoder
from embexp.evaluators import Evaluation, Evaluator, evaluate
from embexp.looks import Plan, plan_of
from embexp.models import EmbeddingModel
from embexp.negatives import draw_random
from embexp.preparing import data_of, helpers_of, model_of, note, rows_of, train_set_of
from embexp.reranker import rerank
from embexp.retrieval_set import RetrievalSet, Splits
from embexp.shapes import Rows
from embexp.stages import timer
from embexp.tuning import Run

if TYPE_CHECKING:
    from embexp.callbacks import Watch
    from embexp.parallel.processes import Processes

# the pairs that dev and test are measured on do not depend on what is trained with, so that runs compare
EVALUATION_NEGATIVES: dict[str, Any] = {"negatives": partial(draw_random, per_query=1), "seed": 0}
Config = Mapping[str, Any]
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
    config, result, watch = run.config, run.result, run.watch
    allowed, stage, arms = config["allowed_packages"], timer(result["seconds"]), dict[str, dict[str, Evaluation]]()

    with stage("model"):
        source, helpers = build(config["model"], allowed=allowed, without=["kind"]), helpers_of(config)
    with stage("data"):
        splits = data_of(config, result)
        result["counts"], sides = results.counts(splits), _sides(splits, watch)
        evaluators = [build(node, allowed=allowed) for node in config["evaluator"].values()]
        score = partial(_score, evaluators)
    with stage("loading"):
        model = model_of(config, source, splits, result, processes)
        result["fingerprint"] = results.fingerprint(splits, model.origin, helpers)

    def measured(name: str, arm: Arm) -> None:
        arms[name] = {side: score(arm, data) for side, data in sides.items()}
        result[name] = results.metrics_of(arms[name], splits)

    with stage("bm25"):
        measured("bm25", BM25())
    with stage("base"):
        encoder = Encoder(model, progress="base model", content=model.origin["content"])
        measured("base", Dense(encoder))

    if config["trainer"] is not None:
        with stage("rows"):
            train_set, rows = rows_of(config, model, splits, encoder, result)
            plan = _plan(run, model, evaluators, arms["base"]["dev"], splits, train_set, rows)
            untrained = plan.score(Dense(encoder))
        with stage("libraries"):
            learner = tuning.learner(model, encoder, rows)
        del encoder  # as large as the corpus, and the tuned model's embeddings will be too; an adapter needs it
        with stage("training"):
            tuned = tuning.tune(learner, train_set, rows, plan, run, untrained=untrained)
        with stage("tuned"):
            measured("tuned", Dense(tuned))
            _say_if_unmoved(result)
    else:
        with stage("rows"):
            tuned, train_set = encoder, train_set_of(config, model, splits, encoder, result)
    if config["reranker"] is not None and "test" in sides:  # a trial of a sweep has none
        arms["reranked"] = rerank(run, source, Dense(tuned), train_set, splits, sides, score, stage)
    if "test" in sides:
        with stage("comparison"):
            _compare(config, {arm: by_side["test"] for arm, by_side in arms.items()}, splits, result, run.folder)


def _score(evaluators: Sequence[Evaluator], arm: Arm, data: RetrievalSet) -> Evaluation:
    return evaluate(evaluators, arm, data, **EVALUATION_NEGATIVES)


def _plan(
    run: Run, model: EmbeddingModel, evaluators: Sequence[Evaluator], base: Evaluation, splits: Splits,
    train_set: RetrievalSet, rows: Rows,
) -> Plan:  # fmt: skip
    """What is measured of dev while the model trains."""
    return plan_of(
        run.config["trainer"], evaluators, base, splits.dev, model=model, train_set=train_set, rows=len(rows),
        looks_per_epoch=run.watch.looks if run.watch is not None else None, negatives=EVALUATION_NEGATIVES,
        folder=run.folder,
    )  # fmt: skip


def _compare(
    config: Config, on_test: Mapping[str, Evaluation], splits: Splits, result: dict[str, Any], folder: Path
) -> None:
    result |= results.compared(on_test, splits, metric=config["metric"])
    if "reranked" in on_test:
        result["reranker"] |= results.reordered(on_test, splits, metric=config["metric"])
    results.write_retrieval(on_test, splits, folder / "retrieval", config)
    if config["limit"] is None:  # else the run has not seen all that there was
        manifest.write(manifest.of(splits), folder)


def _sides(splits: Splits, watch: Watch | None) -> dict[str, RetrievalSet]:
    """What is scored: dev, where there is one, and test, but for a trial, which must not see it."""
    sides = {"dev": splits.dev} if splits.dev.queries else {}
    return sides if watch is not None and not watch.scores_test else sides | {"test": splits.test}


def digests(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of each split, of the corpus and of the base model, without loading it."""
    source = build(config["model"], allowed=config["allowed_packages"], without=["kind"])
    return {**results.data_digests(splits_of(config)), "base model": source.content()}


def splits_of(config: Mapping[str, Any]) -> Splits:
    """The data set that a config names, checked and limited as a run would."""
    return data_of(config, results.empty(config))


def _say_if_unmoved(result: dict[str, Any]) -> None:
    if result["tuned"]["dev"] == result["base"]["dev"]:
        at_the_top = result["base"]["dev"][result["metric"]] == 1
        note(result, AT_THE_TOP.format(metric=result["metric"]) if at_the_top else UNMOVED)
