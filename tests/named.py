"""What configs of tests name by a `_target_`: imported in processes of their own, so nothing else is imported here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers.sentence_transformer.losses import AdaptiveLayerLoss, MultipleNegativesRankingLoss

from embexp.models.embedding_model import EmbeddingModel


class LearnedScale(MultipleNegativesRankingLoss):
    """A loss with a parameter of its own, as a learned temperature is."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.offset = torch.nn.Linear(1, 1)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().forward(*args, **kwargs) * self.offset(torch.ones(1)).square().sum()


def adaptive_layers(model: Any) -> torch.nn.Module:
    return AdaptiveLayerLoss(model, MultipleNegativesRankingLoss(model))


class Doubled:
    """Another model in float64, where sums in another order differ by 1e-16 of their value."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def load(self, texts: Iterable[str]) -> EmbeddingModel:
        loaded: EmbeddingModel = self._inner.load(texts)
        loaded.model.double()
        return loaded
