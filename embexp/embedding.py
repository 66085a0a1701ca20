"""Texts through a model: in parts of like length, on each core, and on all processes of a run.

Called by `encoding` and, for a process's share, by `follower`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from embexp.models import EmbeddingModel
from embexp.parts import can_be_cut, parts, tokens_at_once, workers
from embexp.progress import counting
from embexp.tokenising import COMPARED, Preprocess

if TYPE_CHECKING:  # slow to import, and not needed where all embeddings are kept
    from sentence_transformers import SentenceTransformer

TOLD = 4096  # texts, to a process at a time: a million are never all on their way at once
TOKENISED = 1024  # texts at once, by the tokenizer's own threads; they are then cut into parts by their tokens
UNCUT = 64  # texts in one pass where the model takes something else than padded tokens
AHEAD = 32  # parts that are waiting or under way

Embeddings = np.ndarray  # (texts, dimensions) float32, each row of length 1


def embedded(
    model: EmbeddingModel, texts: Sequence[str], prompt: str, progress: str | None, *, task: str | None = None
) -> Embeddings:
    """A row of length 1 for each text, (texts, dimensions); made by all processes of the run.

    progress: what to call the work where it is shown; None shows nothing. task: `query` or `document` for a model that
    has a way for each.
    """
    if model.remote is not None:
        return model.remote.embedded([prompt + text for text in texts], progress)
    if model.processes is None:
        return _encode(model, texts, prompt, task, progress)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)
    rows = np.empty((len(texts), model.model.get_embedding_dimension()), dtype=np.float32)
    at_once = TOLD * model.processes.count
    with counting(progress, len(texts), unit="texts") as add:
        for start in range(0, len(order), at_once):
            block = order[start : start + at_once]
            told = [texts[index] for index in block]
            model.processes.tell("encode", texts=told, prompt=prompt, task=task)
            rows[block] = encode_share(model, texts=told, prompt=prompt, task=task)
            add(len(block))
    return rows


def encode_share(model: EmbeddingModel, *, texts: Sequence[str], prompt: str, task: str | None) -> Embeddings:
    """The rows of all texts, of which this process embeds every n-th. What process 0 orders, all do."""
    processes = model.processes
    assert processes is not None
    shares = [list(range(rank, len(texts), processes.count)) for rank in range(processes.count)]
    own = _encode(model, [texts[index] for index in shares[processes.rank]], prompt, task, None)
    rows = np.empty((len(texts), own.shape[1]), dtype=np.float32)
    for share, part in zip(shares, processes.gathered(torch.from_numpy(own), list(map(len, shares))), strict=True):
        rows[share] = part.numpy()
    return rows


def _encode(
    embedding_model: EmbeddingModel, texts: Sequence[str], prompt: str, task: str | None, progress: str | None
) -> Embeddings:
    model = embedding_model.model
    was_training = model.training
    model.eval()
    rows = np.empty((len(texts), model.get_embedding_dimension()), dtype=np.float32)
    waiting: deque[tuple[np.ndarray, Future[np.ndarray]]] = deque()
    with workers(model.device) as pool, counting(progress, len(texts), unit="texts") as add:
        for places, features in _tokenised(model, texts, prompt, task):
            waiting.append((places, pool.submit(_embed, embedding_model, features)))
            while len(waiting) > AHEAD:
                add(_taken(waiting, rows))
        while waiting:
            add(_taken(waiting, rows))
    model.train(was_training)
    return rows


def _taken(waiting: deque[tuple[np.ndarray, Future[np.ndarray]]], rows: Embeddings) -> int:
    """Put the first part's rows into their places; says how many."""
    places, future = waiting.popleft()
    rows[places] = future.result()
    return len(places)


def _tokenised(
    model: SentenceTransformer, texts: Sequence[str], prompt: str, task: str | None
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """The places in `texts` of the parts to embed in one pass each, and their features."""
    if not texts:  # a process's share of fewer texts than there are processes
        return
    order = np.argsort([-len(text) for text in texts], kind="stable")  # nearly by tokens, which are not counted yet
    preprocess = Preprocess(model, prompt, task)
    cut = can_be_cut(preprocess([texts[place] for place in order[:COMPARED]]))
    at_once = TOKENISED if cut else UNCUT
    for start in range(0, len(order), at_once):
        places = order[start : start + at_once]
        features = preprocess([texts[place] for place in places])
        if cut:
            for part, cut_features in parts(features, tokens=tokens_at_once(model.device)):
                yield places[part.numpy()], cut_features
        else:
            yield places, features


def _embed(embedding_model: EmbeddingModel, features: dict[str, Any]) -> np.ndarray:
    device = embedding_model.model.device
    moved = {key: value.to(device) if torch.is_tensor(value) else value for key, value in features.items()}
    # both hold for this thread alone
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=embedding_model.bfloat16):
        vectors = embedding_model.model(moved)["sentence_embedding"].float()
    return torch.nn.functional.normalize(vectors, dim=1).cpu().numpy()
