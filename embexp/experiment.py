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
from filelock import FileLock, Timeout

from embexp import report as reports
from embexp import result as results
from embexp.cache import default_folder, digest, kept_in
from embexp.checkpoints import last_usable
from embexp.components import build
from embexp.encoding import Encoder, count_truncated
from embexp.errors import UserError, described
from embexp.evaluators import Evaluation, Evaluator, evaluate
from embexp.models import EmbeddingModel
from embexp.negatives import Drawn, draw_random, second_look
from embexp.paraphrases import without_paraphrases
from embexp.retrieval_set import RetrievalSet, Splits
from embexp.search import BM25, Arm, Dense
from embexp.shapes import Rows, to_rows
from embexp.splits import Shares, limited, refuse_leaks, trainable
from embexp.teachers import Judge, teacher_of
from embexp.tracking import Tracker, open_mirror
from embexp.training import train

log = logging.getLogger(__name__)

# the pairs that dev and test are measured on do not depend on what is trained with, so that runs compare
EVALUATION_NEGATIVES: dict[str, Any] = {"negatives": partial(draw_random, per_query=1), "seed": 0}


def run(
    config: Mapping[str, Any],
    *,
    names: Mapping[str, str],
    folder: Path,
    group: str | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Run one experiment and return the content of its result.json.

    config: the composed and checked config, as plain values. names: the choices of model, loss and dataset. folder: the
    run's folder, which must exist. group: the multirun it belongs to. resume: go on with the killed or failed run in
    the folder; one that was completed is returned as it is. Every error but an interruption from outside is recorded
    in result.json and raised again.
    """
    with _alone(folder), kept_in(_cache_folder(config["cache"])):
        before = reports.read(folder)
        if resume and before is not None and before["status"] == "completed":
            reports.write(before, names, folder)
            return before
        if (folder / "metrics.jsonl").exists() and not resume:
            raise UserError(f"{folder} holds another run; set hydra.run.dir to a new folder, or resume={folder}")
        (folder / "result.json").unlink(missing_ok=True)
        return _run(config, names, folder, group)


def _run(config: Mapping[str, Any], names: Mapping[str, str], folder: Path, group: str | None) -> dict[str, Any]:
    result = results.empty(config)
    tracker = Tracker(folder, open_mirror(_mirror(config, names, folder, group)))
    try:
        _measure(config, result, folder, tracker)
        result["status"] = "completed"
    except Exception as error:
        result |= {"status": "failed", "error": described(error)}
        raise
    finally:
        try:
            if result["status"] is not None:  # else interrupted: no result.json, and that is how it is known
                results.write(result, folder)
                reports.write(result, names, folder)
        finally:
            tracker.finish(_summary(result), exit_code=0 if result["status"] == "completed" else 1)
    if not config["keep_checkpoints"]:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def _measure(config: Mapping[str, Any], result: dict[str, Any], folder: Path, tracker: Tracker) -> None:
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
        encoder = Encoder(model, progress="base model", weights=model.origin["weights"])
        base_arm = Dense(encoder)
        base = measured(base_arm)
        result["base"] = results.metrics_of(base)
    arms = {"base": base["test"], "bm25": bm25["test"]}

    if config["trainer"] is not None:
        with stage("training"):
            dev_metrics = _dev_metrics(evaluators, base["dev"], splits)
            threshold = None if model.untrained else config["paraphrase"]
            train_set = without_paraphrases(trainable(splits), splits, encoder, threshold=threshold)
            result["counts"]["paraphrases_dropped"] = len(splits.train.queries) - len(train_set.queries)
            rows = _rows(config, train_set, encoder, result)
            made_from = digest([result["fingerprint"], model.bfloat16])
            checkpoint = last_usable(folder, made_from=made_from)
            tracker.cut_back(to_step=checkpoint.step if checkpoint else None)
            if checkpoint is None:
                tracker.log({f"dev/{name}": score for name, score in dev_metrics(base_arm).items()}, step=0)
            training = train(
                model,
                rows,
                train_set,
                loss=build(config["loss"], allowed=config["allowed_packages"], without=["shape", "accepts", "teacher"]),
                arguments={key: value for key, value in config["trainer"].items() if key != "early_stopping"},
                early_stopping=config["trainer"]["early_stopping"],
                dev_metrics=lambda: dev_metrics(Dense(Encoder(model))),
                metric=config["metric"],
                seed=config["seed"],
                folder=folder,
                tracker=tracker,
                made_from=made_from,
                resume_from=checkpoint,
            )
            result["counts"] |= {"train_rows": len(rows), "masked_conflicts": training.masked_rows}
            result["counts"] |= {"steps": training.steps, "best_step": training.best_step}
            model.model.save_pretrained(str(folder / "model"), create_model_card=False)
        with stage("tuned"):
            tuned = measured(Dense(Encoder(model, progress="tuned model")))
            arms["tuned"] = tuned["test"]
            result["tuned"] = results.metrics_of(tuned)
    with stage("comparison"):
        result |= results.compared(arms, splits, metric=config["metric"])
    results.write_retrieval(arms, splits, folder / "retrieval")


def _rows(config: Mapping[str, Any], train_set: RetrievalSet, encoder: Encoder, result: dict[str, Any]) -> Rows:
    """Train in the shape that the loss reads; what there is to say of its negatives goes into the result."""
    rows = to_rows(
        train_set,
        config["loss"]["shape"],
        negatives=_negatives(config, encoder),
        teacher=_teacher(config["loss"], encoder),
        seed=config["seed"],
    )
    if rows.drawn is not None:
        result["counts"]["negatives"] = second_look(rows.drawn, train_set, encoder=encoder, seed=config["seed"])
        log.info("%s", reports.negatives_line(result))
    return rows


def _cache_folder(chosen: bool | str) -> Path | None:
    if isinstance(chosen, str):
        return Path(chosen).expanduser()
    return default_folder() if chosen else None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuse a second process in the folder; the system frees the lock of a killed one."""
    lock = FileLock(folder / "running.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another process is at work on the run in {folder}; wait for it, or end it") from error
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


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


def _negatives(config: Mapping[str, Any], encoder: Encoder) -> Callable[..., Drawn] | None:
    if config["negatives"] is None:
        return None
    return partial(build(config["negatives"], allowed=config["allowed_packages"]), encoder=encoder)


def _teacher(loss: Mapping[str, Any], encoder: Encoder) -> Judge | None:
    return teacher_of(loss["teacher"], encoder, setting="loss.teacher") if loss["shape"] == "list" else None


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
