"""The library's trainer with what embexp adds: whole checkpoints, masked conflicts, dev as the judge, an end at NaN.

Called by `fine_tuning`, which says what to train on and how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.losses.merged_forward import column_merging_disabled
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState

from embexp.errors import UserError
from embexp.parallel.processes import Processes
from embexp.parallel.shares import add_gradients, same_weights, shared
from embexp.rows.batches import MaskedSimilarity
from embexp.rows.conflicts import Conflicts
from embexp.training import checkpoints
from embexp.training.checkpoints import Checkpoint
from embexp.training.fast_steps import parts_of_like_length

LOSS_PARAMETERS = "loss.safetensors"  # in a checkpoint
TRAINED = "trained.safetensors"  # in one of a training of some of the weights, instead of the model
ROW = "row"  # a column that carries the row's number to the loss; never embedded


class OneGpu:
    """Makes training arguments those of a process that uses one GPU, however many it sees."""

    @property
    def n_gpu(self) -> int:
        """1, or 0 without a GPU; with more the library splits each batch, and its negatives, by nn.DataParallel."""
        return min(1, int(super().n_gpu))  # type: ignore[misc]


class Trainer(SentenceTransformerTrainer):
    """The library's trainer, with masked conflicts, checkpoints that are whole, and an end at the first NaN.

    With several processes each has one, which reads the same batches; process 0's alone writes and complains.
    """

    def __init__(
        self,
        *,
        folder: Path,
        made_from: str,
        keep: int | None,
        conflicts: Conflicts | None,
        processes: Processes | None,
        partly: bool = False,
        **arguments: Any,
    ) -> None:
        """partly: whether checkpoints hold the weights that are trained, not the whole model."""
        super().__init__(**arguments)
        self._partly = partly
        self._folder, self._made_from, self._keep = folder, made_from, keep
        self._processes, self.leads = processes, processes is None or processes.leads
        self._conflicts = conflicts
        self._masked = MaskedSimilarity.put_into(self.loss) if conflicts is not None else []
        self._losses = _Losses(self.model.device)
        for callback in (ProgressCallback, PrinterCallback):  # replaced by the one line that Track shows
            self.remove_callback(callback)

    @property
    def masks(self) -> bool:
        """Whether conflicts inside a batch are masked."""
        return bool(self._masked)

    @property
    def looks_at_each_loss(self) -> bool:
        """Whether it is looked at as soon as it is there; a GPU is waited for only where something is logged."""
        return self.model.device.type == "cpu"

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of a batch, conflicts masked. Raises UserError, with the step, when it is not a number."""
        rows = inputs.pop(ROW)
        for masked in self._masked:
            assert self._conflicts is not None
            masked.mask = self._conflicts.mask(rows.tolist())
        # one forward pass for positives and negatives would pad each column to the longest text of all
        with column_merging_disabled():
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        value = loss[0] if isinstance(loss, tuple) else loss
        self._losses.saw(value.detach(), step=self.state.global_step + 1)
        if self.looks_at_each_loss:
            self._refuse_divergence()
        return loss

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """What the library does between steps. The first loss that is not a number ends the training before it."""
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self._refuse_divergence()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _refuse_divergence(self) -> None:
        step, loss = self._losses.first_bad
        if self.leads and step:
            raise diverged(f"the loss is {loss}", step=step)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward: a loss that caches gradients embeds its texts once more in the latter."""
        guides = [guide for part in self.loss.modules() if (guide := getattr(part, "guide", None)) is not None]
        with self._parts(), shared([self.model, *guides], self._processes):
            loss = super().training_step(*args, **kwargs)
        if self._processes is not None and self.accelerator.sync_gradients:
            add_gradients(self.model, list(self._parameters_of_the_loss().values()), self._processes)
        return loss

    def _parts(self) -> AbstractContextManager[None]:
        # a GPU would rather have one large pass
        on_cpu = self.model.device.type == "cpu" and self.model.transformers_model is not None
        return parts_of_like_length(self.model) if on_cpu else nullcontext()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # neither the pickled arguments nor a model card, which would hold training texts and ask the Hub
        Path(str(output_dir)).mkdir(parents=True, exist_ok=True)
        if self._partly:
            trained = {name: value.detach().cpu() for name, value in self._trained().items()}
            save_file(trained, Path(str(output_dir), TRAINED))
        else:
            self.model.save_pretrained(str(output_dir), create_model_card=False)
        own = {name: value.detach().cpu() for name, value in self._parameters_of_the_loss().items()}
        save_file(own, Path(str(output_dir), LOSS_PARAMETERS))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not self.leads:
            return
        super()._save_checkpoint(model, trial)
        checkpoint = checkpoints.path_of(self._folder, self.state.global_step)
        checkpoints.seal(checkpoint, made_from=self._made_from, ended=self.control.should_training_stop)
        checkpoints.rotate(self._folder, keep=self._keep, best=self.state.best_global_step)

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        parts = [(LOSS_PARAMETERS, self._parameters_of_the_loss())]
        if self._partly:
            parts.append((TRAINED, self._trained()))
        else:
            super()._load_from_checkpoint(checkpoint_path)
        with torch.no_grad():
            for file, own in parts:
                for name, value in load_file(Path(checkpoint_path, file)).items():
                    own[name].copy_(value)

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def _load_best_model(self) -> None:
        if not self.leads:  # they get it from process 0
            return
        # the library's logs a failure and keeps the last weights
        best = checkpoints.path_of(self._folder, self.state.best_global_step)
        if not checkpoints.is_whole(best):
            raise UserError(
                f"the best checkpoint {best} has been damaged since it was written. Resuming the run trains again from "
                "the last checkpoint that is whole"
            )
        self._load_from_checkpoint(str(best))

    def train_from(self, checkpoint: Checkpoint | None) -> None:
        """Train from the start, or go on from a checkpoint; one of a training that was over is only taken back.

        All processes end with the same weights: those of process 0, which alone knows the best checkpoint.
        """
        if checkpoint is None or not checkpoint.ended:
            self.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
            self._refuse_divergence()
        elif self.leads:
            self._end_as(checkpoint)
        if self._processes is not None:
            same_weights(self.model, self._processes)

    def _end_as(self, checkpoint: Checkpoint) -> None:
        self.state = TrainerState.load_from_json(str(checkpoint.folder / "trainer_state.json"))
        if self.state.best_global_step is None:  # dev was never looked at
            self._load_from_checkpoint(str(checkpoint.folder))
        else:
            self._load_best_model()

    def _parameters_of_the_loss(self) -> dict[str, torch.nn.Parameter]:
        """Trained parameters that are not the model's, which the library does not save."""
        of_the_model = set(map(id, self.model.parameters()))
        named = self.loss.named_parameters()
        return {name: value for name, value in named if value.requires_grad and id(value) not in of_the_model}

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Not added: it collects training texts and asks the Hub."""


class _Losses:
    """Notices the first loss that is not a number, on the device, so that no step waits for the one before it."""

    def __init__(self, device: torch.device) -> None:
        self._step, self._loss = torch.zeros((), dtype=torch.int64, device=device), torch.zeros((), device=device)

    def saw(self, loss: torch.Tensor, *, step: int) -> None:
        """Take the loss of a step, counted from 1."""
        new = ~torch.isfinite(loss) & torch.isfinite(self._loss)
        self._step, self._loss = torch.where(new, step, self._step), torch.where(new, loss.float(), self._loss)

    @property
    def first_bad(self) -> tuple[int, float]:
        """The step and its loss; step 0 where all were numbers. Waits for the device."""
        return int(self._step), float(self._loss)


@dataclass
class Collator(SentenceTransformerDataCollator):
    """The library's collator, which hands on each row's number."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """The rows as a batch of features."""
        numbers = torch.tensor([feature[ROW] for feature in features])
        texts = [{name: value for name, value in feature.items() if name != ROW} for feature in features]
        return {**super().__call__(texts), ROW: numbers}


class Dev(BaseEvaluator):
    """Gives the trainer the dev metrics."""

    def __init__(self, dev_metrics: Callable[[], Mapping[str, float]]) -> None:
        super().__init__()
        self._dev_metrics = dev_metrics

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """The dev metrics of the model as it is now. The base gave them too: an error is the training's."""
        try:
            return dict(self._dev_metrics())
        except UserError as error:
            raise diverged(str(error), step=steps) from error


def diverged(what: str, *, step: int) -> UserError:
    """The error that ends a training which has gone wrong, with the step that showed it."""
    return UserError(
        f"training diverged at step {step}: {what}. Lower trainer.learning_rate, or set model.dtype=float32"
    )
