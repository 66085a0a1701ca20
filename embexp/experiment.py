"""One experiment, top to bottom: config -> splits -> rows -> train -> evaluate -> result -> report and tracking.

Read this module first; every step is one call into the module that does it.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import transformers

from embexp import report as reports
from embexp import result as results
from embexp.components import build
from embexp.encoding import Encoder, count_truncated
from embexp.errors import UserError
from embexp.evaluators import Evaluation, Evaluator, evaluate
from embexp.models import EmbeddingModel
from embexp.negatives import Negatives, draw_random
from embexp.paraphrases import without_paraphrases
from embexp.retrieval_set import Splits
from embexp.search import BM25, Arm, Dense
from embexp.shapes import to_rows
from embexp.splits import Shares, limited, refuse_leaks, trainable
from embexp.tracking import Tracker, open_mirror
from embexp.training import train

log = logging.getLogger(__name__)

# the pairs that dev and test are measured on do not depend on what is trained with, so that runs compare
EVALUATION_NEGATIVES: dict[str, Any] = {"negatives": partial(draw_random, per_query=1), "seed": 0}


def run(
    config: Mapping[str, Any], *, names: Mapping[str, str], folder: Path, group: str | None = None
) -> dict[str, Any]:
    """Run one experiment and return the content of its result.json.

    config: the composed and checked config, as plain values. names: the choices of model, loss and dataset. folder: the
    run's folder, which must exist. group: the multirun it belongs to. Every error but an interruption from outside is
    recorded in result.json and raised again.
    """
    if (folder / "metrics.jsonl").exists():
        raise UserError(f"{folder} holds another run; set hydra.run.dir to a new folder")
    result = results.empty(config)
    tracker = Tracker(folder, open_mirror(_mirror(config, names, folder, group)))
    try:
        _measure(config, result, folder, tracker)
        result["status"] = "completed"
    except Exception as error:
        result |= {"status": "failed", "error": str(error) or type(error).__name__}
        raise
    finally:
        if result["status"] is not None:  # interrupted from outside: no result.json, and that is how it is known
            try:
                results.write(result, folder)
                (folder / "report.md").write_text(reports.report(result, names), encoding="utf-8")
            finally:
                tracker.finish(_summary(result), exit_code=0 if result["status"] == "completed" else 1)
        else:
            tracker.finish(_summary(result), exit_code=1)
    return result


def _measure(config: Mapping[str, Any], result: dict[str, Any], folder: Path, tracker: Tracker) -> None:
    seed, metric, trainer = config["seed"], config["metric"], config["trainer"]
    stage = _timer(result["seconds"])

    with stage("model"):
        source = build(config["model"], allowed=config["allowed_packages"])
    with stage("data"):
        splits = _splits(config)
        result["counts"] = results.counts(splits)
    with stage("loading"):
        # a tokenizer may be trained on these; never on the questions that the model is tested on
        model: EmbeddingModel = source.load([*splits.train.corpus.values(), *splits.train.queries.values()])
        result["fingerprint"] = results.fingerprint(splits, model.origin)
        result["counts"]["truncated"] = count_truncated(model, splits.test)
        evaluators = [build(node, allowed=config["allowed_packages"]) for node in config["evaluator"].values()]

    def measured(arm: Arm) -> dict[str, Evaluation]:
        sides = {"dev": splits.dev, "test": splits.test}
        return {name: evaluate(evaluators, arm, side, **EVALUATION_NEGATIVES) for name, side in sides.items()}

    with stage("bm25"):
        bm25 = measured(BM25())
        result["bm25"] = results.metrics_of(bm25)
    with stage("base"):
        base_arm = Dense(Encoder(model, progress="base model"))
        base = measured(base_arm)
        result["base"] = results.metrics_of(base)
    arms = {"base": base["test"], "bm25": bm25["test"]}

    if trainer is not None:
        with stage("training"):
            loss = config["loss"]
            threshold = None if model.untrained else config["paraphrase"]
            train_set = without_paraphrases(trainable(splits), splits, Encoder(model), threshold=threshold)
            result["counts"]["paraphrases_dropped"] = len(splits.train.queries) - len(train_set.queries)
            negatives: Negatives = build(config["negatives"], allowed=config["allowed_packages"])
            rows = to_rows(train_set, loss["shape"], negatives=negatives, seed=seed)
            dev_metrics = _dev_metrics(evaluators, base["dev"], splits)
            tracker.log({f"dev/{name}": score for name, score in dev_metrics(base_arm).items()}, step=0)
            training = train(
                model,
                rows,
                train_set,
                loss=build(loss, allowed=config["allowed_packages"], without=["shape", "accepts"]),
                arguments={key: value for key, value in trainer.items() if key != "early_stopping"},
                early_stopping=trainer["early_stopping"],
                dev_metrics=lambda: dev_metrics(Dense(Encoder(model))),
                metric=metric,
                seed=seed,
                folder=folder,
                tracker=tracker,
            )
            result["counts"] |= {"train_rows": len(rows), "masked_conflicts": training.masked_rows}
            result["counts"] |= {"steps": training.steps, "best_step": training.best_step}
            model.model.save_pretrained(str(folder / "model"), create_model_card=False)
        with stage("tuned"):
            tuned = measured(Dense(Encoder(model, progress="tuned model")))
            arms["tuned"] = tuned["test"]
            result["tuned"] = results.metrics_of(tuned)
    with stage("comparison"):
        result |= results.compared(arms, splits, metric=metric)
    results.write_retrieval(arms, splits, folder / "retrieval")
    if not config["keep_checkpoints"]:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _splits(config: Mapping[str, Any]) -> Splits:
    splits: Splits = build(config["dataset"], allowed=config["allowed_packages"])
    shares = config["dataset"].get("split") or {}  # a data set of the user's own may bring its splits ready
    refuse_leaks(splits, near_duplicate=shares.get("near_duplicate", Shares.near_duplicate))
    if config["limit"] is not None:
        splits = limited(splits, config["limit"])
    sizes = {"train": splits.train, "dev": splits.dev, "test": splits.test}
    log.info(
        "data: %s; %d passages",
        ", ".join(f"{name} {len(side.queries)} queries" for name, side in sizes.items()),
        len(splits.test.corpus),
    )
    return splits


def _dev_metrics(
    evaluators: Sequence[Evaluator], base: Evaluation, splits: Splits
) -> Callable[[Arm], dict[str, float]]:
    """Scores an arm on what is measured of dev while training."""
    sets = [(evaluator, evaluator.during_training(base, splits.dev)) for evaluator in evaluators]

    def score(arm: Arm) -> dict[str, float]:
        parts = [evaluate([evaluator], arm, data, **EVALUATION_NEGATIVES) for evaluator, data in sets]
        return {name: value for part in parts for name, value in part.metrics.items()}

    return score


def _mirror(
    config: Mapping[str, Any], names: Mapping[str, str], folder: Path, group: str | None
) -> Callable[[], Any] | None:
    if config["logger"] is None:
        return None
    node = {**config["logger"], "group": config["logger"].get("group") or group}
    make = build(node, allowed=config["allowed_packages"])
    return lambda: make(folder=folder, config=config, names=names)


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a dashboard compares: flat names such as test/base/recall@10 and test/delta/recall@10."""
    flat: dict[str, Any] = {"status": result["status"] or "interrupted", "verdict": result["verdict"]}
    for arm in ("base", "tuned", "bm25"):
        for split, metrics in (result[arm] or {}).items():
            flat |= {f"{split}/{arm}/{name}": score for name, score in metrics.items()}
    for name, delta in (result["delta"] or {}).items():
        flat |= {f"test/delta/{name}": delta["absolute"]}
    if result["delta"]:
        primary = result["delta"][result["metric"]]
        flat |= {f"test/delta/{key}": primary[key] for key in ("ci_low", "ci_high", "p_value")}
    return flat


def _timer(seconds: dict[str, float]) -> Callable[[str], Any]:
    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.perf_counter()
        log.info("%s ...", name)
        try:
            yield
            log.info("%s done in %.1f s", name, time.perf_counter() - start)
        finally:
            seconds[name] = round(time.perf_counter() - start, 2)

    return stage


def quiet_libraries() -> None:
    """Keep the libraries' own progress bars and notices out of a run's output; warnings stay."""
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
