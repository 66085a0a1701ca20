"""The user's own question-passage pairs, one row each, from JSONL, CSV, TSV or Parquet."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.data.splits import Shares, cut, cut_dev, given
from embexp.errors import UserError

Row = tuple[str, dict[str, Any]]  # where it stands, for messages, and its values by column
SIDES = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "val": "dev", "test": "test"}


@dataclass(frozen=True)
class Columns:
    """Which column holds what; null where the file has none.

    | field      | its column holds                                                                       |
    |------------|----------------------------------------------------------------------------------------|
    | query      | the question                                                                           |
    | passage    | the passage that answers it                                                            |
    | group      | the document that the passage comes from: rows of one group never stand on two sides   |
    | split      | train, dev (or validation) or test: the file's own split instead of a cut by group     |
    | label      | a whole number: > 0 the passage answers, 0 it was judged not to                        |
    | unread     | (names) columns called group, split or label that are left out on purpose              |
    | query_id, passage_id | the file's own ids; made from the text (and group) where there are none      |
    """

    query: str = "query"
    passage: str = "passage"
    group: str | None = None
    split: str | None = None
    label: str | None = None
    query_id: str | None = None
    passage_id: str | None = None
    unread: list[str] = field(default_factory=list)


def load(*, path: str, columns: Columns, split: Shares) -> Splits:
    """Read the pairs and cut them by group, or as their split column says.

    Raises UserError, with the line where there is one, for a file that is missing, empty or malformed, a missing
    column, an empty or non-text value, a label that is no whole number, and an id that stands for two texts or groups.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"dataset.path={path} is not a file; name a .jsonl, .csv, .tsv or .parquet file")
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"dataset.path={path} must end in {', '.join(READERS)}")
    sides: dict[str, _Side] = {}
    corpus: dict[str, str] = {}
    documents: dict[str, str] = {}
    named = {name: column for name, column in asdict(columns).items() if isinstance(column, str)}
    for where, row in reader(file):
        pair = _pair(where, row, columns, named)
        _put(corpus, pair.passage_id, pair.passage, where, "passage")
        group = pair.group or pair.passage_id
        if documents.setdefault(pair.passage_id, group) != group:
            known = documents[pair.passage_id]
            raise UserError(f"{where}: passage id {pair.passage_id!r} stands in two groups: {known!r} and {group!r}")
        if pair.side not in sides:
            sides[pair.side] = _Side({}, {})
        sides[pair.side].add(pair, where)
    if not corpus:
        raise UserError(f"{path} is empty: it has no rows")

    sets = {name: side.over(corpus, documents) for name, side in sides.items()}
    if columns.split is None:
        return cut(sets["train"], split)
    if "train" not in sets or "test" not in sets:
        raise UserError(f"column {columns.split} of {path} has {', '.join(sets)}; it needs train and test at least")
    if "dev" not in sets:
        return cut_dev(sets["train"], sets["test"], split)
    return given(sets["train"], sets["dev"], sets["test"])


class _Pair(NamedTuple):
    query_id: str
    query: str
    passage_id: str
    passage: str
    group: str | None
    side: str
    label: int


@dataclass(frozen=True)
class _Side:
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]

    def add(self, pair: _Pair, where: str) -> None:
        _put(self.queries, pair.query_id, pair.query, where, "query")
        grades = self.qrels.setdefault(pair.query_id, {})
        grades[pair.passage_id] = max(pair.label, grades.get(pair.passage_id, pair.label))

    def over(self, corpus: dict[str, str], documents: dict[str, str]) -> RetrievalSet:
        """Only queries with a passage that answers them: the others, with none but judged not to, can't be scored."""
        answered = {query: text for query, text in self.queries.items() if any(self.qrels[query].values())}
        return RetrievalSet(answered, corpus, {query: self.qrels[query] for query in answered}, documents)


