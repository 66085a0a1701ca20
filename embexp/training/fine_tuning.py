"""Fine-tunes a model on rows with a sentence-transformers loss. Called by `tuning` and `follower`.

Everything that the library has is used as it is: its trainer, its arguments, its losses. Ours are the batches, the
choice of the best checkpoint by dev, and the refusal to go on after a NaN.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed

from embexp.config.components import build
from embexp.data.retrieval_set import RetrievalSet
from embexp.encoding.encoder import Encoder
from embexp.encoding.tokenising import preprocessing
from embexp.encoding.tokens import lengths
from embexp.errors import UserError, counted
from embexp.models.embedding_model import EmbeddingModel
from embexp.parallel.shares import generators
from embexp.rows.batches import ConflictFreeBatchSampler
from embexp.rows.conflicts import Conflicts
from embexp.rows.shapes import Rows
from embexp.tracking import Tracker
from embexp.training.callbacks import Looks, Saves, Track, Watch
from embexp.training.checkpoints import Checkpoint
from embexp.training.looks import NEVER, at_least_every, every_look, steps_in
from embexp.training.losses import OWN_KEYS
from embexp.training.trainer import ROW, Collator, Dev, OneGpu, Trainer, diverged

log = logging.getLogger(__name__)

LOOKS_SAY_WHEN = {"eval_strategy": "steps", "eval_steps": NEVER}  # arguments of a training whose looks a study asks for
OURS = ("early_stopping", "evaluation_share", "processes")  # keys of conf/trainer that are no training arguments
LOOKED_AT = 64  # texts that the trained model must still embed


@dataclass(frozen=True)
class Training:
    """What a training did: optimiser steps, rows that shared a batch with a masked conflict, the best step on dev."""

    steps: int
    masked_rows: int
    best_step: int | None


class OneGpuArguments(OneGpu, SentenceTransformerTrainingArguments):
    """The library's, of a process that uses one GPU."""


@dataclass(frozen=True)
class Task:
    """What to train on and how, the same in all processes of a run.

    | field            | meaning                                                                             |
    |------------------|-------------------------------------------------------------------------------------|
    | rows, data       | the rows, and the train set that they come from                                     |
    | loss             | the config's node, whose targets may live in `allowed_packages`                     |
    | arguments        | training arguments by name, without those that the runner owns                      |
    | metric           | of dev, by which the best checkpoint is chosen                                      |
    | folder           | the run's                                                                           |
    | made_from        | the digest of data and base weights that the checkpoints are sealed with            |
    | early_stopping   | looks at dev without a better `metric` after which to stop; None for never          |
    | most_looks       | at dev in all, the one at the end included; None for as many as the arguments say   |
    | looks_per_epoch  | that a study asks for, whatever the arguments say; None outside one                 |
    | resume_from      | the checkpoint to go on from; None at the start                                     |
    """

    rows: Rows
    data: RetrievalSet
    loss: Mapping[str, Any]
    allowed_packages: Sequence[str]
    arguments: Mapping[str, Any]
    metric: str
    seed: int
    folder: Path
    made_from: str
    early_stopping: int | None = None
    most_looks: int | None = None
    looks_per_epoch: int | None = None
    resume_from: Checkpoint | None = None


def train(
    embedding_model: EmbeddingModel,
    task: Task,
    *,
    dev_metrics: Callable[[], Mapping[str, float]],
    tracker: Tracker | None,
    watch: Watch | None = None,
) -> Training:
    """Train the model in place, ending with the weights of the checkpoint that is best on dev.

    From a checkpoint it goes on and ends with the same weights as if it had never stopped. dev_metrics: scores the
    model as it is now. tracker: None shows nothing. watch: told of a study's looks; may end the training with Pruned.
    Raises UserError when the loss becomes NaN. A run's processes all do this, each with its copy of the model.
    """
    if task.looks_per_epoch is not None:
        task = replace(task, arguments={**task.arguments, **LOOKS_SAY_WHEN})
    rows = task.rows
    sampler = sampler_of(embedding_model, rows, task.data, task.arguments, seed=task.seed)
    set_seed(task.seed)  # a loss may have parameters of its own
    trainer = Trainer(
        loss=_make_loss(task, embedding_model),
        folder=task.folder,
        made_from=task.made_from,
        keep=task.arguments.get("save_total_limit"),
        conflicts=sampler.conflicts if sampler.masked_rows else None,
        processes=embedding_model.processes,
        partly=embedding_model.partly,
        model=embedding_model.model,
        args=_training_arguments(task, embedding_model, sampler),
        train_dataset=Dataset.from_dict({**rows.columns, ROW: list(range(len(rows)))}),
        evaluator=Dev(partial(_scored, dev_metrics, embedding_model)),
        data_collator=Collator(
            preprocess_fn=preprocessing(embedding_model.model),
            prompts=_prompts(embedding_model, rows),
            router_mapping=_tasks(embedding_model, rows),
        ),
        callbacks=_callbacks(task, watch, tracker, batches=len(sampler)),
    )
    _tell_of_conflicts(sampler.masked_rows, masked=trainer.masks)
    with training_attention(embedding_model):  # which leaves the model in evaluation
        trainer.train_from(task.resume_from)
    step, best = trainer.state.global_step, trainer.state.best_global_step
    if best is None and trainer.leads:
        _refuse_divergence(embedding_model, rows, step=step)
    return Training(step, sampler.masked_rows if trainer.masks else 0, best)


