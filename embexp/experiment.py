"""One experiment, top to bottom: config -> splits -> rows -> train -> evaluate -> result.

Read this module first; every step is one call into the module that does it. Called by `run`, which keeps the folder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from embexp import report as reports
from embexp import result as results
from embexp.cache import digest
from embexp.checkpoints import last_usable
from embexp.components import build
from embexp.encoding import Encoder, count_truncated
from embexp.errors import UserError, counted
from embexp.evaluators import Evaluation, Evaluator, evaluate
from embexp.losses import OWN_KEYS, refuse_unfit
from embexp.models import EmbeddingModel, identified
from embexp.negatives import DEFAULT, Drawn, draw_random, second_look
from embexp.paraphrases import without_paraphrases
from embexp.processes import Processes
from embexp.retrieval_set import RetrievalSet, Splits
from embexp.search import BM25, Arm, Dense
from embexp.shapes import WITH_NEGATIVES, Rows, to_rows
from embexp.shares import same_weights
from embexp.splits import Shares, limited, refuse_leaks, trainable
from embexp.teachers import Judge, teacher_of
from embexp.tracking import Tracker
from embexp.trainer import Watch
from embexp.training import LOOKS_SAY_WHEN, OURS, train

log = logging.getLogger(__name__)

# the pairs that dev and test are measured on do not depend on what is trained with, so that runs compare
EVALUATION_NEGATIVES: dict[str, Any] = {"negatives": partial(draw_random, per_query=1), "seed": 0}
HELPERS = ("guide", "teacher", "rescorer")  # keys of losses and negatives that name a model
UNTRAINED = "the base model's vectors are random, so that being better than it says little; compare with BM25"
UNMOVED = (
    "training has changed no score on dev, so its steps were too small or too few; raise trainer.learning_rate "
    "(model=static needs about 0.02) or trainer.num_train_epochs"
)
NO_TEACHER = (
    "without a teacher the loss learns the base model's own scores, which teaches it nothing new; "
    "loss.teacher= names a cross-encoder"
)


def measure(
    config: Mapping[str, Any],
    result: dict[str, Any],
    folder: Path,
    tracker: Tracker,
    watch: Watch | None,
    processes: Processes | None,
) -> None:
    """Run the experiment that the config describes and fill in `result`, the content of result.json.

    folder: the run's, for the model, the checkpoints and the rankings; a checkpoint in it is gone on from. watch: the
    study that a trial belongs to; a trial looks at dev alone, and its model is not kept. processes: see EmbeddingModel.
    """
    allowed, stage = config["allowed_packages"], results.timer(result["seconds"])

    with stage("model"):
        source, helpers = build(config["model"], allowed=allowed, without=["kind"]), _helpers(config)
    with stage("data"):
        splits = _splits(config, result)
        result["counts"] = results.counts(splits)
    with stage("loading"):
        model = _loaded(config, source, splits, result, processes)
        result["fingerprint"] = results.fingerprint(splits, model.origin, helpers)
        evaluators = [build(node, allowed=allowed) for node in config["evaluator"].values()]
    sides = _sides(splits, watch)
    arms: dict[str, dict[str, Evaluation]] = {}

    def measured(name: str, arm: Arm) -> None:
        arms[name] = {side: evaluate(evaluators, arm, data, **EVALUATION_NEGATIVES) for side, data in sides.items()}
        result[name] = results.metrics_of(arms[name], splits)

    with stage("bm25"):
        measured("bm25", BM25())
    with stage("base"):
        encoder = Encoder(model, progress="base model", content=model.origin["content"])
        measured("base", Dense(encoder))

    if config["trainer"] is not None:
        with stage("rows"):
            train_set = _train_set(config, model, splits, encoder, result)
            rows = _rows(config, train_set, encoder, result)
            dev_metrics = _dev_metrics(evaluators, arms["base"]["dev"], splits)
        with stage("training"):
            _train(config, model, train_set, rows, encoder, dev_metrics, result, folder, tracker, watch)
        with stage("tuned"):
            measured("tuned", Dense(Encoder(model, progress="tuned model")))
            _say_if_unmoved(result)
    if "test" in sides:
        with stage("comparison"):
            _compare(config, {arm: by_side["test"] for arm, by_side in arms.items()}, splits, result, folder)


def _compare(
    config: Mapping[str, Any], on_test: Mapping[str, Evaluation], splits: Splits, result: dict[str, Any], folder: Path
) -> None:
    result |= results.compared(on_test, splits, metric=config["metric"])
    results.write_retrieval(on_test, splits, folder / "retrieval")


def _sides(splits: Splits, watch: Watch | None) -> dict[str, RetrievalSet]:
    """What is scored: dev, where there is one, and test, but for a trial, which must not see it."""
    sides = {"dev": splits.dev} if splits.dev.queries else {}
    return sides if watch is not None and not watch.scores_test else sides | {"test": splits.test}


def digests(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of each split, of the corpus and of the base model, without loading it."""
    source = build(config["model"], allowed=config["allowed_packages"], without=["kind"])
    found = results.fingerprint(_splits(config, results.empty(config)), {}, {})
    data = {name: value for name, value in found.items() if name in ("train", "dev", "test", "corpus")}
    return {**data, "base model": source.content()}