def _pair(where: str, row: dict[str, Any], columns: Columns, named: dict[str, str]) -> _Pair:
    """named: of the fields that have a column, which."""
    missing = [column for column in named.values() if column not in row]
    if missing:
        raise UserError(
            f"{where}: no column {', '.join(missing)}; it has {', '.join(map(str, row))}. "
            "Name yours with dataset.columns.query=, dataset.columns.passage= and so on"
        )
    for name in ("group", "split", "label"):
        if name not in row or name in named.values() or name in columns.unread:
            continue
        raise UserError(
            f"{where}: the column {name} is not read, and it may change what the rows mean. Read it with "
            f"dataset.columns.{name}={name}, or leave it out with dataset.columns.unread=[{name}]"
        )
    value = {name: row[column] for name, column in named.items()}
    for name in ("query", "passage"):
        if not isinstance(value[name], str) or not value[name].strip():
            raise UserError(f"{where}: column {named[name]} is {value[name]!r}; it must be a text that is not empty")
    side = "train"
    if columns.split is not None:
        side = SIDES.get(str(value["split"]).strip().lower(), "")
        if not side:
            raise UserError(f"{where}: column {columns.split} is {value['split']!r}; it must be train, dev or test")
    group = None if value.get("group") is None else str(value["group"])
    return _Pair(
        query_id=_identifier(value.get("query_id"), value["query"]),
        query=value["query"].strip(),
        # a text that stands in two groups is two passages, so that both groups stay whole
        passage_id=_identifier(value.get("passage_id"), f"{group or ''}\n{value['passage']}"),
        passage=value["passage"].strip(),
        group=group,
        side=side,
        label=_label(value.get("label", 1), where, columns.label),
    )


def _label(value: Any, where: str, column: str | None) -> int:
    try:
        label = int(str(value))
    except ValueError:
        label = -1
    if label < 0:
        raise UserError(f"{where}: column {column} is {value!r}; a label is 0 (does not answer) or a grade from 1 up")
    return label


def _identifier(given_id: Any, text: str) -> str:
    return (
        hashlib.sha256(text.strip().encode(errors="surrogatepass")).hexdigest()[:16]
        if given_id is None
        else str(given_id)
    )


def _put(texts: dict[str, str], key: str, text: str, where: str, what: str) -> None:
    if texts.setdefault(key, text) != text:
        raise UserError(f"{where}: {what} id {key!r} stands for two texts: {texts[key][:40]!r} and {text[:40]!r}")


def opened(file: Path) -> Iterator[str]:
    """The file's lines, one at a time; raises UserError when they are not UTF-8."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            yield from lines
    except UnicodeDecodeError as error:
        raise UserError(f"{file}, line {_first_broken(file)} is not UTF-8 text; save the file as UTF-8") from error


def _first_broken(file: Path) -> int:
    """The number of the first line that is not UTF-8."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    raise AssertionError(file)


def _read_jsonl(file: Path) -> Iterator[Row]:
    for number, line in enumerate(opened(file), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{file}, line {number} is not JSON ({error.msg}): {line.strip()[:60]!r}") from error
        if not isinstance(row, dict):
            raise UserError(f"{file}, line {number} is not a JSON object: {line.strip()[:60]!r}")
        yield f"{file}, line {number}", row


def _read_delimited(delimiter: str) -> Callable[[Path], Iterator[Row]]:
    def read(file: Path) -> Iterator[Row]:
        # the csv module keeps every value a text: 001 stays 001 and NA stays NA
        rows = csv.DictReader(opened(file), delimiter=delimiter, strict=True)
        try:
            for row in rows:
                if None in row or None in row.values():
                    raise UserError(f"{file}, line {rows.line_num} does not have {len(rows.fieldnames or ())} values")
                yield f"{file}, line {rows.line_num}", row
        except csv.Error as error:  # most often a quote that is never closed, which would swallow the rows after it
            fix = "close every quote, and write a quote inside a value twice"
            raise UserError(f"{file}, line {rows.reader.line_num} can't be read ({error}); {fix}") from error

    return read


def _read_parquet(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=10_000):  # never all rows as objects at once
                values = [column.to_pylist() for column in batch.columns]
                for row in zip(*values, strict=True):
                    number += 1
                    yield f"{file}, row {number}", dict(zip(batch.schema.names, row, strict=True))
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file} is not a Parquet file: {error}") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_delimited(","),
    ".tsv": _read_delimited("\t"),
    ".parquet": _read_parquet,
}
