"""Losses that need more than their parameters: a guide model, or another loss inside. Named by files in conf/loss.

Called by `fine_tuning` with the model that is about to be trained. Every other loss is sentence-transformers' own,
named by its file alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer.losses import (
    GISTEmbedLoss,
    GlobalOrthogonalRegularizationLoss,
    MatryoshkaLoss,
)

from embexp.errors import UserError
from embexp.models.embedding_model import Transformer

OWN_KEYS = ("shape", "accepts", "teacher", "needs")  # of a file in conf/loss, beside the parameters of its target


class Guide(Transformer):
    """A guide model, found and loaded as safely as a base model."""

    SETTING = "loss.guide"


def gist(
    model: SentenceTransformer,
    *,
    guide: str | None = None,
    temperature: float = 0.05,
    margin_strategy: Literal["absolute", "relative"] = "absolute",
    margin: float = 0.0,
    contrast_anchors: bool = True,
    contrast_positives: bool = True,
) -> torch.nn.Module:
    """GISTEmbedLoss (Solatorio, 2024) with a guide that is never trained or saved.

    guide: a local folder or a Hub id (id@revision); None takes the model as it is now. The guide reads the texts with
    the prompts of the model that is trained.
    """
    frozen = copy.deepcopy(model) if guide is None else Guide(path=guide).load([]).model.to(model.device)
    frozen.eval().requires_grad_(False)
    loss = GISTEmbedLoss(
        model,
        frozen,
        temperature=temperature,
        margin_strategy=margin_strategy,
        margin=margin,
        contrast_anchors=contrast_anchors,
        contrast_positives=contrast_positives,
    )
    # a plain attribute and no submodule: not among the loss's parameters, its state, or what train() switches
    del loss.guide
    object.__setattr__(loss, "guide", frozen)
    return loss


def matryoshka(
    model: SentenceTransformer,
    *,
    inner: Callable[..., torch.nn.Module],
    dims: list[int],
    n_dims_per_step: int = -1,
) -> torch.nn.Module:
    """MatryoshkaLoss (Kusupati et al., 2022) around `inner`, at `dims` and the model's own dimension.

    n_dims_per_step: how many of them, drawn at random, a step trains; -1 takes all.
    """
    own = model.get_embedding_dimension()
    if above := [dim for dim in dims if dim > own]:
        raise UserError(f"loss.dims has {above[0]}; the model's embeddings have {own} dimensions")
    return MatryoshkaLoss(
        model, inner(model=model), sorted({own, *dims}, reverse=True), n_dims_per_step=n_dims_per_step
    )


def global_orthogonal(
    model: SentenceTransformer,
    *,
    inner: Callable[..., torch.nn.Module],
    mean_weight: float | None = 1.0,
    second_moment_weight: float | None = 1.0,
) -> torch.nn.Module:
    """GlobalOrthogonalRegularizationLoss (Zhang et al., 2017) added to `inner`."""
    made = inner(model=model)
    if not hasattr(made, "compute_loss_from_embeddings"):
        raise UserError(
            f"loss.inner: {type(made).__name__} can't be combined with global_orthogonal, which shares its embeddings; "
            "choose one that reads them from the library, such as loss@loss.inner=mnrl"
        )
    return Regularized(model, made, GlobalOrthogonalRegularizationLoss(
        model, mean_weight=mean_weight, second_moment_weight=second_moment_weight
    ))  # fmt: skip


class Regularized(torch.nn.Module):
    """The sum of a loss and of regularisers, on embeddings that are made once."""

    def __init__(self, model: SentenceTransformer, inner: torch.nn.Module, regularizer: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.inner, self.regularizer = model, inner, regularizer

    def forward(self, sentence_features: Iterable[dict[str, torch.Tensor]], labels: torch.Tensor) -> torch.Tensor:
        """The loss of a batch."""
        embeddings: Sequence[torch.Tensor] = embed_columns(self.model, sentence_features)
        parts = self.regularizer.compute_loss_from_embeddings(embeddings)  # type: ignore[operator]
        return self.inner.compute_loss_from_embeddings(embeddings, labels) + sum(parts.values())  # type: ignore[operator]