def _helpers(config: Mapping[str, Any]) -> dict[str, dict[str, str | None]]:
    """The guide, the teacher and the rescorer that the config names, by content; had at once, or the run fails here."""

    def named(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
        for key, value in node.items():
            if key in HELPERS and isinstance(value, str):
                yield f"{path}.{key}", value
            elif isinstance(value, Mapping):
                yield from named(value, f"{path}.{key}")

    if config["trainer"] is None:
        return {}
    settings = [*named(config["loss"], "loss"), *named(config["negatives"] or {}, "negatives")]
    return {setting: identified(path, setting=setting) for setting, path in settings}


def _splits(config: Mapping[str, Any], result: dict[str, Any]) -> Splits:
    splits: Splits = build(config["dataset"], allowed=config["allowed_packages"])
    if config["trainer"] is not None and not (splits.train.queries and splits.dev.queries):
        raise UserError(
            "the data set is for evaluation alone: it has "
            f"{counted(len(splits.test.queries), 'question', 'questions')} to test on, and none to train on. Set "
            "trainer=none to score the model on it"
        )
    shares = config["dataset"].get("split") or {}  # a data set of the user's own may bring its splits ready
    result["caveat"] = splits.caveat
    if splits.caveat is None:
        refuse_leaks(splits, near_duplicate=shares.get("near_duplicate", Shares.near_duplicate))
    else:
        log.warning("%s", splits.caveat)
    if config["limit"] is not None:
        splits = limited(splits, config["limit"])
    sizes = {"train": splits.train, "dev": splits.dev, "test": splits.test}
    shown = [f"{name} {counted(len(side.queries), 'query', 'queries')}" for name, side in sizes.items()]
    log.info("data: %s; %s", ", ".join(shown), counted(len(splits.test.corpus), "passage"))
    return splits


def _loaded(
    config: Mapping[str, Any], source: Any, splits: Splits, result: dict[str, Any], processes: Processes | None
) -> EmbeddingModel:
    read: list[str] = []  # stays empty where the model is as it was saved

    def texts() -> Iterator[str]:
        # a tokenizer may be trained on these; never on the questions that the model is tested on
        read.extend([*splits.train.corpus.values(), *splits.train.queries.values()])
        yield from read

    model: EmbeddingModel = source.load(texts())
    if processes is not None:
        processes.tell("model", node=config["model"], allowed_packages=config["allowed_packages"], texts=read)
        same_weights(model.model, processes)
    if config["trainer"] is not None:
        refuse_unfit(model, needs=config["loss"].get("needs"))
    if model.untrained:
        _note(result, UNTRAINED)
    result["counts"]["dimensions"] = model.model.get_embedding_dimension()
    result["counts"]["truncated"] = count_truncated(model, splits.test)
    return replace(model, processes=processes)


def _say_if_unmoved(result: dict[str, Any]) -> None:
    if result["tuned"]["dev"] == result["base"]["dev"]:
        _note(result, UNMOVED)


def _note(result: dict[str, Any], text: str) -> None:
    """Say it now, and again wherever the scores are shown."""
    result["notes"].append(text)
    log.warning("note: %s", text)


def _train_set(
    config: Mapping[str, Any], model: EmbeddingModel, splits: Splits, encoder: Encoder, result: dict[str, Any]
) -> RetrievalSet:
    """Train without what would give dev or test away."""
    threshold = None if model.untrained else config["paraphrase"]
    train_set = without_paraphrases(trainable(splits), splits, encoder, threshold=threshold)
    result["counts"]["paraphrases_dropped"] = len(splits.train.queries) - len(train_set.queries)
    return train_set


def _rows(config: Mapping[str, Any], train_set: RetrievalSet, encoder: Encoder, result: dict[str, Any]) -> Rows:
    """Train in the shape that the loss reads; what there is to say of its negatives goes into the result."""
    rows = to_rows(
        train_set,
        config["loss"]["shape"],
        negatives=_negatives(config, encoder),
        teacher=_teacher(config["loss"], encoder, result),
        seed=config["seed"],
    )
    if rows.drawn is not None:
        result["counts"]["negatives"] = second_look(rows.drawn, train_set, encoder=encoder, seed=config["seed"])
        log.info("%s", reports.negatives_line(result))
    elif config["negatives"] not in (None, DEFAULT):
        using = [shape for shape in config["loss"]["accepts"] if shape in WITH_NEGATIVES]
        fix = f"loss.shape={using[0]} uses them" if using else "loss=triplet would use them"
        shape = config["loss"]["shape"]
        _note(result, f"the negatives asked for are not used: the loss reads rows of shape {shape}, without any; {fix}")
    return rows


def _negatives(config: Mapping[str, Any], encoder: Encoder) -> Callable[..., Drawn] | None:
    if config["negatives"] is None:
        return None
    return partial(build(config["negatives"], allowed=config["allowed_packages"]), encoder=encoder)


def _teacher(loss: Mapping[str, Any], encoder: Encoder, result: dict[str, Any]) -> Judge | None:
    if loss["shape"] != "list":
        return None
    if loss["teacher"] is None:
        _note(result, NO_TEACHER)
    return teacher_of(loss["teacher"], encoder, setting="loss.teacher")


def _train(
    config: Mapping[str, Any],
    model: EmbeddingModel,
    train_set: RetrievalSet,
    rows: Rows,
    encoder: Encoder,
    dev_metrics: Callable[[Arm], dict[str, float]],
    result: dict[str, Any],
    folder: Path,
    tracker: Tracker,
    watch: Watch | None,
) -> None:
    """Train the model in place, from the run's last checkpoint where it has one, and keep it but for a trial's."""
    # the rows too: negatives and teachers' scores come from models that may have changed
    made_from = digest([result["fingerprint"], model.bfloat16, rows.columns, rows.query_ids, rows.passage_ids])
    checkpoint = last_usable(folder, made_from=made_from)
    tracker.cut_back(to_step=checkpoint.step if checkpoint else None)
    if checkpoint is None:
        tracker.log({f"dev/{name}": score for name, score in dev_metrics(Dense(encoder)).items()}, step=0)
    else:
        log.info("going on from step %d", checkpoint.step)
    choices = {
        "arguments": {key: value for key, value in config["trainer"].items() if key not in OURS}
        | (LOOKS_SAY_WHEN if watch is not None else {}),
        "early_stopping": config["trainer"]["early_stopping"],
        **{key: config[key] for key in ("metric", "seed")},
        **{"folder": folder, "made_from": made_from, "resume_from": checkpoint},
    }
    if model.processes is not None:
        said = {key: config[key] for key in ("loss", "allowed_packages", "cache")}
        model.processes.tell("train", rows=rows, data=train_set, choices=choices, looks=watch and watch.looks, **said)
    training = train(
        model,
        rows,
        train_set,
        loss=build(config["loss"], allowed=config["allowed_packages"], without=OWN_KEYS),
        dev_metrics=lambda: dev_metrics(Dense(Encoder(model))),
        tracker=tracker,
        watch=watch,
        **choices,
    )
    result["counts"] |= {"train_rows": len(rows), "masked_conflicts": training.masked_rows}
    result["counts"] |= {"steps": training.steps, "best_step": training.best_step}
    if watch is None or watch.scores_test:
        model.model.save_pretrained(str(folder / "model"), create_model_card=False)


def _dev_metrics(
    evaluators: Sequence[Evaluator], base: Evaluation, splits: Splits
) -> Callable[[Arm], dict[str, float]]:
    """Scores an arm on what is measured of dev while training."""
    sets = [(evaluator, evaluator.during_training(base, splits.dev)) for evaluator in evaluators]

    def score(arm: Arm) -> dict[str, float]:
        parts = [evaluate([evaluator], arm, data, **EVALUATION_NEGATIVES) for evaluator, data in sets]
        return {name: value for part in parts for name, value in part.metrics.items()}

    return score
