"""Keeps what depends on content alone between runs: prepared data, base embeddings, rankings, negatives.

Called by whatever is worth keeping; knows nothing of it. An entry is found by the digest of everything that it depends
on, embexp's own source included, never by time, so a wrong entry can't be found and any may be deleted at any moment.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from embexp.errors import counted

log = logging.getLogger(__name__)

LIBRARIES = ["bm25s", "numpy", "scikit-learn", "sentence-transformers", "tokenizers", "torch", "transformers"]
HEAD = 65  # bytes at an entry's start: the digest of the rest, and a line's end
ALIGNED = 64  # bytes that an array's place in an entry is a multiple of
MAPPED_FROM = 2**26  # bytes of an array from which it is mapped, not read
FEW = 16  # values of a list that are looked into one by one
AT_ONCE = 1000  # values of a longer one that are turned into text together
ENTRY = re.compile("[0-9a-f]{64}")  # the name of its file
PATIENCE = 5.0  # seconds of waiting before the log says for what
LEFT_OVER = 24 * 3600  # seconds after which nobody can still be writing a partial file
current: ContextVar[Path | None] = ContextVar("cache folder", default=None)  # None: nothing is kept


@contextmanager
def kept_in(folder: Path | None) -> Iterator[None]:
    """Within this context results are kept in `folder`; nothing is kept outside it, or where it is None."""
    token = current.set(folder)
    try:
        yield
    finally:
        current.reset(token)


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
    return _kept(kind, parts, make, JSON)


def arrays_kept(kind: str, parts: Any, make: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    """The same for arrays by name; arrays of Python objects can't be kept.

    Large ones are memory maps of the file: the system reads what is used and may forget it again. Changing them does
    not change the file.
    """
    return _kept(kind, parts, make, ARRAYS)


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
    found = hashlib.sha256()
    for piece in _as_json(value):
        found.update(piece.encode())
    return found.hexdigest()


def _as_json(value: Any) -> Iterator[str]:
    """What json.dumps gives, with sorted keys, in pieces: the text of a whole corpus would be as large again."""
    parts: Iterable[Iterable[str]]
    if isinstance(value, Mapping):
        items = sorted(value.items())
        if len(items) <= FEW:
            parts = (chain([json.dumps({key: 0})[1:-2]], _as_json(each)) for key, each in items)
        else:
            parts = ([json.dumps(dict(part), default=dict, sort_keys=True)[1:-1]] for part in _cut(items))
        yield from _joined("{", parts, "}")
    elif isinstance(value, list | tuple):
        if len(value) <= FEW:
            parts = (_as_json(each) for each in value)
        else:
            parts = ([json.dumps(part, default=dict, sort_keys=True)[1:-1]] for part in _cut(value))
        yield from _joined("[", parts, "]")
    else:
        yield json.dumps(value, default=dict, sort_keys=True)


def _cut(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (values[start : start + AT_ONCE] for start in range(0, len(values), AT_ONCE))


def _joined(opening: str, parts: Iterable[Iterable[str]], closing: str) -> Iterator[str]:
    yield opening
    for number, part in enumerate(parts):
        if number:
            yield ", "
        yield from part
    yield closing


class Form(NamedTuple):
    """How a value is written after an entry's head, read from there, and what reading it gives."""

    write: Callable[[Any, IO[bytes]], object]
    read: Callable[[IO[bytes]], Any]
    as_read: Callable[[Any], Any]


def _kept(kind: str, parts: Any, make: Callable[[], Any], form: Form) -> Any:
    folder = current.get()
    if folder is None:
        return make()
    path = folder / kind / digest([parts, _source_digest()])
    if (found := _read(path, form)) is not None:
        return found.value
    with _alone(path):  # another run may be making the same: wait, then read it
        if (found := _read(path, form)) is not None:
            return found.value
        value = make()
        _write(path, value, form)
        found = _read(path, form)
        return form.as_read(value) if found is None else found.value  # as a second run will see it


class _Found(NamedTuple):
    value: Any


def _read(path: Path, form: Form) -> _Found | None:
    try:
        file = path.open("rb")
    except OSError:
        return None
    with file:
        head = file.read(HEAD)
        if head != _head(file):
            log.warning("%s is torn and is made anew", path)
            return None
        file.seek(HEAD)
        value = form.read(file)
    with suppress(OSError):  # another user's: who uses it last is not known then
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    return _Found(value)


def _head(file: Any) -> bytes:
    """An entry's first bytes, the digest of all that come after them."""
    file.seek(HEAD)
    return hashlib.file_digest(file, "sha256").hexdigest().encode() + b"\n"


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


def _write(path: Path, value: Any, form: Form) -> None:
    partial = None
    try:
        with tempfile.NamedTemporaryFile(
            "w+b", dir=path.parent, prefix=path.name, suffix=".partial", delete=False
        ) as file:
            partial = Path(file.name)
            file.write(bytes(HEAD))
            form.write(value, file)
            head = _head(file)
            file.seek(0)
            file.write(head)
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
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            log.info("waiting for %s, which another run is making", path)
            lock.acquire()
    except OSError as error:
        log.warning("the cache folder %s can't be used (%s); the run goes on without", path.parent, error)
    try:
        yield
    finally:
        lock.release()  # does nothing where it is not held


JSON = Form(
    write=lambda value, file: file.write(json.dumps(value).encode()),
    read=json.load,
    as_read=lambda value: json.loads(json.dumps(value)),
)


def _write_arrays(arrays: Mapping[str, np.ndarray], file: IO[bytes]) -> None:
    """Their names as a line, then each as in a .npy file, from where memory is aligned for any number."""
    file.write(json.dumps(list(arrays)).encode() + b"\n")
    for array in arrays.values():
        file.write(bytes(-file.tell() % ALIGNED))
        np.lib.format.write_array(file, array, allow_pickle=False)


def _read_arrays(file: IO[bytes]) -> dict[str, np.ndarray]:
    found = {}
    for name in json.loads(file.readline()):
        start = file.seek(-file.tell() % ALIGNED, os.SEEK_CUR)
        np.lib.format.read_magic(file)
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
        data, size = file.tell(), dtype.itemsize * math.prod(shape)
        if size < MAPPED_FROM:
            file.seek(start)
            found[name] = np.lib.format.read_array(file, allow_pickle=False)
        else:
            order: Literal["C", "F"] = "F" if by_column else "C"
            found[name] = np.memmap(file, dtype, mode="c", offset=data, shape=shape, order=order)
        file.seek(data + size)
    return found


ARRAYS = Form(_write_arrays, _read_arrays, dict)


@functools.cache
def _source_digest() -> str:
    """Changed code, ours or a library's, may give other results for the same parts."""
    versions = [importlib.metadata.version(library) for library in LIBRARIES]
    found = hashlib.sha256(json.dumps([platform.machine(), platform.python_version(), *versions]).encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()
