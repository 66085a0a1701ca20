"""Times the stages of a run and says in the log how long each took. Called by `experiment`; `progress` shows them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from embexp.progress import doing

log = logging.getLogger(__name__)

OF_A_TRAINING = {  # and of the stages below those that were asked for
    "model": "finding the model",
    "data": "reading data",
    "loading": "loading the model",
    "bm25": "searching with BM25",
    "base": "scoring the base model",
    "rows": "making rows to train on",
    "libraries": "loading the trainer",
    "training": "training",
    "tuned": "scoring the tuned model",
    "comparison": "comparing",
}
SHOWN = OF_A_TRAINING | {
    "merging": "mixing base and tuned weights",
    "reranker": "making the reranker ready",
    "reranked": "re-ordering with the reranker",
    "hybrid_base": "scoring BM25 fused with the base model",
    "adapter": "training and scoring an adapter",
    "merged": "mixing base and tuned weights, and scoring them",
    "hybrid_tuned": "scoring BM25 fused with the tuned model",
    "learning curve": "training on parts of the questions",
    "costs": "measuring what the arms cost",
    "arms": "comparing the arms",
}


class Timer(Protocol):
    """Times what is done within it, under a stage's name."""

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """Begin the stage, one of SHOWN."""


def timer(seconds: dict[str, float]) -> Timer:
    """A timer that writes each stage's wall seconds into `seconds`, also of one that fails."""

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start, ended = time.perf_counter(), "stopped after "
        try:
            with doing(SHOWN[name]):
                yield
            ended = ""
        finally:
            seconds[name] = round(time.perf_counter() - start, 2)
            log.info("%s: %s%.1f s", SHOWN[name], ended, seconds[name])

    return stage
