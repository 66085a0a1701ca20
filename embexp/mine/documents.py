"""Reads the knowledge base: folders and files of documents, and files of ready passages. The first step of mining.

Calls `formats` for each document's text; knows nothing of passages' sizes, models or questions.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import glob, has_magic
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any

from embexp.datasets.pairs import READERS
from embexp.errors import UserError, listed
from embexp.mine.formats import FORMATS, Unreadable, cleaned
from embexp.mine.pace import told
from embexp.mine.passages import Document, Passage

TEXT_COLUMNS = ("text", "passage")
ID_COLUMNS = ("_id", "id")
OTHERS_READ = "the others were read"  # the end of why a file is unreadable in part


@dataclass(frozen=True)
class Read:
    """What was found at the places, in the order of names.

    | field      | holds                                                                             |
    |------------|-----------------------------------------------------------------------------------|
    | documents  | texts still to be cut                                                             |
    | passages   | ready ones, from JSONL, CSV, TSV and Parquet                                      |
    | unreadable | the name of a file (`*.png` for several) and why nothing, or not all, was read    |
    """

    documents: tuple[Document, ...]
    passages: tuple[Passage, ...]
    unreadable: Mapping[str, str]


def read(places: Sequence[str], *, without: Path | None = None) -> Read:
    """Read folders (whole, without hidden files), globs and files.

    A name is the path within the folder, or from a glob's first wildcard on, with slashes; where two places have the
    same name, the later one's is set behind its folder. A row of ready passages has a `text` or `passage`, and perhaps
    an `_id` or `id`, a `title` and a `document`; without a document it counts as one of its own.

    without: a folder that is passed over, since it is written to.

    Raises UserError for a place that names nothing, for an id that stands for two passages, when nothing is readable,
    and when the library that a kind of file needs is not installed.
    """
    files, unreadable = _found(places, without)
    documents: list[Document] = []
    ready: dict[str, Passage] = {}
    for name, file in told("reading files", files.items()):
        try:
            if file.suffix.lower() not in READERS:
                documents.append(Document(name, _text(file)))
                continue
            passages, empty = _ready(file, name)
        except (Unreadable, UserError) as error:
            unreadable[name] = str(error).replace(f"{file}, ", "").replace(str(file), "it").splitlines()[0]
        except OSError as error:
            unreadable[name] = (error.strerror or str(error)).lower()
        except Exception as error:  # whatever a damaged file does to a converter
            if isinstance(error, ImportError) or type(error).__name__ == "MissingDependencyException":
                raise UserError(f"{name} can't be read without a library: pip install 'embexp[mine]'") from error
            unreadable[name] = f"damaged ({type(error).__name__}: {str(error).strip()[:80]})".replace(": )", ")")
        else:
            if empty:
                unreadable[name] = f"rows without text: {empty}; {OTHERS_READ}"
            for passage in passages:
                _put(ready, passage, name)
    if not documents and not ready:
        reasons = listed(f"{name}: {reason}" for name, reason in sorted(unreadable.items()))
        raise UserError(
            f"documents={listed(places)} has nothing that can be read ({reasons or 'no files'}). "
            f"Files ending in {', '.join([*FORMATS, *READERS])} are"
        )
    return Read(tuple(documents), tuple(ready.values()), dict(sorted(unreadable.items())))


def missing(places: Sequence[str]) -> list[str]:
    """What to say of the places that name nothing."""
    return [
        f"documents={place} names no file or folder; name a folder, a glob or a file"
        for place in places
        if not Path(place).expanduser().exists() and not _matches(place)
    ]


def _matches(place: str) -> list[Path]:
    # not Path.glob, which goes into hidden folders
    found = glob(str(Path(place).expanduser()), recursive=True) if has_magic(place) else []  # noqa: PTH207
    return [Path(match) for match in found]


def _text(file: Path) -> str:
    data = file.read_bytes()
    text = FORMATS[file.suffix.lower()](data) if data.strip() else ""
    if not text.strip():
        raise Unreadable("empty")
    return text


def _put(passages: dict[str, Passage], passage: Passage, name: str) -> bool:
    """Whether the passage is new; raises UserError when another one has its id."""
    known = passages.setdefault(passage.id, passage)
    if (known.headings, known.text) != (passage.headings, passage.text):
        raise UserError(
            f"passage id {passage.id!r} in {name} stands for two texts: {known.text[:40]!r} (of {known.document}) and "
            f"{passage.text[:40]!r}. Ids must differ over all files; leave them out to have them made from the text"
        )
    return known is passage


def _ready(file: Path, name: str) -> tuple[list[Passage], int]:
    """The passages of a file, each once, and how many of its rows have no text."""
    passages: dict[str, Passage] = {}
    positions: Counter[str] = Counter()
    rows = empty = 0
    for where, row in READERS[file.suffix.lower()](file):
        rows += 1
        text = _text_of(row, where.removeprefix(f"{file}, "))
        empty += not text
        if text:
            title = " ".join(_value(row, "title").split())
            given_id = next((_value(row, column) for column in ID_COLUMNS if _value(row, column)), None)
            if given_id is not None and re.search(r"\s", given_id):
                raise Unreadable(f"the id {given_id!r} has white space, which rankings can't hold")
            passage = Passage(text, "", (title,) if title else (), given_id=given_id)
            document = _value(row, "document") or f"{name}#{passage.id}"
            passage = replace(passage, document=document, position=positions[document])
            positions[document] += _put(passages, passage, "it")
    if not rows:
        raise Unreadable("empty")
    return list(passages.values()), empty


def _text_of(row: dict[str, Any], where: str) -> str:
    column = next((column for column in TEXT_COLUMNS if column in row), None)
    if column is None:
        raise Unreadable(f"no column {' or '.join(TEXT_COLUMNS)}; it has {listed(row)}")
    if not isinstance(row[column], str | None):
        raise Unreadable(f"{where}: column {column} is {row[column]!r}, not a text")
    return cleaned(row[column] or "").strip()


def _value(row: dict[str, Any], column: str) -> str:
    """A value as text; 001 stays 001 and NA stays NA, since the readers type nothing that the file does not."""
    return "" if row.get(column) is None else cleaned(str(row[column]))


@dataclass
class _Found:
    """Files by name, each once; and what can't be read, among it files of unknown endings, counted by ending."""

    without: Path | None
    files: dict[str, Path] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    seen: set[Path] = field(default_factory=set)
    unknown: dict[str, list[str]] = field(default_factory=dict)

    def add(self, place: Path, root: Path) -> None:
        for file in self._walk(place, root):
            if self.without is not None and file.resolve().is_relative_to(self.without):
                continue
            name = _named(file.relative_to(root))
            try:
                problem = "a link to nothing" if not file.exists() else "not a file" if not file.is_file() else None
            except OSError as error:
                problem = (error.strerror or str(error)).lower()
            if problem:
                self.unreadable[name] = problem
            elif (resolved := file.resolve()) not in self.seen:
                self.seen.add(resolved)
                ending = file.suffix.lower()
                if ending in FORMATS or ending in READERS:
                    self.files[self._free(name, root)] = file
                else:
                    self.unknown.setdefault(ending, []).append(name)

    def _walk(self, place: Path, root: Path) -> Iterator[Path]:
        """All files below, without hidden ones; a folder that links lead to again is walked once."""
        if not place.is_dir():
            yield place
            return
        closed: list[OSError] = []
        seen = {place.resolve()}
        for folder, folders, files in os.walk(place, followlinks=True, onerror=closed.append):
            inner = {name: Path(folder, name).resolve() for name in sorted(folders) if not _is_hidden(name)}
            folders[:] = [name for name, resolved in inner.items() if resolved not in seen]
            seen |= {*inner.values()}
            yield from (Path(folder, name) for name in sorted(files) if not _is_hidden(name))
        for error in closed:
            self.unreadable[_named(Path(error.filename).relative_to(root))] = (error.strerror or "closed").lower()

    def _free(self, name: str, root: Path) -> str:
        """The name, behind its folder's or a number where another place has it."""
        candidates = (name, f"{_named(PurePath(root.resolve().name))}/{name}")
        numbered = (f"{candidates[1]} ({number})" for number in range(2, len(self.files) + 3))
        return next(free for free in (*candidates, *numbered) if free not in self.files)


def _found(places: Sequence[str], without: Path | None) -> tuple[dict[str, Path], dict[str, str]]:
    if problems := missing(places):
        raise UserError(*problems)
    found = _Found(without.resolve() if without else None)
    for place in places:
        path = Path(place).expanduser()
        if path.is_dir():
            found.add(path, path)
        elif path.exists():
            found.add(path, path.parent)
        else:
            for match in sorted(_matches(place)):
                found.add(match, _fixed(path))
    for ending, names in found.unknown.items():
        key = names[0] if len(names) == 1 else f"*{ending} ({len(names)} files)"
        found.unreadable[key] = f"files ending in {ending} are not read" if ending else "without an ending"
    return dict(sorted(found.files.items())), found.unreadable


def _fixed(pattern: Path) -> Path:
    """The folder before a glob's first wildcard."""
    return Path(*takewhile(lambda part: not has_magic(part), pattern.parts))


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "~$"))  # the second is Office's mark of a file that is open


def _named(path: PurePath) -> str:
    """The path with slashes and in composed letters, whatever the machine (a Mac writes é as two characters)."""
    readable = path.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return unicodedata.normalize("NFC", readable)
