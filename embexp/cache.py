"""Keeps what depends on content alone between runs: prepared data, base embeddings, rankings, negatives.

Called by whatever is worth keeping; knows nothing of it. An entry is found by the digest of everything that it depends
on, embexp's own source included, never by time, so a wrong entry can't be found and any may be deleted at any moment.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
import json
import logging
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from embexp.errors import counted

log = logging.getLogger(__name__)

LIBRARIES = ["bm25s", "numpy", "scikit-learn", "sentence-transformers", "tokenizers", "torch", "transformers"]
ENTRY = re.compile("[0-9a-f]{64}")  # the name of its file
LEFT_OVER = 24 * 3600  # seconds after which nobody can still be writing a partial file
_folder: ContextVar[Path | None] = ContextVar("cache folder", default=None)


@contextmanager
def kept_in(folder: Path | None) -> Iterator[None]:
    """Within this context results are kept in `folder`; nothing is kept outside it, or where it is None."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def default_folder() -> Path:
    """EMBEXP_CACHE, else embexp/ in the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    if named := os.environ.get("EMBEXP_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "embexp"


def folder_of(setting: bool | str) -> Path | None:
    """Where the key `cache` of a config says that results are kept; None for nowhere."""
    if isinstance(setting, str):
        return Path(setting).expanduser()
    return default_folder() if setting else None


def json_kept(kind: str, parts: Any, make: Callable[[], Any]) -> Any:
    """What `make` returns (JSON values), made only when nothing is kept for these parts.

    kind: a word for a folder and the log. parts: everything that the result depends on, as JSON values; texts are best
    given as `digest(texts)`.
    """
    return _kept(kind, parts, make, lambda value: json.dumps(value).encode(), json.loads)


def arrays_kept(kind: str, parts: Any, make: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    """The same for arrays by name; arrays of Python objects can't be kept."""
    return _kept(kind, parts, make, _packed, _unpacked)


def trim(folder: Path, *, gigabytes: float) -> None:
    """Remove the entries that were not used for longest until the rest is at most this large, and torn leftovers.

    An entry that another run is making is left alone; one that is removed while it is needed is made anew.
    """
    found = {}
    for path in folder.glob("*/*"):
        with suppress(FileNotFoundError):  # another run trims too
            found[path] = path.stat()
    for path, stat in found.items():
        if path.suffix == ".partial" and stat.st_mtime < time.time() - LEFT_OVER:
            path.unlink(missing_ok=True)
    entries = {path: stat for path, stat in found.items() if ENTRY.fullmatch(path.name)}
    left, removed = sum(stat.st_size for stat in entries.values()), 0
    for path in sorted(entries, key=lambda path: entries[path].st_atime_ns):
        if left <= gigabytes * 1e9:
            break
        if _removed(path):
            left -= entries[path].st_size
            removed += 1
    if removed:
        shown = counted(removed, "entry", "entries")
        log.info("%s of the cache removed, the longest unused; %.1f GB are left", shown, left / 1e9)


def digest(value: Any) -> str:
    """The SHA-256 of JSON values; mappings are the same whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=dict).encode()).hexdigest()


def _kept(
    kind: str, parts: Any, make: Callable[[], Any], pack: Callable[[Any], bytes], unpack: Callable[[bytes], Any]
) -> Any:
    folder = _folder.get()
    if folder is None:
        return make()
    path = folder / kind / digest([parts, _source_digest()])
    if (payload := _read(path)) is not None:
        return unpack(payload)
    with _alone(path):  # another run may be making the same: wait, then read it
        if (payload := _read(path)) is not None:
            return unpack(payload)
        value = make()
        payload = pack(value)
        _write(path, payload)
        return unpack(payload)  # as a second run will see it


def _read(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    head, _, payload = content.partition(b"\n")
    if head != hashlib.sha256(payload).hexdigest().encode():
        log.warning("%s is torn and is made anew", path)
        return None
    with suppress(OSError):  # another user's: who uses it last is not known then
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    return payload


def _removed(path: Path) -> bool:
    """Remove an entry and its lock, unless somebody holds that."""
    lock = FileLock(f"{path}.lock", timeout=0)
    try:
        lock.acquire()
    except (Timeout, OSError):
        return False
    try:
        path.unlink(missing_ok=True)
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: who waits for it sees that and asks again
    finally:
        lock.release()
    return True


def _write(path: Path, payload: bytes) -> None:
    partial = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".partial", delete=False) as file:
            partial = Path(file.name)
            file.write(hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
        partial.replace(path)
    except OSError as error:  # a full disk costs time in later runs, not this one
        log.warning("%s can't be kept (%s); the run goes on", path, error)
        if partial is not None:
            partial.unlink(missing_ok=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that the system frees when its holder ends, however it ends; none where it can't be written."""
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        log.warning("the cache folder %s can't be used (%s); the run goes on without", path.parent, error)
    try:
        yield
    finally:
        lock.release()  # does nothing where it is not held


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _unpacked(payload: bytes) -> Mapping[str, np.ndarray]:
    with np.load(io.BytesIO(payload), allow_pickle=False) as file:
        return dict(file)


@functools.cache
def _source_digest() -> str:
    """Changed code, ours or a library's, may give other results for the same parts."""
    versions = [importlib.metadata.version(library) for library in LIBRARIES]
    found = hashlib.sha256(json.dumps([platform.machine(), platform.python_version(), *versions]).encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()
