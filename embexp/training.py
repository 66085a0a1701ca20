"""Fine-tunes a model on rows with a sentence-transformers loss. Called by `tuning` and `follower`.

Everything that the library has is used as it is: its trainer, its arguments, its losses. Ours are the batches, the
choice of the best checkpoint by dev, and the refusal to go on after a NaN.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed

from embexp.batches import ConflictFreeBatchSampler
from embexp.checkpoints import Checkpoint
from embexp.conflicts import Conflicts
from embexp.encoding import Encoder
from embexp.errors import UserError, counted
from embexp.looks import NEVER, at_least_every, every_look, steps_in
from embexp.models import EmbeddingModel
from embexp.parallel.processes import Processes
from embexp.parallel.shares import generators
from embexp.retrieval_set import RetrievalSet
from embexp.shapes import Rows
from embexp.tokens import lengths
from embexp.tracking import Tracker
from embexp.trainer import ROW, Collator, Dev, Looks, Track, Trainer, Watch, diverged

log = logging.getLogger(__name__)

LOOKS_SAY_WHEN = {"eval_strategy": "steps", "eval_steps": NEVER}  # arguments of a training that is watched
OURS = ("early_stopping", "evaluation_share", "processes")  # keys of conf/trainer that are no training arguments
LOOKED_AT = 64  # texts that the trained model must still embed


@dataclass(frozen=True)
class Training:
    """What a training did: optimiser steps, rows that shared a batch with a masked conflict, the best step on dev."""

    steps: int
    masked_rows: int
    best_step: int | None


class OneGpuArguments(SentenceTransformerTrainingArguments):
    """Training arguments of a process that uses one GPU, however many it sees."""

    @property
    def n_gpu(self) -> int:
        """1, or 0 without a GPU; with more the library splits each batch, and its negatives, by nn.DataParallel."""
        return min(1, super().n_gpu)


def train(
    embedding_model: EmbeddingModel,
    rows: Rows,
    data: RetrievalSet,
    *,
    loss: Callable[..., torch.nn.Module],
    arguments: Mapping[str, Any],
    early_stopping: int | None,
    looks: int | None,
    dev_metrics: Callable[[], Mapping[str, float]],
    metric: str,
    seed: int,
    folder: Path,
    tracker: Tracker | None,
    made_from: str,
    watch: Watch | None = None,
    resume_from: Checkpoint | None = None,
) -> Training:
    """Train the model in place, ending with the weights of the checkpoint that is best on dev.

    With `resume_from` it goes on from there and ends with the same weights as if it had never stopped. made_from: the
    digest of data and base weights that the checkpoints are sealed with. data: the train set of `rows`. loss: takes the
    model. arguments: training arguments by name, without those that the runner owns. looks: at dev, at most.
    dev_metrics: scores the model as it is now. early_stopping: looks without a better `metric` after which to stop.
    tracker: None shows nothing. watch: may end it with Pruned. Raises UserError when the loss becomes NaN. A run's
    processes all do this, each with its copy of the model.
    """
    sampler = sampler_of(embedding_model, rows, data, arguments, seed=seed)
    set_seed(seed)  # a loss may have parameters of its own
    trainer = Trainer(
        loss=_make_loss(loss, embedding_model),
        folder=folder,
        made_from=made_from,
        keep=arguments.get("save_total_limit"),
        conflicts=sampler.conflicts if sampler.masked_rows else None,
        processes=embedding_model.processes,
        model=embedding_model.model,
        args=_training_arguments(arguments, embedding_model, rows, sampler, looks, metric, seed=seed, folder=folder),
        train_dataset=Dataset.from_dict({**rows.columns, ROW: list(range(len(rows)))}),
        evaluator=Dev(partial(_scored, dev_metrics, embedding_model.processes)),
        data_collator=Collator(preprocess_fn=embedding_model.model.preprocess, prompts=_prompts(embedding_model, rows)),
        callbacks=_callbacks(watch, tracker, early_stopping),
    )
    _tell_of_conflicts(sampler.masked_rows, masked=trainer.masks)
    with training_attention(embedding_model):  # which leaves the model in evaluation
        trainer.train_from(resume_from)
    step, best = trainer.state.global_step, trainer.state.best_global_step
    if best is None and trainer.leads:
        _refuse_divergence(embedding_model, rows, step=step)
    return Training(step, sampler.masked_rows if trainer.masks else 0, best)


def _scored(dev_metrics: Callable[[], Mapping[str, float]], processes: Processes | None) -> Mapping[str, float]:
    """The dev metrics, told to the followers, who decide by them as process 0 does and go on from the same state."""
    metrics = dev_metrics()
    if processes is not None and processes.leads:
        processes.tell("scored", metrics=metrics, states=generators())
    return metrics


def _callbacks(watch: Watch | None, tracker: Tracker | None, early_stopping: int | None) -> list[TrainerCallback]:
    looks = [Looks(watch)] if watch is not None else []  # first: Track logs wherever these ask for a checkpoint
    tracks = [Track(tracker)] if tracker is not None else []
    return [*looks, *tracks, *([EarlyStoppingCallback(early_stopping)] if early_stopping else [])]


def sampler_of(
    embedding_model: EmbeddingModel, rows: Rows, data: RetrievalSet, arguments: Mapping[str, Any], *, seed: int
) -> ConflictFreeBatchSampler:
    """Each epoch's batches of a training with these arguments; rows are of `data`."""
    batch_size = int(arguments["per_device_train_batch_size"])
    return ConflictFreeBatchSampler(
        rows,
        Conflicts.of(rows, data),
        _lengths(embedding_model, rows),
        batch_size=batch_size,
        seed=seed,
        epochs=_epochs(arguments, len(rows), batch_size),
    )


