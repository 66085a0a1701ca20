"""Takes Markdown apart: sections under headings, made of blocks. Called by `formats` and `chunker`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

LONGEST_HEADING = 30  # words; what is longer is a paragraph that somebody underlined
COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
TAG = re.compile(r"</?[a-zA-Z][\w-]*(?:\s[^<>]*)?/?>")
LINK = re.compile(r"!?\[([^\[\]]*)\](?:\([^()\n]*(?:\([^()\n]*\)[^()\n]*)?\)|\[[^\[\]\n]*\])|<https?://[^<>\s]+>")
ADDRESS = re.compile(r"\b(?:https?://|www\.)\S+")
CALLED = re.compile(r"`[^`\n]*(?:://|www\.)[^`\n]*`")  # a command with an address is no link
# what has a letter; one of a script that is written without blanks counts as a word
WORD = re.compile(
    r"[\u0e00-\u0e7f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\d*[^\W\d_][^\W_]*(?:['’][^\W_]+)?"
)
BOLD = re.compile(r"(\*\*|__)([^\n*_]{1,100}[^\n*_.:!,;])\1")
INLINE_TAG = re.compile(r"</?(?:a|b|br|code|em|font|i|img|kbd|mark|small|span|strong|sub|sup|tt|u|var)\b[^<>]*>", re.I)

Heading = tuple[int, str]  # level from 1, and words


@dataclass(frozen=True)
class Block:
    """A paragraph, list, table, code block or the like, as it stands in the document.

    kind: code, list, table or text. parts: a list's items and a table's lines, else nothing.
    """

    text: str
    kind: str = "text"
    parts: tuple[str, ...] = ()

    @cached_property
    def words(self) -> tuple[int, int]:
        """How many words a reader sees, and how many of them are in links."""
        return counted(self.text, code=self.kind == "code")

    @property
    def is_navigation(self) -> bool:
        """Mostly links."""
        seen, linked = self.words
        return linked > seen / 2


@dataclass(frozen=True)
class Section:
    """The blocks that stand directly below a heading; headings: the path to it, outermost first, without markup."""

    headings: tuple[str, ...]
    blocks: tuple[Block, ...]


def sections(text: str) -> list[Section]:
    """The sections of a document, in order, also those that hold nothing.

    Comments and link definitions are left out. A heading inside a code block, a quotation or a list is none; a line of
    its own in bold above a text is one, below all others.
    """
    found: list[tuple[tuple[str, ...], list[Block]]] = [((), [])]
    path: list[Heading] = []
    parts = list(_parts(text))
    for part, following in zip_longest(parts, parts[1:]):
        heading = _bold(part, following) if isinstance(part, Block) else part
        if isinstance(part, Block) and heading is None:
            found[-1][1].append(part)
        elif heading is not None:
            path = [*(above for above in path if above[0] < heading[0]), heading]
            found.append((tuple(title for _, title in path if title), []))
    return [Section(headings, tuple(blocks)) for headings, blocks in found]


def headings(text: str) -> list[Heading]:
    """The headings of a document, in order."""
    return [part for part in _parts(text) if not isinstance(part, Block)]


def _bold(block: Block, following: Heading | Block | None) -> Heading | None:
    """The heading that a line in bold is, when a text follows."""
    line = BOLD.fullmatch(block.text)
    if line is None or not isinstance(following, Block) or BOLD.fullmatch(following.text):
        return None
    return 7, line[2].strip()


def _parts(text: str) -> Iterator[Heading | Block]:
    blocks_only, inline = _parsers()
    lines = text.split("\n")
    tokens = blocks_only.parse(text)
    for place, token in enumerate(tokens):
        if token.level or token.nesting < 0 or token.type == "inline" or token.map is None:
            continue
        if token.type == "heading_open":
            heading = _heading(tokens[place + 1].content, inline)
            if len(WORD.findall(heading)) <= LONGEST_HEADING:
                yield int(token.tag[1:]), heading
                continue
        block = _block(tokens, place, lines)
        if block is not None:
            yield block


def counted(text: str, *, code: bool = False) -> tuple[int, int]:
    """How many words a reader of some Markdown sees, and how many of them are in links."""
    if code:
        return len(WORD.findall(text)), 0
    visible = CALLED.sub(" code ", _visible(text))
    linked: list[str] = []

    def keep(link: re.Match[str]) -> str:
        linked.append(link[1] or "address")
        return " "

    if "](" in visible or "][" in visible or "://" in visible or "www." in visible:
        visible = LINK.sub(keep, LINK.sub(keep, visible))  # a second time for the link around a picture
        visible, bare = ADDRESS.subn(" ", visible)
        linked += ["address"] * bare  # one word, however long
    in_links = len(WORD.findall(" ".join(linked)))
    return len(WORD.findall(visible)) + in_links, in_links


def _visible(text: str) -> str:
    return TAG.sub(" ", COMMENT.sub(" ", text)) if "<" in text else text


def _parsers() -> tuple[Any, Any]:
    from markdown_it import MarkdownIt

    # positions are known for blocks only, and without their inner markup they are read twice as fast
    return MarkdownIt("commonmark").enable("table").disable("inline"), MarkdownIt("commonmark")


def _heading(content: str, inline: Any) -> str:
    """A heading's words, without markup, permalink signs and attributes; Vec<T> is no tag."""
    shown = []
    for token in inline.parseInline(content)[0].children:
        if token.markup == "autolink":
            shown.append("<" if token.nesting > 0 else ">")
        elif not INLINE_TAG.fullmatch(token.content):
            shown += [child.content for child in (token.children or [token])]
        shown += [" "] * (token.type in ("softbreak", "hardbreak"))
    return re.sub(r"\s*(?:\{[#.:][^{}]*\}|[¶#]+)$", "", " ".join("".join(shown).split()))


def _block(tokens: Sequence[Any], place: int, lines: list[str]) -> Block | None:
    token = tokens[place]
    first, last = token.map
    text = "\n".join(lines[first:last]).strip("\n").rstrip()
    if token.type in ("fence", "code_block"):
        return Block(text, "code")
    if token.type == "hr" or not re.search(r"\w", _visible(text)):
        return None  # a rule, a comment, or tags alone
    if token.type in ("bullet_list_open", "ordered_list_open"):
        return Block(text, "list", tuple(_items(tokens, place, lines)))
    if token.type == "table_open":
        return Block(text, "table", tuple(text.split("\n")))
    return Block(text.lstrip())


def _items(tokens: Sequence[Any], place: int, lines: list[str]) -> list[str]:
    items = []
    for token in tokens[place + 1 :]:
        if token.level == 0:
            break
        if token.level == 1 and token.type == "list_item_open":
            first, last = token.map
            items.append("\n".join(lines[first:last]).strip("\n").rstrip())
    return items
