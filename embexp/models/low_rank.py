"""Trains low-rank updates of a transformer's matrices, by peft, and merges them when the training ends.

Called by `tuning` and `follower` around a training. The model stays the one that it is: matrices are put beside those
of its layers, and once they are merged into these it has the same parts as before, to be saved and loaded as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from embexp.errors import UserError
from embexp.models.embedding_model import EmbeddingModel
from embexp.models.lora import Lora


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