def _tell_of_conflicts(rows: int, *, masked: bool) -> None:
    if not rows:
        return
    left_in = "left in: this loss compares no other rows, or in a way that can't be masked"
    what = "masked in the loss" if masked else left_in
    log.warning("%s a batch with a conflicting row, which is %s", counted(rows, "row shares", "rows share"), what)


@contextmanager
def training_attention(embedding_model: EmbeddingModel) -> Iterator[None]:
    """With the attention that trains fastest; afterwards with the usual one, and in evaluation."""
    transformer = embedding_model.model.transformers_model
    usual = transformer.config._attn_implementation if embedding_model.eager_training else None
    if usual is not None:
        transformer.set_attn_implementation("eager")
    try:
        yield
    finally:
        if usual is not None:
            transformer.set_attn_implementation(usual)
        embedding_model.model.eval()


def _refuse_divergence(embedding_model: EmbeddingModel, rows: Rows, *, step: int) -> None:
    """Where dev is not looked at, neither a loss nor a score would show what the last step has done."""
    if not all(bool(torch.isfinite(weights).all()) for weights in embedding_model.model.parameters()):
        raise diverged("weights are infinite or no numbers", step=step)
    try:
        Encoder(embedding_model).queries(rows.columns[rows.text_columns[0]][:LOOKED_AT])
    except UserError as error:
        raise diverged(str(error), step=step) from error


def _epochs(arguments: Mapping[str, Any], rows: int, batch_size: int) -> int:
    max_steps = arguments.get("max_steps", -1)
    if max_steps > 0:
        return 1 + max_steps * arguments.get("gradient_accumulation_steps", 1) // math.ceil(rows / batch_size)
    return max(1, math.ceil(arguments.get("num_train_epochs", 3)))


def _lengths(embedding_model: EmbeddingModel, rows: Rows) -> np.ndarray:
    """(rows) the longest text of each row in tokens, as the model reads it."""
    prompts = _prompts(embedding_model, rows)
    return np.maximum.reduce(
        [lengths(embedding_model, rows.columns[name], prompts[name]) for name in rows.text_columns]
    )


def _prompts(embedding_model: EmbeddingModel, rows: Rows) -> dict[str, str]:
    query, *passages = rows.text_columns
    return {query: embedding_model.query_prompt, **dict.fromkeys(passages, embedding_model.passage_prompt)}


def _make_loss(loss: Callable[..., torch.nn.Module], embedding_model: EmbeddingModel) -> torch.nn.Module:
    try:
        return loss(model=embedding_model.model)
    except (TypeError, ValueError) as error:
        raise UserError(f"the loss can't be made with these parameters: {error}") from error


def _training_arguments(
    arguments: Mapping[str, Any],
    embedding_model: EmbeddingModel,
    rows: Rows,
    sampler: ConflictFreeBatchSampler,
    looks: int | None,
    metric: str,
    *,
    seed: int,
    folder: Path,
) -> OneGpuArguments:
    """The user's arguments with those that the runner owns.

    On small data the model is evaluated (and saved) at least twice an epoch, but `looks` times at most in all, and the
    loss logged ten times.
    """
    steps, total = steps_in(arguments, len(sampler))
    on_cpu = embedding_model.model.device.type == "cpu"
    chosen = {"use_cpu": on_cpu, "dataloader_pin_memory": not on_cpu, **arguments}
    chosen.pop("save_total_limit", None)
    evaluates = chosen["eval_strategy"] != "no"
    if chosen["eval_strategy"] == "steps":
        chosen["eval_steps"] = every_look(chosen, steps, total, most=looks)
        chosen["save_steps"] = chosen["eval_steps"]
    if chosen.get("logging_strategy", "steps") == "steps":
        chosen["logging_steps"] = at_least_every(chosen["logging_steps"], total, 10)
    try:
        return OneGpuArguments(
            **chosen,
            output_dir=str(folder / "checkpoints"),
            report_to="none",
            batch_sampler=lambda *_, **__: sampler,
            prompts=_prompts(embedding_model, rows),
            save_strategy=chosen["eval_strategy"],
            save_total_limit=None,  # Trainer removes old checkpoints once a new one is whole
            restore_callback_states_from_checkpoint=True,  # how long dev has not improved, for early stopping
            load_best_model_at_end=evaluates,
            metric_for_best_model=f"eval_{metric}" if evaluates else None,
            greater_is_better=True if evaluates else None,
            seed=seed,
            bf16=embedding_model.bfloat16,
            disable_tqdm=True,
            remove_unused_columns=False,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"trainer: {error}") from error