def _scored(dev_metrics: Callable[[], Mapping[str, float]], embedding_model: EmbeddingModel) -> Mapping[str, float]:
    """The dev metrics, told to the followers, who decide by them as process 0 does and go on from the same state."""
    with _attention(embedding_model, embedding_model.facts.attention):  # embeds as before and after the training
        metrics = dev_metrics()
    processes = embedding_model.processes
    if processes is not None and processes.leads:
        processes.tell("scored", metrics=metrics, states=generators())
    return metrics


def _callbacks(task: Task, watch: Watch | None, tracker: Tracker | None, *, batches: int) -> list[TrainerCallback]:
    found: list[TrainerCallback] = []
    if task.looks_per_epoch is not None:
        found.append(Looks(task.looks_per_epoch, watch))
    if task.arguments["eval_strategy"] == "steps":
        found.append(Saves(every_look(task.arguments, *steps_in(task.arguments, batches))))
    if tracker is not None:  # after those that ask for checkpoints, since it logs wherever one is made
        found.append(Track(tracker, metric=task.metric))
    return [*found, *([EarlyStoppingCallback(task.early_stopping)] if task.early_stopping else [])]


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
    try:
        with _attention(embedding_model, "eager"):
            yield
    finally:
        embedding_model.model.eval()


@contextmanager
def _attention(embedding_model: EmbeddingModel, name: str | None) -> Iterator[None]:
    """While this is open attention is computed so, in a model for which training switches it."""
    transformer = embedding_model.model.transformers_model if embedding_model.eager_training else None
    if transformer is None or name is None:
        yield
        return
    before = transformer.config._attn_implementation
    transformer.set_attn_implementation(name)
    try:
        yield
    finally:
        transformer.set_attn_implementation(before)


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


def _tasks(embedding_model: EmbeddingModel, rows: Rows) -> dict[str, str]:
    query, *passages = rows.text_columns
    return {query: "query", **dict.fromkeys(passages, "document")} if embedding_model.facts.routed else {}


def _make_loss(task: Task, embedding_model: EmbeddingModel) -> torch.nn.Module:
    loss = build(task.loss, allowed=task.allowed_packages, without=OWN_KEYS)
    try:
        made: torch.nn.Module = loss(model=embedding_model.model)
    except (TypeError, ValueError) as error:
        raise UserError(f"the loss can't be made with these parameters: {error}") from error
    return made


def _training_arguments(
    task: Task, embedding_model: EmbeddingModel, sampler: ConflictFreeBatchSampler
) -> OneGpuArguments:
    """The user's arguments with those that the runner owns.

    On small data the model is evaluated (and saved) at least twice an epoch, but `most_looks` times at most in all, and
    the loss logged ten times.
    """
    steps, total = steps_in(task.arguments, len(sampler))
    on_cpu = embedding_model.model.device.type == "cpu"
    chosen = {"use_cpu": on_cpu, "dataloader_pin_memory": not on_cpu, **task.arguments}
    chosen.pop("save_total_limit", None)
    evaluates = chosen["eval_strategy"] != "no"
    if chosen["eval_strategy"] == "steps":
        chosen["eval_steps"] = every_look(chosen, steps, total, most=task.most_looks)
        chosen["save_steps"] = chosen["eval_steps"]  # the best step must have a checkpoint; `Saves` asks for more
    if chosen.get("logging_strategy", "steps") == "steps":
        chosen["logging_steps"] = at_least_every(chosen["logging_steps"], total, 10)
    try:
        return OneGpuArguments(
            **chosen,
            output_dir=str(task.folder / "checkpoints"),
            report_to="none",
            batch_sampler=lambda *_, **__: sampler,
            prompts=_prompts(embedding_model, task.rows),
            router_mapping=_tasks(embedding_model, task.rows),
            save_strategy=chosen["eval_strategy"],
            save_total_limit=None,  # Trainer removes old checkpoints once a new one is whole
            restore_callback_states_from_checkpoint=True,  # how long dev has not improved, for early stopping
            load_best_model_at_end=evaluates,
            metric_for_best_model=f"eval_{task.metric}" if evaluates else None,
            greater_is_better=True if evaluates else None,
            seed=task.seed,
            bf16=embedding_model.bfloat16,
            logging_nan_inf_filter=False,  # `trainer` sees them, without waiting for a GPU
            disable_tqdm=True,
            remove_unused_columns=False,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"trainer: {error}") from error
