"""Makes a training step on a CPU compute less padding, with the same result. Called by `training`.

Rows of a batch differ in length even when they were put together by length, and a query column differs from a passage
column. An in-batch loss needs all embeddings of a batch at once, but not one forward pass for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

PART = 16  # rows to a forward pass; fewer save little more padding and make the matrices small

Features = dict[str, Any]


@contextmanager
def parts_of_like_length(model: SentenceTransformer, part: int = PART) -> Iterator[None]:
    """While this is open, the model embeds a batch in parts of like length, each padded to its own longest text.

    Embeddings and gradients are those of one pass (without dropout: to rounding). The output holds the sentence
    embeddings alone. A loss that has put its own forward into the transformer (AdaptiveLayerLoss) and features that are
    not plain padded text get the usual single pass.
    """
    usual = model.forward
    replaced = "forward" in vars(model)  # by accelerate, for mixed precision

    def forward(features: Features, **arguments: Any) -> Features:
        mask = features.get("attention_mask")
        if mask is None or len(mask) <= part or not _is_padded_text(features, mask) or "forward" in vars(model[0]):
            return usual(features, **arguments)
        return _in_parts(usual, features, mask, part, arguments)

    model.forward = forward
    try:
        yield
    finally:
        if replaced:
            model.forward = usual
        else:
            del model.forward


def _is_padded_text(features: Features, mask: torch.Tensor) -> bool:
    tensors = [value for value in features.values() if torch.is_tensor(value)]
    return mask.dim() == 2 and all(value.shape == mask.shape for value in tensors)


def _in_parts(
    usual: Callable[..., Features], features: Features, mask: torch.Tensor, part: int, arguments: dict[str, Any]
) -> Features:
    # the last column that holds a token, so that padding on either side stays right
    lengths = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1)
    order = lengths.argsort(stable=True)
    embeddings = []
    for rows in torch.split(order, part):
        width = int(lengths[rows].max())
        cut = {name: value[rows, :width] if torch.is_tensor(value) else value for name, value in features.items()}
        embeddings.append(usual(cut, **arguments)["sentence_embedding"])
    return {**features, "sentence_embedding": torch.cat(embeddings)[order.argsort()]}
