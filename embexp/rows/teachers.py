"""Judges of query-passage pairs: a cross-encoder, the base model, BM25. Called by `negatives` and `shapes`.

A judge takes as many queries as passages and gives a score for each pair, higher for better. A teacher is a judge whose
scores a loss learns from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from embexp import libraries
from embexp.cache import arrays_kept, digest
from embexp.data.retrieval_set import RetrievalSet
from embexp.encoding.encoder import Encoder
from embexp.errors import UserError
from embexp.evaluation.search import keyword_scores
from embexp.models.embedding_model import LOADING_ERRORS, SAFETENSORS_ONLY
from embexp.models.folder import hashes, why_not_loaded
from embexp.models.sources import model_folder
from embexp.reranking.pair_scores import pair_scores

log = logging.getLogger(__name__)

PAIRS_AT_ONCE = 10_000  # whose vectors are side by side in memory


class Judge(Protocol):
    """Something that scores pairs."""

    def __call__(self, queries: Sequence[str], passages: Sequence[str]) -> np.ndarray:
        """(pairs,) float32 for as many query texts as passage texts."""


def teacher_of(named: str | None, encoder: Encoder, *, setting: str) -> Judge:
    """The cross-encoder of this folder or Hub id, or the base model where none is named."""
    return Cosines(encoder) if named is None else CrossEncoderScores(named, setting=setting)


class Cosines:
    """A model's own cosine similarities."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def __call__(self, queries: Sequence[str], passages: Sequence[str]) -> np.ndarray:
        """One score per pair, from -1 to 1."""
        if not queries:
            return np.zeros(0, dtype=np.float32)
        asked, shown = _places(queries), _places(passages)  # a row per different text, not per pair
        left, right = self._encoder.queries(list(asked)), self._encoder.passages(list(shown))
        rows, columns = np.array([asked[text] for text in queries]), np.array([shown[text] for text in passages])
        parts = (slice(start, start + PAIRS_AT_ONCE) for start in range(0, len(queries), PAIRS_AT_ONCE))
        found = [np.einsum("pd,pd->p", left[rows[part]], right[columns[part]]) for part in parts]
        return np.concatenate(found)


class Keywords:
    """BM25 over the corpus of a RetrievalSet; knows its queries and passages only."""

    def __init__(self, retrieval_set: RetrievalSet) -> None:
        self._retrieval_set = retrieval_set

    def __call__(self, queries: Sequence[str], passages: Sequence[str]) -> np.ndarray:
        """One score per pair, 0 where they share no word."""
        asked = list(dict.fromkeys(queries))
        wanted: dict[str, list[int]] = {text: [] for text in asked}
        for pair, query in enumerate(queries):
            wanted[query].append(pair)
        place = {text: column for column, text in enumerate(self._retrieval_set.corpus.values())}  # copies score alike
        scores = np.zeros(len(queries), dtype=np.float32)
        texts = RetrievalSet({text: text for text in asked}, self._retrieval_set.corpus, {}, {})
        rows = (row for block in keyword_scores(texts) for row in block)
        for text, row in zip(asked, rows, strict=True):
            for pair in wanted[text]:
                scores[pair] = row[place[passages[pair]]]
        return scores


class CrossEncoderScores:
    """A cross-encoder with one output, through a sigmoid: from 0 to 1, about as far apart as cosines are.

    Only safetensors are read and no code that comes with it is run. identity: all that a score depends on beside
    the pair.
    """

    def __init__(self, path: str, *, setting: str) -> None:
        """path: a local folder or a Hub id (id@revision). Raises UserError, naming `setting`, when it can't be had."""
        folder, commit = model_folder(path, setting=setting)
        try:
            self._model = libraries.loaded().CrossEncoder(
                str(folder),
                local_files_only=True,
                activation_fn=torch.nn.Sigmoid(),  # as pair_scores, not the one that the folder names
                model_kwargs={"dtype": torch.float32, **SAFETENSORS_ONLY},
            )
        except LOADING_ERRORS as error:
            why = why_not_loaded(folder, error)
            raise UserError(f"{setting}={path}: {folder} can't be loaded as a cross-encoder ({why})") from error
        outputs = self._model.num_labels
        if outputs != 1:
            raise UserError(f"{setting}={path} gives {outputs} scores for a pair; a cross-encoder for search gives 1")
        self.identity = {"content": hashes(folder)["content"], "longest": self._model.max_seq_length}
        log.info("%s: the cross-encoder %s%s", setting, path, f" at {commit}" if commit else "")

    def __call__(self, queries: Sequence[str], passages: Sequence[str]) -> np.ndarray:
        """One score per pair, from 0 to 1."""
        every = list(zip(queries, passages, strict=True))
        pairs = list(dict.fromkeys(every))
        if not pairs:
            return np.zeros(0, dtype=np.float32)

        def make() -> Mapping[str, np.ndarray]:
            return {"scores": pair_scores(self._model, pairs, progress="scoring pairs")}

        parts = self.identity | {"pairs": digest(pairs)}
        found = arrays_kept("scores", parts, make)["scores"]
        if not np.isfinite(found).all():
            raise UserError("the cross-encoder gives NaN or infinite scores; they can't be used")
        return found[list(map(_places(pairs).__getitem__, every))]


def _places(values: Iterable[Any]) -> dict[Any, int]:
    """Each different value with its place among them."""
    return {value: place for place, value in enumerate(dict.fromkeys(values))}
