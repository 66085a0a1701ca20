"""Texts to unit vectors with an EmbeddingModel, fast and checked.

Called by `evaluation.search`, `experiment` and `negatives`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from embexp.cache import arrays_kept, digest
from embexp.encoding.embedding import Embeddings, embedded
from embexp.errors import UserError
from embexp.models.embedding_model import EmbeddingModel

ROWS_AT_ONCE = 10_000  # that are looked at in one go, so that memory stays flat

Kind = tuple[str, str | None]  # how texts are embedded: the prompt, and the task for a model that routes by it


class Encoder:
    """Embeds with one state of a model and remembers what it embedded; make a new one when the weights change."""

    def __init__(
        self,
        model: EmbeddingModel,
        *,
        progress: str | None = None,
        content: str | None = None,
    ) -> None:
        """progress: what to call the work where it is shown; None shows nothing. content: the model's, where known."""
        self._content = content
        self._model = model
        self._progress = progress
        self._known: dict[Kind, _Rows] = {}

    def queries(self, texts: Sequence[str]) -> Embeddings:
        """One row per text, with the model's query prompt; not to be changed, since it may be what is remembered.

        Raises UserError for NaN or collapsed embeddings.
        """
        return self._embedded(texts, self._kind(self._model.query_prompt, "query"))

    def passages(self, texts: Sequence[str]) -> Embeddings:
        """The same with the model's passage prompt."""
        return self._embedded(texts, self._kind(self._model.passage_prompt, "document"))

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
            "vectors": source.store.made if (source := model.source) is not None else None,
        }

    @property
    def dimensions(self) -> int:
        """How long an embedding is."""
        return self._model.facts.dimensions

    @property
    def device(self) -> torch.device:
        """Where the model is, and where its embeddings are best compared."""
        return torch.device(self._model.facts.device)  # the model itself may never be needed, and then is not loaded

    def _kind(self, prompt: str, task: str) -> Kind:
        return prompt, task if self._model.facts.routed else None

    def _embedded(self, texts: Sequence[str], kind: Kind) -> Embeddings:
        if not texts:
            return np.empty((0, self.dimensions), dtype=np.float32)
        known = self._known.setdefault(kind, _Rows())
        new = known.lacks(texts)
        if new:
            rows = self._encoded(new, kind)
            _refuse_unusable(rows, different=len(set(new)), beside=known.first)
            known.add(new, rows)
        return known.of(texts)

    def _encoded(self, texts: Sequence[str], kind: Kind) -> Embeddings:
        prompt, task = kind

        def make() -> dict[str, Embeddings]:
            different = {text: row for row, text in enumerate(dict.fromkeys(texts))}
            rows = embedded(self._model, list(different), prompt, self._progress, task=task)
            return {"rows": rows if len(rows) == len(texts) else rows[[different[text] for text in texts]]}

        if self.identity is None:
            return make()["rows"]
        return arrays_kept("embeddings", [self.identity, kind, digest(texts)], make)["rows"]


class _Rows:
    """The embeddings of texts, as the arrays that they were made in.

    A text that stands twice in what is asked has two rows: a corpus with repeated passages is given out as it is kept,
    which may be a memory map.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[list[str], Embeddings]] = []
        self._place: dict[str, int] = {}  # text -> its first row, counted through all batches

    @property
    def first(self) -> np.ndarray | None:
        """A row to compare others with; None before there is one."""
        return self._batches[0][1][0] if self._batches else None

    def lacks(self, texts: Sequence[str]) -> list[str]:
        """Those that are not here yet, repeated where they are."""
        return [text for text in texts if text not in self._place]

    def add(self, texts: list[str], rows: Embeddings) -> None:
        """Texts that were lacking, and a row for each."""
        start = sum(len(earlier) for earlier, _ in self._batches)
        for place, text in enumerate(texts, start):
            self._place.setdefault(text, place)
        self._batches.append((texts, rows))

    def of(self, texts: Sequence[str]) -> Embeddings:
        """A row per text: what is kept itself, not a copy, where the texts are those of one batch or a part of it."""
        first = self._place[texts[0]]
        for known, rows in self._batches:
            if 0 <= first < len(known) and known[first : first + len(texts)] == list(texts):
                return rows[first : first + len(texts)]
            first -= len(known)
        places = np.fromiter(map(self._place.__getitem__, texts), dtype=np.int64, count=len(texts))
        found = np.empty((len(texts), self._batches[0][1].shape[1]), dtype=np.float32)
        for _, rows in self._batches:
            here = (places >= 0) & (places < len(rows))
            found[here] = rows[places[here]]
            places -= len(rows)
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


def _refuse_unusable(rows: Embeddings, *, different: int, beside: np.ndarray | None) -> None:
    """different: how many texts there are, each counted once. beside: the row of an earlier text; None without one.

    It must have had the same prompt: two prompts give unlike vectors even where the texts have no part in them.
    """
    parts = [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]
    bad = sum(int((~np.isfinite(part).all(axis=1)).sum()) for part in parts)
    if bad:
        raise UserError(
            f"the model gives NaN or infinite embeddings for {bad} of {len(rows)} texts; it can't be scored"
        )
    # two new texts may rightly be equal ("Red apple?" and "red apple?"), but hardly an earlier one as well
    other, enough = (rows[0], 3) if beside is None else (beside, 2)
    if different >= enough and all(float(np.abs(part - other).max()) < 1e-6 for part in parts):
        raise UserError(
            f"the model gives all {different} texts the same embedding; it has collapsed and can't be scored. If it "
            "was sound before, a prompt may fill model.max_seq_length, which leaves no room for the texts"
        )
