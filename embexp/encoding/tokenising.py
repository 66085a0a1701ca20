"""Many texts to what a model reads, by its tokenizer alone where that gives the same.

Called by `embedding`, `tokens` and `fine_tuning`. The library's way takes three Python lists of each text through
several layers, which is slower than the tokenizing.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer

from embexp.encoding.parts import Features

if TYPE_CHECKING:  # slow to import, and not needed where all embeddings are kept
    from sentence_transformers import SentenceTransformer

PROBES = ["", "  Ünïcode \t x\n", "a A"]  # beside the first texts: blanks, capitals and accents
COMPARED = 16  # of the first texts
PLAIN = {"input_ids", "attention_mask", "token_type_ids"}


class Preprocess:
    """`model.preprocess` with one prompt and task, several times faster where a model reads padded tokens only.

    Whether it is one is seen on the first texts and on PROBES, for which both ways must give the same tensors.
    """

    def __init__(self, model: SentenceTransformer, prompt: str, task: str | None = None) -> None:
        """task: `query` or `document` for a model that has a way for each, else None."""
        self._model, self._prompt, self._task = model, prompt, task
        self._fast: _Fast | None = None
        self._tried = False

    def __call__(self, texts: Sequence[str]) -> Features:
        """The model's features of the texts."""
        if not self._tried:
            self._tried, self._fast = True, self._seen([*texts[:COMPARED], *PROBES])
        return self._usual(texts) if self._fast is None else self._fast(self._prompted(texts))

    def _usual(self, texts: Sequence[str]) -> Features:
        task = {} if self._task is None else {"task": self._task}
        features: Features = self._model.preprocess(list(texts), prompt=self._prompt or None, **task)
        return {**features, **task}

    def _prompted(self, texts: Sequence[str]) -> list[str]:
        return [self._prompt + text for text in texts] if self._prompt else list(texts)

    def _seen(self, texts: Sequence[str]) -> _Fast | None:
        backend = getattr(self._model.tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            return None
        usual = self._usual(texts)
        if not {name for name, value in usual.items() if torch.is_tensor(value)} <= PLAIN or "input_ids" not in usual:
            return None
        pad = self._model.tokenizer.pad_token_id
        fast = _Fast(backend, backend.truncation, usual, pad=0 if pad is None else pad)
        found = fast(self._prompted(texts))
        same = [
            torch.equal(value, found[name]) if torch.is_tensor(value) else value == found[name]
            for name, value in usual.items()
        ]
        return fast if all(same) else None


def preprocessing(model: SentenceTransformer) -> Callable[..., Features]:
    """`model.preprocess` as a data collator calls it, by `Preprocess`."""
    known: dict[tuple[str, str | None], Preprocess] = {}
    _forks_tokenise_alone()

    def preprocess(texts: Sequence[str], *, prompt: str | None = None, task: str | None = None) -> Features:
        return known.setdefault((prompt or "", task), Preprocess(model, prompt or "", task))(texts)

    return preprocess


@functools.cache
def _forks_tokenise_alone() -> None:
    """A data loader's processes are forked: tokenizers' threads are not, and would be waited for."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: os.environ.update(TOKENIZERS_PARALLELISM="false"))


class _Fast:
    """Tokenises as the library has just told the tokenizer to, but pads the rows itself, on the right."""

    def __init__(self, backend: Tokenizer, truncation: dict[str, Any] | None, usual: Features, *, pad: int) -> None:
        self._backend, self._truncation, self._pad = backend, truncation, pad
        self._usual = {name: None if torch.is_tensor(value) else value for name, value in usual.items()}

    def __call__(self, texts: Sequence[str]) -> Features:
        with _set_to(self._backend, self._truncation):
            rows = [encoding.ids for encoding in self._backend.encode_batch_fast(texts)]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        real = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(real.shape, self._pad, np.int64)
        ids[real] = np.fromiter(chain.from_iterable(rows), np.int64, int(lengths.sum()))
        made = {"input_ids": ids, "attention_mask": real.astype(np.int64), "token_type_ids": np.zeros_like(ids)}
        return {name: torch.from_numpy(made[name]) if name in made else value for name, value in self._usual.items()}


def token_counts(backend: Tokenizer, texts: Sequence[str], *, special: bool) -> np.ndarray:
    """(texts) how many tokens each has before it is cut, with or without those that the model puts around a text."""
    with _set_to(backend, None):
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=special)
    return np.fromiter(map(len, encodings), np.int32, len(texts))


@contextmanager
def _set_to(backend: Tokenizer, truncation: Mapping[str, Any] | None) -> Iterator[None]:
    """While this is open the tokenizer pads nothing and cuts so; then as before, since its state is saved with it."""
    before = backend.truncation, backend.padding
    backend.no_padding()
    _cut_to(backend, truncation)
    try:
        yield
    finally:
        _cut_to(backend, before[0])
        if before[1] is not None:
            backend.enable_padding(**before[1])


def _cut_to(backend: Tokenizer, truncation: Mapping[str, Any] | None) -> None:
    if truncation is None:
        backend.no_truncation()
    else:
        backend.enable_truncation(**truncation)
