"""A model that is not here: an embeddings endpoint of OpenAI's protocol, as a base that stays as it is.

Named by conf/model/openai_embeddings.yaml. Texts are sent by `remote` and kept by `vector_store`; what is trained is an
adapter behind them (`adapters`), which is saved alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from embexp import cache
from embexp.errors import UserError
from embexp.models.embedding_model import Adapter, EmbeddingModel
from embexp.models.facts import Facts, machine
from embexp.models.remote import Remote
from embexp.models.vector_store import VectorStore
from embexp.service.budget import Budget, Price
from embexp.service.server import Endpoint


@dataclass(frozen=True, kw_only=True)
class OpenAIEmbeddings(Endpoint):
    """An embeddings endpoint. model, base_url, api_key_env, concurrency, timeout, retries: see Endpoint.

    | field      | meaning                                                                                   |
    |------------|-------------------------------------------------------------------------------------------|
    | dimensions | how long its vectors are, which is checked                                                |
    | shorten    | whether to ask for so many: some models can give fewer than they have                     |
    | batch_size | texts in a call; halved where the server takes no so many                                 |
    | prompts    | `query` and `passage`, put before every text; null for none                               |
    | price      | USD per million tokens; null where it is not known                                        |
    | budget     | caps on all that was ever sent for these vectors; `calls: 0` tells what a run would take  |
    |            | (what others send from its start on is not counted: two runs may each spend what is left) |
    | adapter    | what is trained behind it                                                                 |
    """

    GROUP: ClassVar[str] = "model"

    dimensions: int
    concurrency: int = 8
    shorten: bool = False
    batch_size: int = 128
    prompts: dict[str, str] | None = None
    price: float | None = None
    budget: Budget = field(default_factory=Budget)
    adapter: Adapter | None = None

    def _problems(self) -> list[str]:
        said = super()._problems()
        for name in ("dimensions", "batch_size"):
            if getattr(self, name) < 1:
                said.append(f"model.{name}={getattr(self, name)} must be at least 1")
        if unknown := set(self.prompts or {}) - {"query", "passage"}:
            said.append(f"model.prompts has {', '.join(sorted(unknown))}; it takes query and passage")
        if self.price is not None and not 0 <= self.price < math.inf:
            said.append(f"model.price={self.price} must be USD per million tokens, 0 or more, or null")
        if self.budget.caps_usd and self.price is None:
            said.append("model.budget.usd is set and model.price is not: set it in USD per million tokens")
        return said

    def content(self) -> str:
        """The digest of what its vectors depend on; a provider that changes a model under its name is not noticed."""
        return cache.digest(self._about)

    def load(self, texts: Iterable[str]) -> EmbeddingModel:
        """Open what is kept of it. `texts` is not needed. Raises UserError where nothing can be kept."""
        del texts
        prompts = {kind: (self.prompts or {}).get(kind, "") for kind in ("query", "passage")}
        facts = Facts(
            device=machine()[0] or "cpu", dimensions=self.dimensions, max_seq_length=None, attention=None,
            transformer=False, drops=False, prompts={"query": prompts["query"], "document": prompts["passage"]},
        )  # fmt: skip
        content = self.content()
        origin = {"path": f"{self.model} at {self.address}", "commit": None, "weights": None, "content": content}
        return EmbeddingModel(
            self._not_here, facts, prompts["query"], prompts["passage"], bfloat16=False, eager_training=False,
            origin=origin, adapter=self.adapter, remote=self._remote,
        )  # fmt: skip

    @property
    def _about(self) -> Mapping[str, Any]:
        return {"address": self.address, "model": self.model, "dimensions": self.dimensions, "shorten": self.shorten}

    @cached_property
    def _remote(self) -> Remote:
        """Of all its loads: one that is loaded again has spent what it did once, and one cap holds for all."""
        kept = cache.current.get()
        if kept is None:
            raise UserError(
                "cache=false keeps nothing, and a run that is interrupted would pay for its vectors again; set cache= "
                "to a folder"
            )
        store = VectorStore(kept / "endpoints" / f"{self.content()[:16]}.sqlite", about=self._about)
        price = None if self.price is None else Price(input=self.price, output=0.0)
        return Remote(
            self, store, dimensions=self.dimensions, shorten=self.shorten, batch_size=self.batch_size,
            budget=self.budget, price=price,
        )  # fmt: skip

    def _not_here(self) -> Any:
        raise UserError(
            f"{self.model} is at {self.address}: its vectors can be had, its weights not. Set model.adapter to train "
            "layers behind it, trainer=none to measure it, or another model where one is needed that is here"
        )
