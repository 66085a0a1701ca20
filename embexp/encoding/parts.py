"""Cuts tokenised texts into parts of like length, and works on several at once.

Called by `embedding` and `pair_scores` for texts and pairs, by `fast_steps` for a batch in training.

A pass over texts of unlike length computes padding, and one over many tokens computes out of the processor's cache. On
a CPU each part has one thread of torch, and as many are under way as there are threads: no core waits for another.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

TOKENS = 1024  # in a pass of one thread: the widest layer of a small model stays in a core's cache
TOKENS_ON_A_GPU = 16384
WORKERS = 8  # at most: Python's lock is shared
TOKENISED = 1024  # texts at once, by the tokenizer's own threads; they are then cut into parts by their tokens
UNCUT = 64  # texts in one pass where the model takes something else than padded tokens
AHEAD = 32  # parts that are waiting or under way

Features = dict[str, Any]
Item = TypeVar("Item")


def tokens_at_once(device: torch.device) -> int:
    """How many tokens a pass should have at most, padding included."""
    return TOKENS * _threads() if device.type == "cpu" else TOKENS_ON_A_GPU


def even(features: Features, device: torch.device) -> int:
    """The tokens at once with which every worker gets as much as the others, in one part or several.

    Few long parts would hold more padding, many short ones more overhead.
    """
    real, count = int(features["attention_mask"].sum()), how_many(device)
    wanted = max(1, math.ceil(real / tokens_at_once(device)), min(4, real // (tokens_at_once(device) // 4)))
    return math.ceil(real / (math.ceil(wanted / count) * count))


def how_many(device: torch.device) -> int:
    """Workers for a device."""
    return max(1, torch.get_num_threads() // _threads()) if device.type == "cpu" else 1


@contextmanager
def workers(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Threads to compute parts in, each with its share of torch's; a GPU has one, so that it waits for no tokenizer."""
    before, share = torch.get_num_threads(), _threads()
    if device.type != "cpu":
        share = before

    def start() -> None:
        torch.get_num_threads()  # the first call in a thread sets the process's number, which would undo the next line
        torch.set_num_threads(share)

    with ThreadPoolExecutor(how_many(device), initializer=start) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(before)  # what is set in one thread is also what later threads begin with


def _threads() -> int:
    """Of torch, for each worker."""
    return max(1, torch.get_num_threads() // WORKERS)


def can_be_cut(features: Features) -> bool:
    """Whether these are plain padded texts: all tensors are (texts, tokens), as the attention mask is."""
    tensors = [value for value in features.values() if torch.is_tensor(value)]
    mask = features.get("attention_mask")
    return mask is not None and mask.dim() == 2 and all(value.shape == mask.shape for value in tensors)


def parts(features: Features, *, tokens: int) -> Iterator[tuple[torch.Tensor, Features]]:
    """The rows (their numbers) of each part and its features, the longest texts first, without their common padding.

    features: such as `can_be_cut`. tokens: in a part at most, padding included; a longer text is a part of its own.
    """
    mask = features["attention_mask"]
    columns = torch.arange(mask.shape[1], device=mask.device)
    ends = ((columns + 1) * mask).amax(dim=1)
    starts = torch.where(mask > 0, columns, mask.shape[1]).amin(dim=1)  # a tokenizer may pad on the left
    order = (ends - starts).argsort(descending=True, stable=True)
    for rows in _cut(order, (ends - starts)[order].tolist(), tokens):
        seen = slice(int(starts[rows].min()), int(ends[rows].max()))
        yield rows, {key: value[rows, seen] if torch.is_tensor(value) else value for key, value in features.items()}


def _cut(order: torch.Tensor, lengths: list[int], tokens: int) -> Iterator[torch.Tensor]:
    start = 0
    while start < len(lengths):
        end = start + max(1, tokens // max(1, lengths[start]))
        yield order[start:end]
        start = end


def tokenised(
    items: Sequence[Item],
    characters: Sequence[int],
    preprocess: Callable[[Sequence[Item]], Features],
    device: torch.device,
    *,
    compared: int,
) -> Iterator[tuple[np.ndarray, Features]]:
    """The places in `items` of the parts to put through a model in one pass each, and their features; longest first.

    items: texts or pairs; characters: of each. preprocess: is called first with the longest `compared` of them alone,
    whose features say whether they can be cut.
    """
    if not items:  # a process's share of fewer texts than there are processes
        return
    order = np.argsort([-count for count in characters], kind="stable")  # nearly by tokens, which are not counted yet
    cut = can_be_cut(preprocess([items[place] for place in order[:compared]]))
    at_once = TOKENISED if cut else UNCUT
    for start in range(0, len(order), at_once):
        places = order[start : start + at_once]
        features = preprocess([items[place] for place in places])
        if cut:
            for part, cut_features in parts(features, tokens=tokens_at_once(device)):
                yield places[part.numpy()], cut_features
        else:
            yield places, features


def computed(
    tokenised_parts: Iterator[tuple[np.ndarray, Features]],
    compute: Callable[[Features], np.ndarray],
    device: torch.device,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each part's places and what `compute` gives for its features on the device, several under way at once."""
    waiting: deque[tuple[np.ndarray, Future[np.ndarray]]] = deque()

    def work(features: Features) -> np.ndarray:
        return compute({key: value.to(device) if torch.is_tensor(value) else value for key, value in features.items()})

    with workers(device) as pool:
        for places, features in tokenised_parts:
            waiting.append((places, pool.submit(work, features)))
            while len(waiting) > AHEAD:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()
