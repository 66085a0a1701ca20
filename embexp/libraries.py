"""Loads sentence-transformers, and with it transformers, datasets, scikit-learn and torch's compiler: seconds.

Called by what needs a model at hand. A run whose base embeddings are kept needs one only to train.
"""

from __future__ import annotations

import logging
from types import ModuleType

from embexp.starting import uncollected


def loaded() -> ModuleType:
    """sentence_transformers. Progress bars and notices of the libraries stay out of a run's output; warnings do not."""
    with uncollected():
        import datasets
        import sentence_transformers
        import transformers
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return sentence_transformers


def quiet_keyword_search() -> None:
    """Keep what bm25s says of each index out of a run's output; called once it is imported."""
    logging.getLogger("bm25s").setLevel(logging.WARNING)
