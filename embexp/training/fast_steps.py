"""Makes a training step on a CPU compute less padding, and several parts at once, with the same result.

Called by `trainer` and `reranking.training`. Rows of a batch differ in length even when they were put together by
length, and a query column differs from a passage column. An in-batch loss needs all embeddings of a batch at once, but
not one pass for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from embexp.encoding.parts import Features, can_be_cut, even, how_many, parts, workers
from embexp.models.facts import dropouts

Embed = Callable[[], torch.Tensor]  # embeds, or scores, one part
Gradients = Sequence[torch.Tensor | None]
Model: TypeAlias = SentenceTransformer | CrossEncoder


@contextmanager
def parts_of_like_length(
    model: Model, *, tokens: int | None = None, output: str = "sentence_embedding"
) -> Iterator[None]:
    """While this is open, the model embeds a batch in parts of like length, each padded to its own longest text.

    tokens: in a part at most; None gives each worker parts of the same size. output: what the model's output then holds
    alone, a row for each text; `scores` of a cross-encoder. They and their gradients are those of one pass (without
    dropout: to rounding). A loss that has put its own
    forward into the transformer (AdaptiveLayerLoss) and features that are not plain padded text get the usual single
    pass. With dropout the parts come one after the other, so that their draws come in the same order each time.
    """
    usual = model.forward
    replaced = "forward" in vars(model)  # by accelerate, for mixed precision

    with workers(model.device) as pool:

        def forward(features: Features, **arguments: Any) -> Features:
            if not can_be_cut(features) or "forward" in vars(model[0]):
                return usual(features, **arguments)
            cut = list(parts(features, tokens=tokens or even(features, model.device)))
            embed = [partial(_computed, usual, part, arguments, output) for _, part in cut]
            found = [one() for one in embed] if _draws(model) else _at_once(embed, model, pool)
            order = torch.cat([rows for rows, _ in cut]).argsort()
            return {**features, output: torch.cat(list(found))[order]}

        model.forward = forward
        try:
            yield
        finally:
            if replaced:
                model.forward = usual
            else:
                del model.forward


def _computed(usual: Callable[..., Features], part: Features, arguments: dict[str, Any], output: str) -> torch.Tensor:
    rows: torch.Tensor = usual(part, **arguments)[output]
    return rows


def _draws(model: Model) -> bool:
    return any(module.training and getattr(module, name) > 0 for module, name in dropouts(model))


def _at_once(embed: Sequence[Embed], model: Model, pool: Executor) -> Sequence[torch.Tensor]:
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    if torch.is_grad_enabled() and trained:
        found: Sequence[torch.Tensor] = _AtOnce.apply(embed, model, pool, *trained)  # type: ignore[no-untyped-call]
        return found
    return list(pool.map(torch.no_grad()(lambda one: one()), embed))  # the mode holds for a thread


class _AtOnce(torch.autograd.Function):
    """Embeds parts in several threads, and takes their gradients there too; torch's own backward has one thread."""

    @staticmethod
    def forward(context: Any, embed: Sequence[Embed], model: Model, pool: Executor, *trained: torch.Tensor) -> Any:
        """The embeddings of each part, (its texts, dimensions)."""
        with _sparse_gradients(model):
            context.embeddings = list(pool.map(torch.enable_grad()(lambda one: one()), embed))
        context.pool, context.count, context.trained = pool, how_many(model.device), trained
        return tuple(embeddings.detach() for embeddings in context.embeddings)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        """Of the trained weights: each thread sums over its parts, so that the order of a sum is always the same."""
        pairs = list(zip(context.embeddings, gradients, strict=True))
        context.embeddings = None  # so that a part's graph goes as soon as it is used

        def work(share: list[tuple[torch.Tensor, torch.Tensor]]) -> _Sum:
            found = _Sum(len(context.trained))
            while share:
                embeddings, gradient = share.pop()
                if embeddings.requires_grad:  # not where all that these texts went through is frozen
                    found.add(torch.autograd.grad(embeddings, context.trained, gradient, allow_unused=True))
            return found

        shares = [pairs[first :: context.count] for first in range(context.count)]
        del pairs
        total, *others = context.pool.map(work, shares)
        for other in others:
            total.add(other.gradients)
        dense = [one.to_dense() if one is not None and one.is_sparse else one for one in total.gradients]
        return None, None, None, *dense


@contextmanager
def _sparse_gradients(model: Model) -> Iterator[None]:
    """Of tables of vectors: each part would else fill a whole table with zeros for the few words that it has."""
    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding) and not module.sparse]
    for table in tables:
        table.sparse = True
    try:
        yield
    finally:
        for table in tables:
            table.sparse = False


class _Sum:
    """Adds up gradients of several parts, in tensors of its own."""

    def __init__(self, count: int) -> None:
        self.gradients: list[torch.Tensor | None] = [None] * count
        self._own: set[int] = set()

    def add(self, gradients: Gradients) -> None:
        """Add those of one more part; None where it has none."""
        for place, one in enumerate(gradients):
            before = self.gradients[place]
            if one is None:
                continue
            if before is None:
                self.gradients[place] = one
            elif place in self._own:
                before.add_(one)
            else:  # autograd may have returned one tensor for two weights
                self.gradients[place] = before + one
                self._own.add(place)
