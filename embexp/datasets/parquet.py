"""Rows of Parquet files in a layout that a loader knows, from a local folder or the Hub.

Called by `pubmedqa` and `nanobeir`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from embexp.errors import UserError
from embexp.hub import snapshot


def folder_of(path: str, *, revision: str | None, files: Sequence[str], what: str) -> tuple[Path, str | None]:
    """The folder that holds the files, and the commit where it comes from the Hub.

    path: a local folder or the id of a Hub data set. files: patterns of those that are needed, by which a copy's layout
    is told too. what: the data set's name. Raises UserError where it can't be had.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder, None
    if path.startswith((".", "/", "~")):
        raise UserError(f"dataset.path={path} is not a folder; name a local copy of {what} or a Hub data set")
    fix = f"Set dataset.path= to a local copy in the same layout (<path>/{files[0]})"
    return snapshot(path, revision=revision, kind="dataset", files=files, instead=fix)


def rows_of(part: Path, columns: Sequence[str], *, what: str) -> Iterator[dict[str, Any]]:
    """The rows of a file, with these columns. Raises UserError where it is no Parquet file, or lacks one of them."""
    import pyarrow
    import pyarrow.parquet  # slow to import; only few sources read Parquet

    try:
        missing = set(columns) - set(pyarrow.parquet.read_schema(part).names)
    except pyarrow.ArrowInvalid as error:  # most often a Git LFS pointer in its place
        raise UserError(f"{part} is not a Parquet file: {error}") from error
    if missing:
        raise UserError(f"{part} has no column {', '.join(sorted(missing))}; {what} has {', '.join(columns)}")
    yield from pyarrow.parquet.read_table(part, columns=list(columns)).to_pylist()
