"""Pairs of query and passage through a cross-encoder: in parts of like length, on each core.

Called by `rows.teachers` for a model as it was saved, by `reranker` for one in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from embexp.encoding.parts import Features, computed, tokenised
from embexp.progress import counting

if TYPE_CHECKING:  # slow to import, and not needed where all scores are kept
    from sentence_transformers import CrossEncoder

COMPARED = 16  # of the longest pairs, whose features say whether they can be cut


def pair_scores(model: CrossEncoder, pairs: Sequence[tuple[str, str]], *, progress: str | None) -> np.ndarray:
    """(pairs,) float32 from 0 to 1: the model's one output through a sigmoid; to rounding what its `predict` gives.

    progress: what to call the work where it is shown; None shows nothing.
    """
    was_training = model.training
    model.eval()
    scores = np.empty(len(pairs), dtype=np.float32)
    characters = [len(query) + len(passage) for query, passage in pairs]
    found = tokenised(pairs, characters, model.preprocess, model.device, compared=COMPARED)
    with counting(progress, len(pairs), unit="pairs") as add:
        for places, part in computed(found, partial(_scored, model), model.device):
            scores[places] = part
            add(len(places))
    model.train(was_training)
    return scores


def _scored(model: CrossEncoder, features: Features) -> np.ndarray:
    with torch.no_grad():  # holds for this thread alone
        return torch.sigmoid(model(features)["scores"].float().view(-1)).cpu().numpy()
