"""Fine-tunes a model on rows with a sentence-transformers loss. Called by `experiment`.

Everything that the library has is used as it is: its trainer, its arguments, its losses. Ours are the batches, the
choice of the best checkpoint by dev, and the refusal to go on after a NaN.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from embexp.encoding import Encoder, token_lengths
from embexp.errors import UserError, counted
from embexp.models import EmbeddingModel
from embexp.retrieval_set import RetrievalSet
from embexp.shapes import Rows
from embexp.tracking import Tracker
from embexp.trainer import ROW, Collator, Dev, Looks, Track, Trainer, Watch, diverged

log = logging.getLogger(__name__)

NEVER = 10**9  # steps
LOOKS_SAY_WHEN = {"eval_strategy": "steps", "eval_steps": NEVER}  # arguments of a training that is watched
TEXTS_AT_ONCE = 20_000  # looked at for their lengths: fewer are soon tokenised whole, more would fill the memory
LOOKED_AT = 64  # texts that the trained model must still embed


@dataclass(frozen=True)
class Training:
    """What a training did: optimiser steps, rows that shared a batch with a masked conflict, the best step on dev."""

    steps: int
    masked_rows: int
    best_step: int | None


def train(
    embedding_model: EmbeddingModel,
    rows: Rows,
    data: RetrievalSet,
    *,
    loss: Callable[..., torch.nn.Module],
    arguments: Mapping[str, Any],
    early_stopping: int | None,
    dev_metrics: Callable[[], Mapping[str, float]],
    metric: str,
    seed: int,
    folder: Path,
    tracker: Tracker,
    made_from: str,
    watch: Watch | None = None,
    resume_from: Checkpoint | None = None,
) -> Training:
    """Train the model in place, ending with the weights of the checkpoint that is best on dev.

    With `resume_from` it goes on from there and ends with the same weights as if it had never stopped. made_from: the
    digest of data and base weights that the checkpoints are sealed with.

    data: the train set that `rows` come from. loss: takes the model. arguments: training arguments by name, without
    those that the runner owns. dev_metrics: scores the model as it is now. early_stopping: evaluations without a better
    `metric` after which to stop. watch: may end it with Pruned. Raises UserError when the loss becomes NaN.
    """
    sampler = _sampler(embedding_model, rows, data, arguments, seed=seed)
    set_seed(seed)  # a loss may have parameters of its own
    trainer = Trainer(
        loss=_make_loss(loss, embedding_model),
        folder=folder,
        made_from=made_from,
        keep=arguments.get("save_total_limit"),
        conflicts=sampler.conflicts if sampler.masked_rows else None,
        model=embedding_model.model,
        args=_training_arguments(arguments, embedding_model, rows, sampler, metric=metric, seed=seed, folder=folder),
        train_dataset=Dataset.from_dict({**rows.columns, ROW: list(range(len(rows)))}),
        evaluator=Dev(dev_metrics),
        data_collator=Collator(preprocess_fn=embedding_model.model.preprocess, prompts=_prompts(embedding_model, rows)),
        callbacks=_callbacks(watch, tracker, early_stopping),
    )
    if sampler.masked_rows:
        _tell_of_conflicts(sampler.masked_rows, masked=trainer.masks)
    with _training_attention(embedding_model):
        trainer.train_from(resume_from)
    embedding_model.model.eval()
    if trainer.state.best_global_step is None:
        _refuse_divergence(embedding_model, rows, step=trainer.state.global_step)
    masked = sampler.masked_rows if trainer.masks else 0
    return Training(trainer.state.global_step, masked, trainer.state.best_global_step)


def _callbacks(watch: Watch | None, tracker: Tracker, early_stopping: int | None) -> list[TrainerCallback]:
    looks = [Looks(watch)] if watch is not None else []  # first: Track logs wherever these ask for a checkpoint
    return [*looks, Track(tracker), *([EarlyStoppingCallback(early_stopping)] if early_stopping else [])]


def _sampler(
    embedding_model: EmbeddingModel, rows: Rows, data: RetrievalSet, arguments: Mapping[str, Any], *, seed: int
) -> ConflictFreeBatchSampler:
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
    left_in = "left in: this loss compares no other rows, or in a way that can't be masked"
    what = "masked in the loss" if masked else left_in
    log.warning("%s a batch with a conflicting row, which is %s", counted(rows, "row shares", "rows share"), what)


@contextmanager
def _training_attention(embedding_model: EmbeddingModel) -> Iterator[None]:
    transformer = embedding_model.model.transformers_model
    if not embedding_model.eager_training:
        yield
        return
    usual = transformer.config._attn_implementation
    transformer.set_attn_implementation("eager")
    try:
        yield
    finally:
        transformer.set_attn_implementation(usual)


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
    """(rows) the longest text of each row in tokens, as it will be after truncation; of many rows nearly."""
    longest = getattr(embedding_model.model, "max_seq_length", None) or math.inf
    prompts = _prompts(embedding_model, rows)
    known: dict[str, int] = {}
    columns = [_tokens(embedding_model, rows.columns[name], prompts[name], known) for name in rows.text_columns]
    return np.minimum(longest, np.maximum.reduce(columns))


def _tokens(embedding_model: EmbeddingModel, texts: Sequence[str], prompt: str, known: dict[str, int]) -> np.ndarray:
    """(texts) their tokens; of many texts the sum of their words' tokens, each different word looked at only once.

    known: word -> tokens, which grows. For WordPiece the sum is exact, for others near enough to sort by.
    """
    if len(texts) <= TEXTS_AT_ONCE:
        return np.array(token_lengths(embedding_model, texts, prompt))
    import pyarrow
    import pyarrow.compute

    alone, around = token_lengths(embedding_model, ["", prompt], "")
    counts = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        lists = pyarrow.compute.utf8_split_whitespace(pyarrow.array(texts[start : start + TEXTS_AT_ONCE]))
        found = lists.flatten().dictionary_encode()
        words = found.dictionary.to_pylist()
        new = [word for word in words if word not in known]
        known.update(zip(new, token_lengths(embedding_model, new, ""), strict=True))
        tokens = np.array([known[word] - alone for word in words], np.int64)[np.asarray(found.indices)]
        sums = np.concatenate([[0], np.cumsum(tokens)])
        counts.append(around + np.diff(sums[np.asarray(lists.offsets)]))
    return np.concatenate(counts)


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
    *,
    metric: str,
    seed: int,
    folder: Path,
) -> SentenceTransformerTrainingArguments:
    """The user's arguments with those that the runner owns.

    On small data the model is evaluated (and saved) at least twice an epoch and the loss logged ten times.
    """
    steps = math.ceil(len(sampler) / arguments.get("gradient_accumulation_steps", 1))  # per epoch, of the optimiser
    total = arguments["max_steps"] if arguments.get("max_steps", -1) > 0 else steps * arguments["num_train_epochs"]
    on_cpu = embedding_model.model.device.type == "cpu"
    chosen = {"use_cpu": on_cpu, "dataloader_pin_memory": not on_cpu, **arguments}
    chosen.pop("save_total_limit", None)
    evaluates = chosen["eval_strategy"] != "no"
    if chosen["eval_strategy"] == "steps":
        chosen["eval_steps"] = _at_least_every(chosen["eval_steps"], min(total, steps), 2)
        chosen["save_steps"] = chosen["eval_steps"]
    if chosen.get("logging_strategy", "steps") == "steps":
        chosen["logging_steps"] = _at_least_every(chosen["logging_steps"], total, 10)
    try:
        return SentenceTransformerTrainingArguments(
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


def _at_least_every(every: float, total: float, times: int) -> float:
    return every if every < 1 or every == NEVER else min(int(every), max(1, math.ceil(total / times)))
