"""How long texts are in tokens. Called by `preparing`, `looks` and `fine_tuning`, before anything is embedded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from embexp.cache import arrays_kept, digest
from embexp.data.retrieval_set import RetrievalSet
from embexp.encoding.tokenising import token_counts
from embexp.models.embedding_model import EmbeddingModel

TEXTS_AT_ONCE = 20_000  # fewer are soon tokenised whole, more would fill the memory


def lengths(embedding_model: EmbeddingModel, texts: Sequence[str], prompt: str) -> np.ndarray:
    """(texts) in tokens as the model reads them, cut to its longest; of many texts nearly, see `_by_words`."""
    found = token_lengths if len(texts) <= TEXTS_AT_ONCE else _by_words
    longest = embedding_model.facts.max_seq_length
    counts = np.asarray(found(embedding_model, texts, prompt), dtype=np.int64)
    return counts if longest is None else np.minimum(counts, longest).astype(np.int64)  # infinite for some


def _by_words(embedding_model: EmbeddingModel, texts: Sequence[str], prompt: str) -> np.ndarray:
    """(texts) the sum of their words' tokens, each different word looked at only once.

    Exact for WordPiece, whose words do not depend on each other; for others near enough to sort by.
    """
    import pyarrow
    import pyarrow.compute

    known: dict[str, int] = {}
    alone, around = token_lengths(embedding_model, ["", prompt], "")
    counts = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        lists = pyarrow.compute.utf8_split_whitespace(pyarrow.array(texts[start : start + TEXTS_AT_ONCE]))
        found = lists.flatten().dictionary_encode()
        words = found.dictionary.to_pylist()
        new = [word for word in words if word not in known]
        known.update(zip(new, token_lengths(embedding_model, new, ""), strict=True))
        tokens = np.array([known[word] - alone for word in words], np.int64)[np.asarray(found.indices)]
        sums = np.concatenate([[0], np.cumsum(tokens)])
        counts.append(around + np.diff(sums[np.asarray(lists.offsets)]))
    return np.concatenate(counts)


def count_truncated(embedding_model: EmbeddingModel, data: RetrievalSet) -> int | None:
    """How many passages are longer than what the model reads, and so are cut; None where nobody here knows."""
    longest = embedding_model.facts.max_seq_length
    if longest is None:
        return None if embedding_model.remote is not None else 0
    counts = token_lengths(embedding_model, list(data.corpus.values()), embedding_model.passage_prompt)
    return sum(count > longest for count in counts)


def token_lengths(embedding_model: EmbeddingModel, texts: Sequence[str], prompt: str) -> list[int]:
    """The length of each text in tokens, prompt and special tokens included, before truncation.

    The model is loaded only where nothing is kept for these texts.
    """
    if not texts:
        return []
    # the digest of the model is known before it is loaded, and covers its tokenizer, which training leaves as it is
    parts = [embedding_model.origin["content"], prompt, digest(texts)]
    kept = arrays_kept("token_lengths", parts, lambda: {"lengths": _counted(embedding_model, texts, prompt)})
    return kept["lengths"].tolist()


def _counted(embedding_model: EmbeddingModel, texts: Sequence[str], prompt: str) -> np.ndarray:
    tokenizer, prompted = embedding_model.tokenizer, [prompt + text for text in texts]
    if tokenizer is None:  # an endpoint's: characters are as good to sort by
        return np.fromiter(map(len, prompted), np.int32, len(prompted))
    if isinstance(tokenizer, Tokenizer):
        return token_counts(tokenizer, prompted, special=False)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        return token_counts(backend, prompted, special=True)
    return np.asarray([len(ids) for ids in tokenizer(prompted, truncation=False, verbose=False)["input_ids"]], np.int32)
