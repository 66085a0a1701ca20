"""Trains a cross-encoder on labelled pairs with sentence-transformers' own trainer. Called by `reranker`.

Ours are batches of like length, looks at dev that keep the best weights, and the refusal to go on after a NaN. It
starts anew whenever it is called: nothing of it is in a run's checkpoints.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from tokenizers import Tokenizer
from transformers import TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback

from embexp.data.retrieval_set import RetrievalSet
from embexp.encoding.tokenising import token_counts
from embexp.errors import UserError, counted, listed
from embexp.models.embedding_model import LOADING_ERRORS, SAFETENSORS_ONLY
from embexp.models.facts import dropouts, has_fast_bfloat16, missing_weights
from embexp.models.folder import why_not_loaded
from embexp.progress import Count
from embexp.reranking.reordering import Trained
from embexp.rows.batches import ConflictFreeBatchSampler
from embexp.rows.conflicts import Conflicts
from embexp.rows.shapes import Rows
from embexp.training.fast_steps import parts_of_like_length
from embexp.training.trainer import OneGpu

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Looks:
    """When to look at dev, and how. score: the primary metric of the model as it is now. what: is measured, in words.

    most: looks in the whole training, the one at its end included; 0 for none.
    """

    score: Callable[[CrossEncoder], float]
    most: int
    what: str


def train(
    start: Path, rows: Rows, data: RetrievalSet, settings: Trained, *, looks: Looks, seed: int, bfloat16: bool, to: Path
) -> dict[str, Any]:
    """Train what is in the folder `start` on labelled pairs of `data` and save it in `to`; says how it went.

    The weights are those of the best look at dev, the last ones without looks. bfloat16: in matrix products, where the
    hardware is fast at it. Raises UserError when it can't be loaded, or when the loss becomes NaN.
    """
    set_seed(seed)  # of a new last layer, and of dropout
    model, new = _loaded(start, settings)
    sampler = ConflictFreeBatchSampler(
        rows,
        Conflicts.of(rows, data),  # none: each pair has its own label
        _lengths(model, rows),
        batch_size=settings.per_device_train_batch_size,
        seed=seed,
        epochs=math.ceil(settings.num_train_epochs),
    )
    steps = math.ceil(len(sampler) * settings.num_train_epochs)
    log.info("the reranker learns from %s in %s", counted(len(rows), "pair"), counted(steps, "step"))
    with Count("training the reranker", steps, unit="steps") as count:
        best = _Best(model, looks, count)
        trainer = _Trainer(
            model=model,
            args=_arguments(settings, sampler, model, steps=steps, seed=seed, bfloat16=bfloat16, folder=to),
            train_dataset=Dataset.from_dict(dict(rows.columns)),
            loss=BinaryCrossEntropyLoss(model),
            callbacks=[best],
        )
        trainer.remove_callback(PrinterCallback)  # replaced by the count
        trainer.train()
    if best.state is not None:
        model.load_state_dict(best.state)
    model.save_pretrained(str(to), create_model_card=False)
    return {"pairs": len(rows), "steps": steps, "best_step": best.step, "new": new}


def _loaded(start: Path, settings: Trained) -> tuple[CrossEncoder, list[str]]:
    """The model, and the names of its weights that are new. Raises UserError where it lacks more than a last layer."""
    name = settings.path or str(start)
    try:
        model = CrossEncoder(
            str(start),
            num_labels=1,
            max_length=settings.max_length,
            local_files_only=True,
            activation_fn=torch.nn.Sigmoid(),
            model_kwargs={"dtype": torch.float32, **SAFETENSORS_ONLY},
        )
    except LOADING_ERRORS as error:
        why = why_not_loaded(start, error)
        raise UserError(f"reranker.path={name} can't be loaded as a cross-encoder ({why})") from error
    new = missing_weights(model, pools_itself=False)
    inside = [weights for weights in new if weights.startswith(f"{model.transformers_model.base_model_prefix}.")]
    # of a model of embeddings the last layer is new, and a pooler is where it was saved without its own
    if missing := [weights for weights in inside if "pooler" not in weights or inside == new]:
        raise UserError(f"reranker.path={name} lacks weights; random ones would stand there: {listed(missing)}")
    if new:
        log.info("random at the start: %s", listed(new))
    if settings.dropout is not None:
        for module, attribute in dropouts(model):
            setattr(module, attribute, settings.dropout)
    return model, new


def _lengths(model: CrossEncoder, rows: Rows) -> np.ndarray:
    """(rows) about how many tokens each pair has."""
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    texts = [rows.columns[name] for name in rows.text_columns]
    if not isinstance(backend, Tokenizer):
        return np.sum([list(map(len, column)) for column in texts], axis=0)
    return np.minimum(sum(token_counts(backend, column, special=False) for column in texts), model.max_seq_length)


def _arguments(
    settings: Trained,
    sampler: ConflictFreeBatchSampler,
    model: CrossEncoder,
    *,
    steps: int,
    seed: int,
    bfloat16: bool,
    folder: Path,
) -> _Arguments:
    on_cpu = model.device.type == "cpu"
    try:
        return _Arguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=settings.per_device_train_batch_size,
            learning_rate=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            weight_decay=settings.weight_decay,
            batch_sampler=lambda *_, **__: sampler,
            seed=seed,
            bf16=bfloat16 and has_fast_bfloat16(model.device),
            use_cpu=on_cpu,
            dataloader_pin_memory=not on_cpu,
            save_strategy="no",
            eval_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"reranker: {error}") from error


class _Arguments(OneGpu, CrossEncoderTrainingArguments):
    """The library's, of a process that uses one GPU."""


class _Trainer(CrossEncoderTrainer):
    """The library's trainer, which ends at the first loss that is not a number."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss of a batch. Raises UserError, with the step, when it is not a number."""
        loss = super().compute_loss(*args, **kwargs)
        value = (loss[0] if isinstance(loss, tuple) else loss).detach()
        if not torch.isfinite(value):
            raise UserError(
                f"the reranker's training diverged at step {self.state.global_step + 1}: the loss is {float(value)}. "
                "Lower reranker.learning_rate, or set model.dtype=float32"
            )
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward, on a CPU in parts of like length."""
        on_cpu = self.model.device.type == "cpu"
        with parts_of_like_length(self.model, output="scores") if on_cpu else nullcontext():
            return super().training_step(*args, **kwargs)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Not added: it collects training texts and asks the Hub."""


class _Best(TrainerCallback):
    """Looks at dev after equal shares of the steps, and keeps the weights that were best there; the later of equals."""

    def __init__(self, model: CrossEncoder, looks: Looks, count: Count) -> None:
        """count: of the steps, where a person sees it."""
        assert count.total is not None
        self._model, self._looks, self._count, self._steps = model, looks, count, count.total
        self._points = {math.ceil(count.total * (number + 1) / looks.most) for number in range(looks.most)}
        self._score = -math.inf
        self.step: int | None = None
        self.state: dict[str, torch.Tensor] | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count, and look where it is due."""
        self._count.add()
        if state.global_step not in self._points:
            return
        score = self._looks.score(self._model)
        log.info("step %d of %d: %s %.3f", state.global_step, self._steps, self._looks.what, score)
        if score >= self._score:
            self._score, self.step = score, state.global_step
            last = state.global_step == self._steps  # whose weights are the model's own
            weights = {} if last else self._model.state_dict()
            self.state = None if last else {name: value.cpu().clone() for name, value in weights.items()}
