"""A process of a run beside the one that leads it: carries out what process 0 orders, and writes nothing.

Started by `joining` as `python -m embexp.parallel.follower`, or by torchrun as `python -m embexp`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed import FileStore  # type: ignore[attr-defined]

from embexp import libraries
from embexp.cache import folder_of, kept_in
from embexp.config.components import build
from embexp.encoding.embedding import encode_share
from embexp.errors import UserError
from embexp.models.embedding_model import EmbeddingModel
from embexp.models.low_rank import low_rank
from embexp.parallel import meeting
from embexp.parallel.machine import Launched, Slot, end_with, keep_to, threads_of, usable_gpus
from embexp.parallel.processes import LostError, Processes
from embexp.parallel.shares import same_weights, set_generators
from embexp.training.fine_tuning import Task, train


def main() -> None:
    """`python -m embexp.parallel.follower FOLDER RANK COUNT PARENT`: a follower of the process PARENT."""
    folder, rank, count, parent = sys.argv[1], *map(int, sys.argv[2:])
    end_with(parent)
    code = _followed(FileStore(str(Path(folder, "store")), count), rank, count)
    sys.stderr.flush()
    os._exit(code)  # it owns nothing, and the interpreter would take a second to take itself down


def follow_launched(launched: Launched) -> int:
    """Follow process 0 as torchrun's process of another rank; returns the exit code."""
    take_up(launched)
    code = _followed(meeting.store_of(launched), launched.rank, launched.count)
    return 0 if code == meeting.LOST else code  # torchrun is to name the process that ended first


def _followed(store: Any, rank: int, count: int) -> int:
    logging.disable(logging.WARNING)  # process 0 says the same
    warnings.simplefilter("ignore")
    libraries.loaded()
    try:
        processes = meeting.as_follower(store, rank, count)
        if processes is not None:
            follow(processes)
    except LostError:
        return meeting.LOST
    except Exception as error:
        meeting.write_down(store, rank, error)
        if not isinstance(error, UserError):
            traceback.print_exc()
        return 1
    return 0


def follow(processes: Processes) -> None:
    """Carry out the orders of process 0 until it gives the last one."""
    model: EmbeddingModel | None = None
    while (heard := processes.heard())[0] != "end":
        order, given = heard
        if order == "model":
            model = _loaded(processes, **given)
        elif order == "encode":
            assert model is not None
            encode_share(model, **given)
        elif order == "weights":
            assert model is not None
            same_weights(model.model, processes)
        elif order == "train":
            assert model is not None
            _train(model, processes, **given)
        else:
            raise AssertionError(order)


def _loaded(
    processes: Processes, *, node: Mapping[str, Any], allowed_packages: Sequence[str], texts: Sequence[str]
) -> EmbeddingModel:
    # loaded as in process 0 and not sent: classes of transformers register what they can do when they are first made
    model: EmbeddingModel = build(node, allowed=allowed_packages, without=["kind"]).load(texts)
    same_weights(model.model, processes)
    return replace(model, processes=processes)


def _train(model: EmbeddingModel, processes: Processes, *, task: Task, cache: bool | str) -> None:
    """Train the model as process 0 does at the same time, with the scores that it finds."""

    def scored() -> Mapping[str, float]:
        while (heard := processes.heard())[0] == "encode":
            encode_share(model, **heard[1])
        order, given = heard
        assert order == "scored", order
        set_generators(given["states"])
        return given["metrics"]

    # kept: texts that process 0 has counted the tokens of
    with kept_in(folder_of(cache)), low_rank(model, seed=task.seed):
        train(model, task, dev_metrics=scored, tracker=None)


def take_up(launched: Launched) -> None:
    """Keep this follower of torchrun's to its share of the machine, before anything starts CUDA."""
    end_with(os.getppid())
    for ending in (signal.SIGINT, signal.SIGTERM):  # process 0 hears them too, and ends the others
        signal.signal(ending, signal.SIG_IGN)
    devices = usable_gpus()
    device = devices[launched.rank] if launched.rank < len(devices) else None  # too few: process 0 refuses
    keep_to(Slot(threads_of(launched.count, launched, now=torch.get_num_threads()), device))


if __name__ == "__main__":
    main()
