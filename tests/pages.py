"""The README and docs/: their commands, which of them are marked as not run and why, and the files that they show.

| in a page                                              | means                                                     |
|--------------------------------------------------------|-----------------------------------------------------------|
| `<!-- not run: why -->` above a block of sh            | its commands are not run by the tests                     |
| `# my_conf/loss/own.yaml` as the first line of a block | the block is that file, which the page's commands may use |

(The second below `# @package _global_`, which Hydra reads in the first line alone.)
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.command import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)$")
MARK = re.compile(r"^<!-- not run: (.*) -->$")
FILE = re.compile(r"# ([\w./-]+\.(?:py|yaml))")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its lines, the number of the first and the reason in the mark above it, if any."""

    page: Path
    language: str
    lines: tuple[str, ...]
    line: int
    why_not: str | None

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    @property
    def file(self) -> str | None:
        """The file that it is, as its first line says."""
        lines = [line for line in self.lines[:2] if line != "# @package _global_"]
        named = FILE.fullmatch(lines[0]) if self.language in ("python", "yaml") else None
        return named[1] if named else None


@dataclass(frozen=True)
class Command:
    """A line of a block of sh, without its comment. before: the lines above it in the block."""

    block: Block
    text: str
    before: tuple[str, ...]

    @cached_property
    def words(self) -> list[str]:
        return shlex.split(self.text)

    @property
    def program(self) -> str:
        """What follows `python -m`, or the first word."""
        return self.words[2] if self.words[:2] == ["python", "-m"] else self.words[0]

    @property
    def arguments(self) -> list[str]:
        """The words behind the program."""
        return self.words[self.words.index(self.program) + 1 :]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page. A fence that is never closed is an error."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start, language = None, ""
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if fence and start is None:
            start, language = number, fence[1]
        elif fence and start is not None:
            assert not fence[1], f"{page.name}, line {number + 1}: a block begins inside another"
            mark = MARK.match(lines[start - 1]) if start else None
            yield Block(page, language, tuple(lines[start + 1 : number]), start + 2, mark[1] if mark else None)
            start = None
    assert start is None, f"{page.name}: the block from line {start} on is not closed"


def commands() -> list[Command]:
    """Of all pages, in their order; one that stands there twice counts once where neither is marked."""
    found = {}
    for block in (block for page in PAGES for block in blocks(page) if block.language == "sh"):
        lines = [line.split(" #")[0].strip() for line in block.lines]
        for place, text in enumerate(lines):
            found.setdefault((text, block.why_not), Command(block, text, tuple(lines[:place])))
    return list(found.values())


def write_files(page: Path, folder: Path) -> None:
    """Write the files that a page shows into a folder."""
    for block in blocks(page):
        if block.file:
            place = folder / block.file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(block.text)
