"""Texts to unit vectors with an EmbeddingModel, fast and checked. Called by `arms`, `experiment` and `negatives`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from embexp.cache import arrays_kept, digest
from embexp.embedding import Embeddings, embedded
from embexp.errors import UserError
from embexp.models import EmbeddingModel

ROWS_AT_ONCE = 10_000  # that are looked at in one go, so that memory stays flat


class Encoder:
    """Embeds with one state of a model and remembers what it embedded; make a new one when the weights change."""

    def __init__(
        self,
        model: EmbeddingModel,
        *,
        progress: str | None = None,
        content: str | None = None,
    ) -> None:
        """progress: what to call the work in a progress bar; None shows none. content: the model's, where known."""
        self._content = content
        self._model = model
        self._progress = progress
        self._known: dict[str, _Rows] = {}  # by prompt

    def queries(self, texts: Sequence[str]) -> Embeddings:
        """One row per text, with the model's query prompt; not to be changed, since it may be what is remembered.

        Raises UserError for NaN or collapsed embeddings.
        """
        return self._embedded(texts, self._model.query_prompt)

    def passages(self, texts: Sequence[str]) -> Embeddings:
        """The same with the model's passage prompt."""
        return self._embedded(texts, self._model.passage_prompt)

    @property
    def identity(self) -> dict[str, Any] | None:
        """All that an embedding depends on beside its text; None for a model without a digest, as while training."""
        if self._content is None:
            return None
        model = self._model
        return {
            "content": self._content,
            "bfloat16": model.bfloat16,
            "query_prompt": model.query_prompt,
            "passage_prompt": model.passage_prompt,
            "max_seq_length": model.facts.max_seq_length,
            "dimensions": model.facts.dimensions,
            "attention": model.facts.attention,
            "device": model.facts.device,
        }

    @property
    def dimensions(self) -> int:
        """How long an embedding is."""
        return self._model.facts.dimensions

    @property
    def device(self) -> torch.device:
        """Where the model is, and where its embeddings are best compared."""
        return self._model.model.device

    def _embedded(self, texts: Sequence[str], prompt: str) -> Embeddings:
        if not texts:
            return np.empty((0, self.dimensions), dtype=np.float32)
        known = self._known.setdefault(prompt, _Rows())
        new = known.lacks(texts)
        if new:
            rows = self._encoded(new, prompt)
            earlier = next((each.batches[0][0] for each in self._known.values() if each.batches), rows[0])
            _refuse_unusable(rows, beside=earlier)
            known.add(new, rows)
        return known.of(texts)

    def _encoded(self, texts: Sequence[str], prompt: str) -> Embeddings:
        def make() -> dict[str, Embeddings]:
            return {"rows": embedded(self._model, texts, prompt, self._progress)}

        if self.identity is None:
            return make()["rows"]
        return arrays_kept("embeddings", [self.identity, prompt, digest(texts)], make)["rows"]


class _Rows:
    """The embeddings of texts, as the arrays that they were made in."""

    def __init__(self) -> None:
        self.batches: list[Embeddings] = []
        self._place: dict[str, int] = {}  # text -> row, counted through all batches

    def lacks(self, texts: Sequence[str]) -> list[str]:
        """Those that are not here yet, each once."""
        return list(dict.fromkeys(text for text in texts if text not in self._place))

    def add(self, texts: Sequence[str], rows: Embeddings) -> None:
        """Texts that were lacking, and a row for each."""
        self._place.update(zip(texts, range(len(self._place), len(self._place) + len(texts)), strict=True))
        self.batches.append(rows)

    def of(self, texts: Sequence[str]) -> Embeddings:
        """A row per text: what is kept itself, not a copy, where the texts are those of one batch or a part of it."""
        places = np.fromiter(map(self._place.__getitem__, texts), dtype=np.int64, count=len(texts))
        ends = np.cumsum([len(batch) for batch in self.batches])
        batch = int(np.searchsorted(ends, places[0], side="right"))
        first = int(places[0] - (ends[batch] - len(self.batches[batch])))
        if (np.diff(places) == 1).all() and places[-1] < ends[batch]:
            return self.batches[batch][first : first + len(places)]
        found = np.empty((len(texts), self.batches[0].shape[1]), dtype=np.float32)
        for rows, end in zip(self.batches, ends.tolist(), strict=True):
            here = (places >= end - len(rows)) & (places < end)
            found[here] = rows[places[here] - (end - len(rows))]
        return found


class Truncated(Encoder):
    """Another encoder's embeddings cut to their first dimensions and brought to length 1 again."""

    def __init__(self, encoder: Encoder, dimensions: int) -> None:
        """Raises UserError when the embeddings are shorter."""
        if dimensions > encoder.dimensions:
            raise UserError(
                f"evaluator.retrieval.dimensions has {dimensions}; the model's embeddings have {encoder.dimensions}"
            )
        self._whole, self._dimensions = encoder, dimensions

    @property
    def dimensions(self) -> int:
        """How long an embedding is."""
        return self._dimensions

    @property
    def device(self) -> torch.device:
        """The other encoder's."""
        return self._whole.device

    @property
    def identity(self) -> dict[str, Any] | None:
        """The other encoder's, with the dimensions."""
        whole = self._whole.identity
        return None if whole is None else whole | {"dimensions": self._dimensions}

    def queries(self, texts: Sequence[str]) -> Embeddings:
        """One row per text."""
        return self._cut(self._whole.queries(texts))

    def passages(self, texts: Sequence[str]) -> Embeddings:
        """One row per text."""
        return self._cut(self._whole.passages(texts))

    def _cut(self, rows: Embeddings) -> Embeddings:
        part = rows[:, : self._dimensions]
        # zeros stay zeros: a model may leave its first dimensions empty
        return part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _refuse_unusable(rows: Embeddings, *, beside: np.ndarray) -> None:
    parts = [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]
    bad = sum(int((~np.isfinite(part).all(axis=1)).sum()) for part in parts)
    if bad:
        raise UserError(
            f"the model gives NaN or infinite embeddings for {bad} of {len(rows)} texts; it can't be scored"
        )
    # beside an earlier text's row, since a few new texts may rightly be equal ("Red apple?" and "red apple?")
    if len(rows) > 1 and all(float(np.abs(part - beside).max()) < 1e-6 for part in parts):
        raise UserError(
            f"the model gives all {len(rows)} texts the same embedding; it has collapsed and can't be scored"
        )
