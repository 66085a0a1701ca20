"""Adapters: layers behind a frozen base, trained on its embeddings, which are made once. Called by `tuning`.

To everything that trains and measures, an adapter is a model like any other: only that it reads a text as the base's
embedding of it. The layers are sentence-transformers' own, so that base and adapter together are saved as an ordinary
model. All start as the identity: before the first step they score as the base does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Module, Normalize, Router

from embexp.encoding.encoder import Encoder
from embexp.models.embedding_model import Adapter, EmbeddingModel
from embexp.rows.shapes import Rows


class Head(SentenceTransformer):
    """An adapter alone. Texts are read by an encoder of the base, which remembers their embeddings."""

    tokenizer = None  # there are no tokens

    def __init__(self, layers: Sequence[Module], encoder: Encoder) -> None:
        super().__init__(modules=list(layers), device=str(encoder.device))
        self._encoder = encoder

    def preprocess(self, inputs: Sequence[Any], *, task: str, **_: Any) -> dict[str, Any]:
        """The base's embeddings of texts, (texts, dimensions). task: `query` or `document`, whose prompts differ."""
        rows = self._encoder.queries(inputs) if task == "query" else self._encoder.passages(inputs)
        return {"sentence_embedding": torch.tensor(rows), "task": task}


def layers(kind: Adapter, *, dimensions: int, ends_normalized: bool = True) -> list[Module]:
    """The modules that follow a base's.

    | kind         | a vector x of length 1 becomes, and is then brought to length 1 again                          |
    |--------------|------------------------------------------------------------------------------------------------|
    | linear       | W x, W starting as the identity                                                                |
    | mlp          | y + GELU(V y + c), where y = x + GELU(W x + b); W, V, b and c starting at 0 (He et al., 2016)    |
    | query_linear | W x of a query; a passage stays as it is, bit by bit, so that an index needs nothing new       |

    ends_normalized: whether the base's own vectors have length 1. A passage of query_linear stays as the base gives it.
    """
    before = [] if ends_normalized else [Normalize()]
    if kind == "mlp":
        return [*before, _residual(dimensions), _residual(dimensions), Normalize()]
    matrix = Dense(
        dimensions, dimensions, bias=False, activation_function=torch.nn.Identity(), init_weight=torch.eye(dimensions)
    )
    turned = [*before, matrix, Normalize()]
    return [Router.for_query_document(turned, [])] if kind == "query_linear" else turned


def _residual(dimensions: int) -> Module:
    return Dense(
        dimensions, dimensions, activation_function=torch.nn.GELU(), init_weight=torch.zeros(dimensions, dimensions),
        init_bias=torch.zeros(dimensions), use_residual=True,
    )  # fmt: skip


def adapter_of(base: EmbeddingModel, encoder: Encoder, rows: Rows) -> EmbeddingModel:
    """The adapter that the base asks for, to be trained on these rows; each text is embedded here if it is new.

    encoder: the base's.
    """
    assert base.adapter is not None
    query, *passages = rows.text_columns
    encoder.queries(rows.columns[query])
    encoder.passages(list(dict.fromkeys(chain.from_iterable(rows.columns[name] for name in passages))))
    return _behind(base, Head(layers(base.adapter, dimensions=base.facts.dimensions), encoder))


def whole(model: EmbeddingModel) -> SentenceTransformer:
    """The model as it is saved: an adapter behind its base, any other as it is."""
    if model.base is None or model.adapter is None:
        return model.model
    if model.base.remote is not None:
        return _alone(model)
    base = model.base.model
    parts = list(base.children())
    ends_normalized = isinstance(parts[-1], Normalize)
    last = layers(model.adapter, dimensions=model.facts.dimensions, ends_normalized=ends_normalized)
    for untrained, trained in zip(_dense(torch.nn.ModuleList(last)), _dense(model.model), strict=True):
        untrained.load_state_dict(trained.state_dict())
    return SentenceTransformer(
        modules=[*parts, *last], prompts=dict(base.prompts), default_prompt_name=base.default_prompt_name,
        similarity_fn_name=base.similarity_fn_name, device=str(base.device),
    )  # fmt: skip


def _alone(model: EmbeddingModel) -> SentenceTransformer:
    """The layers without a base, which is elsewhere: they read its vectors, brought to length 1."""
    prompts = {"query": model.query_prompt, "document": model.passage_prompt}
    return SentenceTransformer(modules=list(model.model.children()), prompts=prompts, device=str(model.model.device))


def head_of(folder: Path, base: EmbeddingModel, encoder: Encoder) -> EmbeddingModel:
    """The model that saved layers make of a base that is elsewhere. folder: theirs. encoder: the base's."""
    loaded = SentenceTransformer(str(folder), device=str(encoder.device), local_files_only=True)
    return _behind(base, Head(list(loaded.children()), encoder))


def _behind(base: EmbeddingModel, head: Head) -> EmbeddingModel:
    # routed: it must be told what is a query, whose prompt the base has put before it
    facts = replace(base.facts, transformer=False, drops=False, attention=None, routed=True)
    return replace(
        base, loaded=lambda: head, facts=facts, bfloat16=False, eager_training=False, processes=None, base=base,
        remote=None,
    )  # fmt: skip


def _dense(model: torch.nn.Module) -> list[Dense]:
    return [module for module in model.modules() if isinstance(module, Dense)]
