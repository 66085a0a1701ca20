"""Texts through a model: in parts of like length, on each core, and on all processes of a run.

Called by `encoding.encoder` and, for a process's share, by `follower`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from embexp.encoding.parts import Features, computed, tokenised
from embexp.encoding.tokenising import COMPARED, Preprocess
from embexp.models.embedding_model import EmbeddingModel
from embexp.progress import counting

TOLD = 4096  # texts, to a process at a time: a million are never all on their way at once

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
    preprocess = Preprocess(model, prompt, task)
    found = tokenised(texts, [len(text) for text in texts], preprocess, model.device, compared=COMPARED)
    with counting(progress, len(texts), unit="texts") as add:
        for places, vectors in computed(found, partial(_embed, embedding_model), model.device):
            rows[places] = vectors
            add(len(places))
    model.train(was_training)
    return rows


def _embed(embedding_model: EmbeddingModel, features: Features) -> np.ndarray:
    device = embedding_model.model.device
    # both hold for this thread alone
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=embedding_model.bfloat16):
        vectors = embedding_model.model(features)["sentence_embedding"].float()
    return torch.nn.functional.normalize(vectors, dim=1).cpu().numpy()
