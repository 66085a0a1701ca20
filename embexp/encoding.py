"""Texts to unit vectors with an EmbeddingModel, fast and checked. Called by `search` and `evaluators`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from embexp.cache import arrays_kept, digest
from embexp.errors import UserError
from embexp.models import EmbeddingModel
from embexp.retrieval_set import RetrievalSet

Embeddings = np.ndarray  # (texts, dimensions) float32, each row of length 1


class Encoder:
    """Embeds with one state of a model and remembers what it embedded; make a new one when the weights change."""

    def __init__(
        self,
        model: EmbeddingModel,
        *,
        batch_size: int = 64,
        progress: str | None = None,
        content: str | None = None,
    ) -> None:
        """progress: what to call the work in a progress bar; None shows none. content: the model's, where known."""
        self._content = content
        self._model = model
        self._batch_size = batch_size
        self._progress = progress
        self._known: dict[tuple[str, str], np.ndarray] = {}

    def queries(self, texts: Sequence[str]) -> Embeddings:
        """One row per text, with the model's query prompt. Raises UserError for NaN or collapsed embeddings."""
        return self._embedded(texts, self._model.query_prompt)

    def passages(self, texts: Sequence[str]) -> Embeddings:
        """One row per text, with the model's passage prompt. Raises UserError for NaN or collapsed embeddings."""
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

    def _embedded(self, texts: Sequence[str], prompt: str) -> Embeddings:
        new = list(dict.fromkeys(text for text in texts if (prompt, text) not in self._known))
        if new:
            rows = self._encoded(new, prompt)
            _refuse_unusable(rows, beside=next(iter(self._known.values()), rows[0]))
            self._known.update(((prompt, text), row) for text, row in zip(new, rows, strict=True))
        return np.stack([self._known[prompt, text] for text in texts])

    def _encoded(self, texts: Sequence[str], prompt: str) -> Embeddings:
        def make() -> dict[str, Embeddings]:
            return {"rows": _encode(self._model, texts, prompt, self._batch_size, self._progress)}

        if self.identity is None:
            return make()["rows"]
        return arrays_kept("embeddings", [self.identity, prompt, digest(texts)], make)["rows"]


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


def _encode(
    embedding_model: EmbeddingModel, texts: Sequence[str], prompt: str, batch_size: int, progress: str | None
) -> Embeddings:
    model = embedding_model.model
    was_training = model.training
    model.eval()
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)  # like lengths, less padding
    rows = np.empty((len(texts), model.get_embedding_dimension()), dtype=np.float32)
    bar = tqdm(total=len(texts), desc=progress, unit="text", disable=None if progress else True, leave=False)
    autocast = torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=embedding_model.bfloat16)
    with torch.no_grad(), autocast, bar:
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            features = model.preprocess([texts[index] for index in part], prompt=prompt or None)
            features = {
                key: value.to(model.device) if torch.is_tensor(value) else value for key, value in features.items()
            }
            vectors = model(features)["sentence_embedding"].float()
            rows[part] = torch.nn.functional.normalize(vectors, dim=1).cpu().numpy()
            bar.update(len(part))
    model.train(was_training)
    return rows


def token_lengths(embedding_model: EmbeddingModel, texts: Sequence[str], prompt: str) -> list[int]:
    """The length of each text in tokens, prompt and special tokens included, before truncation."""
    tokenizer = embedding_model.model.tokenizer
    prompted = [prompt + text for text in texts]
    kept = arrays_kept(
        "token_lengths",
        [_tokenizer_digest(tokenizer), digest(prompted)],
        lambda: {"lengths": _counted(tokenizer, prompted)},
    )
    return kept["lengths"].tolist()


def _counted(tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    if isinstance(tokenizer, Tokenizer):
        counts = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    else:
        counts = [len(ids) for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"]] if texts else []
    return np.asarray(counts, dtype=np.int32)


def _tokenizer_digest(tokenizer: Any) -> str:
    rust = tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
    if rust is None:  # one written in Python
        return digest([type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.init_kwargs])
    settings = json.loads(rust.to_str())
    return digest({key: value for key, value in settings.items() if key not in ("truncation", "padding")})


def count_truncated(embedding_model: EmbeddingModel, data: RetrievalSet) -> int:
    """How many passages are longer than what the model reads, and so are cut."""
    longest = embedding_model.facts.max_seq_length
    if longest is None:
        return 0
    lengths = token_lengths(embedding_model, list(data.corpus.values()), embedding_model.passage_prompt)
    return sum(length > longest for length in lengths)


def _refuse_unusable(rows: Embeddings, *, beside: np.ndarray) -> None:
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows).all(axis=1)).sum())
        raise UserError(
            f"the model gives NaN or infinite embeddings for {bad} of {len(rows)} texts; it can't be scored"
        )
    # beside an earlier text's row, since a few new texts may rightly be equal ("Red apple?" and "red apple?")
    if len(rows) > 1 and float(np.abs(rows - beside).max()) < 1e-6:
        raise UserError(
            f"the model gives all {len(rows)} texts the same embedding; it has collapsed and can't be scored"
        )
