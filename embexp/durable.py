"""Puts files on disk so that they outlast a loss of power. Called by what declares a checkpoint or a result whole.

A rename makes a file appear at once, but a system that loses power may have kept the rename and not yet the content.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path


def sync(folder: Path) -> None:
    """Put a folder with all that lies in it on disk, and its name in the folder above."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what lies in a folder before the folder
        if not path.is_symlink():
            _to_disk(path)
    _to_disk(folder)
    sync_name(folder)


def sync_name(path: Path) -> None:
    """Put on disk that the folder above holds this name."""
    _to_disk(path.parent)


def write_whole(path: Path, text: str) -> None:
    """Write a text so that after whatever happens the file holds all of it, or what it held before."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_name(path)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems sync no folders
            raise
    finally:
        os.close(descriptor)
