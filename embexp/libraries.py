"""Loads sentence-transformers, and with it transformers, datasets, scikit-learn and torch's compiler: seconds.

Called by what needs a model at hand. A run whose base embeddings are kept needs one only to train. What the libraries
may say in a run is decided here alone.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from types import ModuleType

from embexp.starting import uncollected

# the lowest level that is shown of a library's log, where it is not the usual WARNING
LOWEST = {
    # how a model is loaded, that a text is too long for it (result.json counts them), what a checkpoint lacks (which
    # `embedding_model` and `checkpoints` refuse): nothing that a user could mend, and nothing that embexp does not say
    "transformers": logging.ERROR,
    "sentence_transformers.base.model": logging.ERROR,  # that an embedding model becomes a cross-encoder, as was asked
    "bm25s": logging.WARNING,  # it asks for DEBUG itself: a line for each index
    "matplotlib": logging.ERROR,  # that it builds its cache of fonts
}
PRINTED = "[INFO] Running in WANDB offline mode\n"  # by transformers as it is imported; `job` ends with how to upload


def loaded() -> ModuleType:
    """sentence_transformers. Once for all libraries: progress bars and notices stay out of a run's output."""
    with uncollected(), _unprinted():
        import datasets
        import sentence_transformers
        import torch
        import transformers
    # cuDNN's attention plans anew for each new shape, and batches of texts have new ones all the time: it made training
    # several times slower on an H200
    torch.backends.cuda.enable_cudnn_sdp(False)
    datasets.disable_progress_bars()  # "Map"
    transformers.utils.logging.disable_progress_bar()  # "Loading weights", "Writing model shards"
    quiet("transformers")
    quiet("sentence_transformers.base.model")
    return sentence_transformers


def quiet(library: str) -> None:
    """Keep what nobody needs of a library's log out of a run; one that sets its level must be imported before."""
    logging.getLogger(library).setLevel(LOWEST[library])


def hide_downloads() -> None:
    """Keep the Hub's progress bars, several lines that move, off a terminal that shows ours."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()


@contextmanager
def _unprinted() -> Iterator[None]:
    """Print what is printed within it afterwards, but for PRINTED."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        sys.stdout.write(printed.getvalue().replace(PRINTED, ""))
