"""Low-rank updates of a transformer's matrices (Hu et al., 2021), by peft: few weights are trained, then merged.

Called by `tuning` and `follower` around a training. The model stays the one that it is: matrices are put beside those
of its layers, and once they are merged into these it has the same parts as before, to be saved and loaded as ever.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embexp.errors import UserError

if TYPE_CHECKING:
    from embexp.models import EmbeddingModel

INSTALL = "model.peft=lora needs the package peft: pip install 'embexp[lora]', or set model.peft=null"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """How a matrix W is trained as W + alpha / rank B A.

    rank: of B A. target_modules: the names of the layers that are trained, such as query; None for those that peft
    names for the kind of transformer. dropout: of what A reads, while training.
    """

    rank: int = 16
    alpha: int = 32
    target_modules: Sequence[str] | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                f"model.lora has rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}; rank and alpha must be "
                "at least 1, dropout from 0 up to, not including, 1"
            )


def refuse_without_peft() -> None:
    """Raise UserError where peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise UserError(INSTALL)


@contextmanager
def low_rank(model: EmbeddingModel, *, seed: int) -> Iterator[None]:
    """While this is open a model that asks for it trains low-rank updates alone; then they are part of its weights.

    seed: of the matrices A; B starts at 0, and so the model as it was. Raises UserError where there is nothing to put
    them beside.
    """
    if model.lora is None:
        yield
        return
    whole = model.model
    trained = [weights for weights in whole.parameters() if weights.requires_grad]
    whole.requires_grad_(False)
    tuner = _put_beside(whole, model.lora, model.origin["path"], seed=seed)
    try:
        yield
    finally:
        tuner.merge_and_unload()
        for weights in trained:
            weights.requires_grad_(True)


def _put_beside(whole: Any, lora: Lora, name: str | None, *, seed: int) -> Any:
    from peft import LoraConfig, LoraModel
    from transformers import set_seed

    if whole.transformers_model is None:
        raise UserError(f"model.peft=lora is for transformers, and the model {name} has none; set model.peft=null")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=None if lora.target_modules is None else list(lora.target_modules),
    )
    set_seed(seed)
    try:
        return LoraModel(whole.transformers_model, config, "default")
    except ValueError as error:  # no layer has such a name, or peft knows none for this kind of transformer
        layers = {path.rpartition(".")[2] for path, _ in whole.transformers_model.named_modules()} - {""}
        there = ", ".join(sorted(layer for layer in layers if not layer.isdigit()))
        raise UserError(
            f"model.lora.target_modules={lora.target_modules}: {error} Name some of the model's: {there}"
        ) from error
