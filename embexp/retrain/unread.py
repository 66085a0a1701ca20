"""Tells a file that can't be read today from one that is gone, whose questions go with it. Called by `retraining`.

Knows how passages' documents are named after files; reads none itself.
"""

from __future__ import annotations

from pathlib import PurePath

from embexp.data.manifest import Manifest
from embexp.datasets.pairs import READERS
from embexp.drift.differences import Differences
from embexp.drift.today import Today
from embexp.errors import UserError, counted, listed
from embexp.mine.documents import OTHERS_READ
from embexp.mine.formats import FORMATS


def refuse_lost(known: Manifest, now: Today, differences: Differences) -> None:
    """Raise UserError where passages are gone with a file or folder that can't be read, and not because it was removed.

    A file that the run had no passages of, such as one that was broken then too, is no reason.
    """
    gone = {known.documents[key] for key in differences.removed} - set(now.units.values())
    unread = {name: why for name, why in now.unreadable.items() if not why.endswith(OTHERS_READ)}
    lost = [f"{name} ({why})" for name, why in unread.items() if any(_may_be_of(document, name) for document in gone)]
    if lost:
        raise UserError(
            f"{counted(len(lost), 'file')} of documents= can't be read, and the current model's run knew passages of "
            f"such: {listed(lost)}. Their questions would be taken for gone. Make them readable, or remove them from "
            "documents= if they are really gone"
        )


def told(now: Today) -> list[str]:
    """What to remark of files that were not read, or not whole."""
    return [f"Not read: {listed(now.unreadable)}."] if now.unreadable else []


def _may_be_of(document: str, file: str) -> bool:
    """Whether a document, or its section, is of a file or is in a folder of this name, as `mine.documents` names them.

    Rows of ready passages may name any document: one that bears no file's name may be of any such file.
    """
    if file == "." or document == file or document.startswith((f"{file}#", f"{file}/", f"{file} > ")):
        return True
    name = document.partition(" > ")[0]
    named = PurePath(name.partition("#")[0]).suffix.lower() in (*FORMATS, *READERS)
    return PurePath(file).suffix.lower() in READERS and not named
