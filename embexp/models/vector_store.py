"""Vectors that were paid for, by text, in a file of their own: a text is never sent twice.

Called by `remote`. Unlike what `cache` keeps they cost money, so that neither a new embexp nor a full cache removes
them. SQLite makes each answer whole or not there, whoever is killed, and lets several runs write at a time.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from embexp.errors import UserError
from embexp.service.journal import Spending

PATIENCE = 60.0  # seconds for another run's answer to be written
AT_ONCE = 500  # texts that are looked up together
TABLES = (
    "CREATE TABLE IF NOT EXISTS about (what TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS calls (tokens INTEGER NOT NULL, counted INTEGER NOT NULL, lost INTEGER NOT NULL)",
)


class VectorStore:
    """The vectors of one model at one endpoint. made: told by a file that was made anew, since a user may remove one
    when the provider has changed the model.

    | table   | holds                                                                                  |
    |---------|----------------------------------------------------------------------------------------|
    | about   | what gives the vectors, as JSON, and when the file was made                            |
    | vectors | a text's digest (16 bytes of BLAKE2) and its vector (float32), no text                 |
    | calls   | the tokens of each call, whether the server counted them, and whether it gave no answer |
    """

    def __init__(self, file: Path, *, about: Mapping[str, Any]) -> None:
        """file: made, with its folder, where it is not there. Raises UserError where it can't be used."""
        self._file = file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as connection:
                for table in TABLES:
                    connection.execute(table)
                if not connection.execute("SELECT 1 FROM about").fetchone():
                    made = {**about, "made": time.time_ns()}
                    connection.execute("INSERT INTO about VALUES (?)", [json.dumps(made)])
                self.made: int = json.loads(connection.execute("SELECT what FROM about").fetchone()[0])["made"]
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"{file}, where paid vectors are kept, can't be used ({error}); set cache= to a folder that can be "
                "written to, or move the file away"
            ) from error

    def lacking(self, texts: Sequence[str]) -> list[str]:
        """Those without a vector, each once, in order."""
        different = list(dict.fromkeys(texts))
        with self._open() as connection:
            known = {key for keys in _cut(different) for key, _ in _found(connection, keys)}
        return [text for text in different if _key(text) not in known]

    def add(self, texts: Sequence[str], rows: np.ndarray, *, tokens: int, counted: bool) -> None:
        """Keep what one call gave, and what it took: both or neither. rows: (texts, dimensions)."""
        values = [(_key(text), row.astype("<f4").tobytes()) for text, row in zip(texts, rows, strict=True)]
        with self._open() as connection:
            connection.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", values)
            connection.execute("INSERT INTO calls VALUES (?, ?, 0)", [tokens, counted])

    def lose(self, tokens: int) -> None:
        """Note a call that gave no answer and may have been billed."""
        with self._open() as connection:
            connection.execute("INSERT INTO calls VALUES (?, 0, 1)", [tokens])

    def of(self, texts: Sequence[str], *, dimensions: int) -> np.ndarray:
        """(texts, dimensions) float32, as they were answered; all must be there."""
        different = list(dict.fromkeys(texts))
        with self._open() as connection:
            vectors = {key: vector for keys in _cut(different) for key, vector in _found(connection, keys)}
        rows = np.empty((len(texts), dimensions), dtype=np.float32)
        for place, text in enumerate(texts):
            rows[place] = np.frombuffer(vectors[_key(text)], dtype="<f4")
        return rows

    def spent(self) -> Spending:
        """What all calls took, those of earlier runs too; no prices."""
        with self._open() as connection:
            calls, tokens, guessed = connection.execute(
                "SELECT count(*), coalesce(sum(tokens), 0), coalesce(sum(1 - counted), 0) FROM calls"
            ).fetchone()
        unpriced = Spending(calls, tokens) if calls else None
        return Spending(calls, tokens, estimated=guessed, unpriced=unpriced)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction, so that any thread may ask."""
        connection = sqlite3.connect(self._file, timeout=PATIENCE)
        try:
            with connection:
                yield connection
        finally:
            connection.close()


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _cut(texts: Sequence[str]) -> Iterator[list[bytes]]:
    for start in range(0, len(texts), AT_ONCE):
        yield [_key(text) for text in texts[start : start + AT_ONCE]]


def _found(connection: sqlite3.Connection, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    marks = ", ".join("?" * len(keys))
    return connection.execute(f"SELECT text, vector FROM vectors WHERE text IN ({marks})", keys).fetchall()
