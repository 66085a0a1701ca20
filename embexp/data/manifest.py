"""What a run knew: each passage's id, document and a digest of its text, in the run's passages.parquet; no texts.

Written by `experiment` at the end of a run; read by `drift` and `retrain`, which hold today's documents against it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embexp.data.retrieval_set import Splits
from embexp.errors import UserError

NAME = "passages.parquet"
MINING = b"embexp.mining"  # the file's own metadata: the config of mining, where the data set was mined


@dataclass(frozen=True)
class Manifest:
    """What the run searched. digests: passage id -> digest of its text. documents: passage id -> its document.

    trained: documents that a question of train was on. mining: the config that the data set was mined with, or None.
    """

    digests: Mapping[str, int]
    documents: Mapping[str, str]
    trained: frozenset[str]
    mining: Mapping[str, Any] | None

    def was_trained(self, document: str, keys: Iterable[str]) -> bool:
        """Whether training had a question on the document of these passages, under today's name or another."""
        return document in self.trained or any(self.documents.get(key) in self.trained for key in keys)


def digest_of(text: str) -> int:
    """Eight bytes of BLAKE2 over a passage's text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def of(splits: Splits) -> Manifest:
    """The manifest of a data set as a run has read it. Time grows with its text."""
    corpus, brought = splits.test.corpus, splits.mined
    digests = {key: digest_of(text) for key, text in corpus.items()}
    trained = {document for query in splits.train.queries for document in splits.train.documents_of(query)}
    whole = {} if brought is None else {key: found for key, found in brought.whole.items() if key in digests}
    documents = {key: splits.test.documents.get(key, key) for key in corpus}  # a user's own source may lack some
    return Manifest(digests | whole, documents, frozenset(trained), None if brought is None else brought.config)


def write(manifest: Manifest, folder: Path) -> None:
    """Write passages.parquet: id, document, digest and trained, a row for each passage."""
    import pyarrow
    import pyarrow.parquet

    documents = pyarrow.array([manifest.documents[key] for key in manifest.digests]).dictionary_encode()
    columns = {
        "id": pyarrow.array(list(manifest.digests)),
        "document": documents,
        "digest": pyarrow.array(np.fromiter(manifest.digests.values(), np.uint64, len(manifest.digests))),
        "trained": pyarrow.array([manifest.documents[key] in manifest.trained for key in manifest.digests]),
    }
    table = pyarrow.table(columns).replace_schema_metadata({MINING: json.dumps(manifest.mining)})
    pyarrow.parquet.write_table(table, folder / NAME, compression="zstd", use_dictionary=["document"])


def read(folder: Path) -> Manifest:
    """The manifest of a run. Raises UserError where it has none, or none that can be read."""
    import pyarrow
    import pyarrow.parquet

    file = folder / NAME
    if not file.is_file():
        raise UserError(
            f"{folder} has no {NAME}, the list of what the run knew: it was made by an older embexp, or scored no "
            "test. Run it again, and name the new one"
        )
    try:
        table = pyarrow.parquet.read_table(file)
        ids, documents, digests, trained = (table[name].to_pylist() for name in ("id", "document", "digest", "trained"))
        mining = json.loads(table.schema.metadata[MINING])
    except (pyarrow.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} can't be read ({' '.join(str(error).split())}); run the experiment again") from error
    learnt = frozenset(document for document, was in zip(documents, trained, strict=True) if was)
    return Manifest(dict(zip(ids, digests, strict=True)), dict(zip(ids, documents, strict=True)), learnt, mining)
