"""Tunes the base model as the config says: from the last checkpoint where there is one, with looks at dev.

Called by `experiment`; the training itself is in `training`, which is imported, with the libraries that it needs, once
there is something to train.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embexp import stamp
from embexp.arms import Dense
from embexp.cache import digest
from embexp.checkpoints import Checkpoint, last_usable
from embexp.components import build
from embexp.encoding import Encoder
from embexp.looks import Plan
from embexp.models import EmbeddingModel
from embexp.retrieval_set import RetrievalSet
from embexp.shapes import TAUGHT, Rows
from embexp.starting import uncollected
from embexp.tracking import Tracker

if TYPE_CHECKING:
    from embexp.trainer import Watch

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


def load(model: EmbeddingModel) -> None:
    """The model and the libraries that train it: seconds, which a run whose base is kept has not spent yet."""
    model.loaded()
    with uncollected():
        for module in ("embexp.losses", "embexp.training"):
            importlib.import_module(module)


def tune(
    model: EmbeddingModel, train_set: RetrievalSet, rows: Rows, plan: Plan, run: Run, *, untrained: Mapping[str, float]
) -> Encoder:
    """Train the model in place and save it, but for a trial's. Returns an encoder of its weights.

    rows: of the train set. plan: what a look at dev measures. untrained: what it measures of the model as it still is.
    """
    from embexp.losses import OWN_KEYS
    from embexp.training import train

    config, result, folder, watch = run.config, run.result, run.folder, run.watch
    made_from = _made_from(result["fingerprint"], model, rows)
    checkpoint = last_usable(folder, made_from=made_from)
    run.tracker.cut_back(to_step=checkpoint.step if checkpoint else None)
    if checkpoint is None:
        run.tracker.log({f"dev/{name}": score for name, score in untrained.items()}, step=0)
    else:
        log.info("going on from step %d", checkpoint.step)
    choices = {"folder": folder, "made_from": made_from, **_choices(config, plan, watch, checkpoint)}
    if model.processes is not None:
        said = {key: config[key] for key in ("loss", "allowed_packages", "cache")}
        watched = None if watch is None else watch.looks
        model.processes.tell("train", rows=rows, data=train_set, choices=choices, watched=watched, **said)
    encoders: list[Encoder] = []  # of the last look

    def look() -> dict[str, float]:
        encoders[:] = [Encoder(model, progress="tuned model")]
        return plan.score(Dense(encoders[0]))

    loss = build(config["loss"], allowed=config["allowed_packages"], without=OWN_KEYS)
    done = train(model, rows, train_set, loss=loss, dev_metrics=look, tracker=run.tracker, watch=watch, **choices)
    result["counts"] |= {"train_rows": len(rows), "masked_conflicts": done.masked_rows}
    result["counts"] |= {"steps": done.steps, "best_step": done.best_step}
    if watch is None or watch.scores_test:
        _save(model, folder)
    # the weights are those of the last look where the last step is the best: what it embedded stands
    return encoders[0] if encoders and done.best_step == done.steps else Encoder(model, progress="tuned model")


def _made_from(fingerprint: Mapping[str, Any], model: EmbeddingModel, rows: Rows) -> str:
    """The digest of what training starts from: data and models by content, and the rows with the negatives drawn.

    Not of a teacher's scores: the teacher and the texts are in it, and the scores' last bits depend on the number of
    processes and on what was cached.
    """
    columns = {name: values for name, values in rows.columns.items() if name != TAUGHT}
    return digest([fingerprint, model.bfloat16, columns, rows.query_ids, rows.passage_ids])


def _choices(
    config: Mapping[str, Any], plan: Plan, watch: Watch | None, checkpoint: Checkpoint | None
) -> dict[str, Any]:
    """What all processes of a run are told to train with."""
    from embexp.training import LOOKS_SAY_WHEN, OURS

    arguments = {key: value for key, value in config["trainer"].items() if key not in OURS}
    return {
        "arguments": arguments | (LOOKS_SAY_WHEN if watch is not None else {}),
        "early_stopping": config["trainer"]["early_stopping"],
        "looks": plan.most if watch is None else None,
        "metric": config["metric"],
        "seed": config["seed"],
        "resume_from": checkpoint,
    }


def _save(model: EmbeddingModel, folder: Path) -> None:
    """Save the model with its stamp in the run's folder, for SentenceTransformer to load."""
    model.model.save_pretrained(str(folder / "model"), create_model_card=False)
    longest = model.facts.max_seq_length
    stamp.write(
        folder / "model",
        dimensions=model.facts.dimensions,
        max_seq_length=longest if longest is not None and math.isfinite(longest) else None,  # a static one's has no end
        prompts={"query": model.query_prompt, "passage": model.passage_prompt},
        run=folder.name,
    )
