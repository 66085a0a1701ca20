"""Finds what documents carry at their edges: menus, footers, licence lines. Called by `chunker`; counts no tokens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from embexp.mine.sections import Block, Section


def without_edges(
    documents: Sequence[Sequence[Section]], *, repeated: int | None, short: int
) -> tuple[list[list[Section]], Counter[str]]:
    """Leave menus, footers, licence lines and badges out; count the blocks left out as repeated and as navigation.

    Only the edges of a document are looked at: from its start into its first section, and from its end within its last,
    up to the first block of `short` or more words that is neither repeated nor mostly links. So what is repeated amid
    the text stays, as procedures and options do that several manuals share. Repeated: in `repeated` documents or more,
    whatever its digits ("page 3", "2024"). Code, tables and what leads in to something (":") are never repeated, and
    nothing is in a document whose words are mostly repeated: it is another version of the same text.
    """
    known = Counter(key for document in documents for key in {_key(block) for block in _blocks(document)})
    least = repeated if repeated is not None else len(documents) + 1
    often = {key for key, number in known.items() if key and number >= least}
    counts = Counter(repeated=0, navigation=0)
    kept = []
    for document in documents:
        blocks = list(_blocks(document))
        prose = [block for block in blocks if not block.is_navigation]
        again = {id(block) for block in prose if _key(block) in often}
        if 2 * _words(block for block in prose if id(block) in again) > _words(prose):
            again = set()
        first, last = _outer(document)
        edges = _edge(first, again, short) | _edge(reversed(last), again, short)
        counts["repeated"] += len(edges & again)
        counts["navigation"] += len(edges - again)
        kept.append([
            replace(section, blocks=tuple(block for block in section.blocks if id(block) not in edges))
            for section in document
        ])  # fmt: skip
    return kept, counts


def _outer(document: Sequence[Section]) -> tuple[list[Block], list[Block]]:
    """The blocks before the first heading and in the first section under one, and those of the last section."""
    filled = [section for section in document if section.blocks]
    before = [section for section in filled[:1] if not section.headings]
    first = [block for section in filled[: len(before) + 1] for block in section.blocks]
    return first, [block for section in filled[-1:] for block in section.blocks]


def _edge(blocks: Iterable[Block], repeated: set[int], short: int) -> set[int]:
    found = set()
    for block in blocks:
        if id(block) in repeated or block.is_navigation:
            found.add(id(block))
        elif block.words[0] >= short:
            break
    return found


def _blocks(document: Sequence[Section]) -> Iterable[Block]:
    return (block for section in document for block in section.blocks)


def _words(blocks: Iterable[Block]) -> int:
    return sum(block.words[0] for block in blocks)


def _key(block: Block) -> str:
    """The same for blocks that differ in blanks and digits only; empty for those that are never repeated."""
    text = " ".join(block.text.split())
    return "" if block.kind in ("code", "table") or text.endswith(":") else re.sub(r"\d+", "0", text)
