"""Tunes the base model as the config says: from the last checkpoint where there is one, with looks at dev.

Called by `experiment`; the training itself is in `fine_tuning`, which is imported, with the libraries that it needs,
once there is something to train.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embexp import stamp
from embexp.cache import digest
from embexp.data.retrieval_set import RetrievalSet
from embexp.encoding.encoder import Encoder
from embexp.evaluation.search import Dense
from embexp.models.embedding_model import EmbeddingModel
from embexp.models.facts import is_routed
from embexp.models.low_rank import low_rank
from embexp.rows.shapes import TAUGHT, Rows
from embexp.starting import uncollected
from embexp.tracking import Tracker
from embexp.training.checkpoints import Checkpoint, last_usable
from embexp.training.looks import Plan

if TYPE_CHECKING:
    from embexp.training.callbacks import Watch
    from embexp.training.fine_tuning import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One attempt at a run: what it is told, what it writes to, who watches it.

    result: the content of result.json, filled in on the way. folder: for the model, the checkpoints and the rankings; a
    checkpoint in it is gone on from. watch: the study that a trial belongs to; a trial looks at dev alone, and its
    model is not kept.
    """

    config: Mapping[str, Any]
    result: dict[str, Any]
    folder: Path
    tracker: Tracker
    watch: Watch | None


@contextmanager
def beside(run: Run, name: str, **config: Any) -> Iterator[Run]:
    """A training of the run's own beside the main one: what it starts from is the same, but for these keys of config.

    It has a folder under checkpoints/, so that it goes on after a kill and nothing of it is left when the run is done;
    only metrics.jsonl there hears of it, and its model is for the caller to keep.
    """
    folder = run.folder / "checkpoints" / name
    folder.mkdir(parents=True, exist_ok=True)
    result = {"fingerprint": run.result["fingerprint"], "counts": {}}
    tracker = Tracker(folder, None)
    try:
        yield Run({**run.config, **config}, result, folder, tracker, watch=None)
    finally:
        tracker.finish({}, exit_code=0)


def learner(model: EmbeddingModel, encoder: Encoder, rows: Rows) -> EmbeddingModel:
    """What is trained on the rows: the model itself, or an adapter on what the encoder makes of it; loaded.

    Loads the libraries that train too: seconds, which a run whose base is kept has not spent yet.
    """
    with uncollected():
        importlib.import_module("embexp.training.fine_tuning")
    if model.adapter is not None:
        from embexp.models.adapters import adapter_of

        return adapter_of(model, encoder, rows)
    model.loaded()
    return model


def tune(
    model: EmbeddingModel, train_set: RetrievalSet, rows: Rows, plan: Plan, run: Run, *, untrained: Mapping[str, float]
) -> Encoder:
    """Train the model in place. Returns an encoder of its weights.

    rows: of the train set. plan: what a look at dev measures. untrained: what it measures of the model as it still is.
    """
    from embexp.training.fine_tuning import train

    config, result, folder, watch = run.config, run.result, run.folder, run.watch
    made_from = _made_from(result["fingerprint"], model, rows)
    checkpoint = last_usable(folder, made_from=made_from)
    run.tracker.cut_back(to_step=checkpoint.step if checkpoint else None)
    if checkpoint is None:
        run.tracker.log({f"dev/{name}": score for name, score in untrained.items()}, step=0)
    else:
        log.info("going on from step %d", checkpoint.step)
    task = _task(train_set, rows, plan, run, made_from=made_from, checkpoint=checkpoint)
    if model.processes is not None:
        model.processes.tell("train", task=task, cache=config["cache"])
    encoders: list[Encoder] = []  # of the last look

    def look() -> dict[str, float]:
        encoders[:] = [Encoder(model, progress="looking at dev")]
        return plan.score(Dense(encoders[0]))

    with low_rank(model, seed=config["seed"]):
        done = train(model, task, dev_metrics=look, tracker=run.tracker, watch=watch)
    result["counts"] |= {"train_rows": len(rows), "masked_conflicts": done.masked_rows}
    result["counts"] |= {"steps": done.steps, "best_step": done.best_step}
    # the weights are those of the last look where the last step is the best: what it embedded stands
    stands = encoders and done.best_step == done.steps and model.lora is None  # merging rounds
    return encoders[0] if stands else Encoder(model, progress="tuned model")


def _made_from(fingerprint: Mapping[str, Any], model: EmbeddingModel, rows: Rows) -> str:
    """The digest of what training starts from: data and models by content, and the rows with the negatives drawn.

    Not of a teacher's scores: the teacher and the texts are in it, and the scores' last bits depend on the number of
    processes and on what was cached.
    """
    columns = {name: values for name, values in rows.columns.items() if name != TAUGHT}
    return digest([fingerprint, model.bfloat16, columns, rows.query_ids, rows.passage_ids])


def _task(
    train_set: RetrievalSet, rows: Rows, plan: Plan, run: Run, *, made_from: str, checkpoint: Checkpoint | None
) -> Task:
    from embexp.training.fine_tuning import OURS, Task

    config, trainer = run.config, run.config["trainer"]
    return Task(
        rows,
        train_set,
        loss=config["loss"],
        allowed_packages=config["allowed_packages"],
        arguments={key: value for key, value in trainer.items() if key not in OURS},
        metric=config["metric"],
        seed=config["seed"],
        folder=run.folder,
        made_from=made_from,
        early_stopping=trainer["early_stopping"],
        most_looks=plan.most,
        looks_per_epoch=None if run.watch is None else run.watch.looks,
        resume_from=checkpoint,
    )


def keep(model: EmbeddingModel, run: Run) -> None:
    """Save the tuned model in its run's folder, but for a trial's."""
    if run.watch is None or run.watch.scores_test:
        save(model, run.folder / "model", run=run.folder.name)


def save(model: EmbeddingModel, folder: Path, *, run: str) -> None:
    """Save the model with its stamp, for SentenceTransformer(folder) to load. run: the name of its run's folder."""
    from embexp.models.adapters import whole

    saved = whole(model)
    saved.save_pretrained(str(folder), create_model_card=False)
    routed = {"routed": True} if is_routed(saved) else {}
    longest = model.facts.max_seq_length
    stamp.write(
        folder,
        dimensions=model.facts.dimensions,
        max_seq_length=longest if longest is not None and math.isfinite(longest) else None,  # a static one's has no end
        prompts={"query": model.query_prompt, "passage": model.passage_prompt},
        run=run,
        **routed,
        **_searched_too(model),
    )


def _searched_too(model: EmbeddingModel) -> dict[str, Any]:
    """What the stamp says of an adapter of queries alone: passages have the base's vectors, and its index will do; and
    of one whose base is elsewhere: where."""
    same = {"same_vectors_as": [model.origin["content"]]} if model.adapter == "query_linear" else {}
    elsewhere = model.base is not None and model.base.remote is not None
    return same | ({"behind": model.origin["path"], "adapter": model.adapter} if elsewhere else {})
