"""Fine-tunes a model on rows with a sentence-transformers loss. Called by `experiment`.

Everything that the library has is used as it is: its trainer, its arguments, its losses. Ours are the batches, the
choice of the best checkpoint by dev, and the refusal to go on after a NaN.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.losses.merged_forward import column_merging_disabled
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from tqdm import tqdm
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState

from embexp import checkpoints
from embexp.batches import ConflictFreeBatchSampler, Conflicts, MaskedSimilarity
from embexp.checkpoints import Checkpoint
from embexp.encoding import token_lengths
from embexp.errors import UserError
from embexp.fast_steps import parts_of_like_length
from embexp.models import EmbeddingModel
from embexp.retrieval_set import RetrievalSet
from embexp.shapes import Rows
from embexp.tracking import Tracker

log = logging.getLogger(__name__)

LOSS_PARAMETERS = "loss.safetensors"  # in a checkpoint
ROW = "row"  # a column that carries the row's number to the loss; never embedded


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
    resume_from: Checkpoint | None = None,
) -> Training:
    """Train the model in place, ending with the weights of the checkpoint that is best on dev.

    With `resume_from` it goes on from there and ends with the same weights as if it had never stopped. made_from: the
    digest of data and base weights that the checkpoints are sealed with.

    data: the train set that `rows` come from. loss: takes the model. arguments: training arguments by name, without
    those that the runner owns. dev_metrics: scores the model as it is now. early_stopping: evaluations without a
    better `metric` after which to stop. Raises UserError when the loss becomes NaN, with the step.
    """
    batch_size = int(arguments["per_device_train_batch_size"])
    sampler = ConflictFreeBatchSampler(
        rows,
        Conflicts.of(rows, data),
        _lengths(embedding_model, rows),
        batch_size=batch_size,
        seed=seed,
        epochs=_epochs(arguments, len(rows), batch_size),
    )
    set_seed(seed)  # a loss may have parameters of its own
    made = _make_loss(loss, embedding_model)
    trainer = _Trainer(
        folder=folder,
        made_from=made_from,
        keep=arguments.get("save_total_limit"),
        conflicts=Conflicts.of(rows, data) if sampler.masked_rows else None,
        model=embedding_model.model,
        args=_training_arguments(arguments, embedding_model, rows, sampler, metric=metric, seed=seed, folder=folder),
        train_dataset=Dataset.from_dict({**rows.columns, ROW: list(range(len(rows)))}),
        loss=made,
        evaluator=_Dev(dev_metrics),
        data_collator=_Collator(
            preprocess_fn=embedding_model.model.preprocess, prompts=_prompts(embedding_model, rows)
        ),
        callbacks=[_Track(tracker), *([EarlyStoppingCallback(early_stopping)] if early_stopping else [])],
    )
    if sampler.masked_rows:
        what = (
            "masked in the loss"
            if trainer.masks
            else "left in: this loss compares no other rows, or in a way that can't be masked"
        )
        log.warning("%d rows share a batch with a conflicting row, which is %s", sampler.masked_rows, what)
    for callback in (ProgressCallback, PrinterCallback):  # replaced by the one line that _Track shows
        trainer.remove_callback(callback)
    with _training_attention(embedding_model):
        if resume_from is not None and resume_from.ended:
            trainer.end_as(resume_from)
        else:
            trainer.train(resume_from_checkpoint=str(resume_from.folder) if resume_from else None)
    embedding_model.model.eval()
    masked_rows = sampler.masked_rows if trainer.masks else 0
    return Training(trainer.state.global_step, masked_rows, trainer.state.best_global_step)


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


def _epochs(arguments: Mapping[str, Any], rows: int, batch_size: int) -> int:
    max_steps = arguments.get("max_steps", -1)
    if max_steps > 0:
        return 1 + max_steps // math.ceil(rows / batch_size)
    return max(1, math.ceil(arguments.get("num_train_epochs", 3)))


def _lengths(embedding_model: EmbeddingModel, rows: Rows) -> list[int]:
    """The longest text of each row in tokens, as it will be after truncation."""
    longest = getattr(embedding_model.model, "max_seq_length", None) or math.inf
    prompts = _prompts(embedding_model, rows)
    columns = [token_lengths(embedding_model, rows.columns[name], prompts[name]) for name in rows.text_columns]
    return [int(min(longest, max(row))) for row in zip(*columns, strict=True)]


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
            save_total_limit=None,  # _Trainer removes old checkpoints once a new one is whole
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
    return every if every < 1 else min(int(every), max(1, math.ceil(total / times)))


class _Trainer(SentenceTransformerTrainer):
    """The library's trainer, with masked conflicts, checkpoints that are whole, and an end at the first NaN."""

    def __init__(
        self, *, folder: Path, made_from: str, keep: int | None, conflicts: Conflicts | None, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self._folder, self._made_from, self._keep = folder, made_from, keep
        self._conflicts = conflicts
        self._masked = MaskedSimilarity.put_into(self.loss) if conflicts is not None else []

    @property
    def masks(self) -> bool:
        """Whether conflicts inside a batch are masked."""
        return bool(self._masked)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        rows = inputs.pop(ROW)
        for masked in self._masked:
            assert self._conflicts is not None
            masked.mask = self._conflicts.mask(rows.tolist())
        # one forward pass for all columns would pad every query to the passages' length
        with column_merging_disabled(), self._parts():
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        value = loss[0] if isinstance(loss, tuple) else loss
        if not torch.isfinite(value):
            raise UserError(
                f"training diverged: the loss is {value.item()} at step {self.state.global_step + 1}. "
                f"Lower trainer.learning_rate (now {self.args.learning_rate:g}) or set model.dtype=float32"
            )
        return loss

    def _parts(self) -> AbstractContextManager[None]:
        # a GPU would rather have one large pass
        on_cpu = self.model.device.type == "cpu" and self.model.transformers_model is not None
        return parts_of_like_length(self.model) if on_cpu else nullcontext()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # neither the pickled arguments nor a model card, which would hold training texts and ask the Hub
        self.model.save_pretrained(str(output_dir), create_model_card=False)
        own = {name: value.detach().cpu() for name, value in self._parameters_of_the_loss().items()}
        save_file(own, Path(str(output_dir), LOSS_PARAMETERS))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        checkpoint = checkpoints.path_of(self._folder, self.state.global_step)
        checkpoints.seal(checkpoint, made_from=self._made_from, ended=self.control.should_training_stop)
        checkpoints.rotate(self._folder, keep=self._keep, best=self.state.best_global_step)

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        super()._load_from_checkpoint(checkpoint_path)
        own = self._parameters_of_the_loss()
        with torch.no_grad():
            for name, value in load_file(Path(checkpoint_path, LOSS_PARAMETERS)).items():
                own[name].copy_(value)

    def _load_best_model(self) -> None:
        # the library's logs a failure and keeps the last weights
        best = checkpoints.path_of(self._folder, self.state.best_global_step)
        if not checkpoints.is_whole(best):
            raise UserError(
                f"the best checkpoint {best} has been damaged since it was written. Resuming the run trains again from "
                "the last checkpoint that is whole"
            )
        self._load_from_checkpoint(str(best))

    def end_as(self, checkpoint: Checkpoint) -> None:
        """Take the state of a training that was over when its last checkpoint was made."""
        self.state = TrainerState.load_from_json(str(checkpoint.folder / "trainer_state.json"))
        self._load_best_model()

    def _parameters_of_the_loss(self) -> dict[str, torch.nn.Parameter]:
        """Trained parameters that are not the model's, which the library does not save."""
        of_the_model = set(map(id, self.model.parameters()))
        named = self.loss.named_parameters()
        return {name: value for name, value in named if value.requires_grad and id(value) not in of_the_model}

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Not added: it collects training texts and asks the Hub."""


@dataclass
class _Collator(SentenceTransformerDataCollator):
    """The library's collator, which hands on each row's number."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        numbers = torch.tensor([feature[ROW] for feature in features])
        texts = [{name: value for name, value in feature.items() if name != ROW} for feature in features]
        return {**super().__call__(texts), ROW: numbers}


class _Dev(BaseEvaluator):
    """Gives the trainer the dev metrics."""

    def __init__(self, dev_metrics: Callable[[], Mapping[str, float]]) -> None:
        super().__init__()
        self._dev_metrics = dev_metrics

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        try:
            return dict(self._dev_metrics())
        except UserError as error:
            raise UserError(f"at step {steps}: {error}") from error


class _Track(TrainerCallback):
    """Sends losses and dev metrics to the tracker and shows one progress line."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc="training", unit="step", disable=None, leave=False
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self._bar is not None
        self._bar.update(1)
        if control.should_save:  # a resumed run starts its mean loss at the checkpoint; so does one that never stopped
            control.should_log = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_save:
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        # metrics have an @ or a dot in their names; the trainer's own measurements of time have neither
        names = [name for name in logs if name.startswith("eval_") and set(name) & set("@.")]
        dev = {f"dev/{name.removeprefix('eval_')}": logs[name] for name in names}
        if any(name.startswith("eval_") for name in logs):
            self._tracker.log({"epoch": logs["epoch"], **dev}, step=state.global_step)
            return
        train = {f"train/{name}": logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs}
        if train:
            self._tracker.log({"epoch": logs["epoch"], **train}, step=state.global_step)
            if self._bar is not None:
                self._bar.set_postfix(loss=f"{logs['loss']:.3f}" if "loss" in logs else "")
            if self._bar is None or self._bar.disable:
                log.info("step %d of %d: loss %.4f", state.global_step, state.max_steps, logs.get("loss", math.nan))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self._bar is not None
        self._bar.close()
