"""Cuts documents into passages that a model can read whole. Comes after `documents`, takes `sections` apart.

First along headings, then between paragraphs, lists, tables and code blocks, and only where one of these is too long
inside it: between items, rows (with the table's head again), lines or sentences; at words if a sentence is too long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embexp.errors import UserError
from embexp.mine.pace import told
from embexp.mine.packing import Measure, Piece, cut, packed, sentences
from embexp.mine.passages import Document, Passage
from embexp.mine.repeated import without_edges
from embexp.mine.sections import Block, Section, counted, sections

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SMALLEST = 16


@dataclass(frozen=True)
class Cut:
    """Passages in the order of documents, and how many of what was left out.

    | count      | of                                                                               |
    |------------|----------------------------------------------------------------------------------|
    | repeated   | paragraphs at the edges of documents that stand in many of them                   |
    | navigation | paragraphs and lists there that are mostly links, and passages that are           |
    | short      | sections of too few words                                                        |
    | copies     | passages with the headings and text of an earlier one                             |
    """

    passages: tuple[Passage, ...]
    counts: Mapping[str, int]


class Chunker:
    """Cuts by tokens of the model that is to be tuned.

    | option      | means                                                                            |
    |-------------|----------------------------------------------------------------------------------|
    | tokens      | the most that a passage has, its headings included, special tokens not            |
    | overlap     | the most that a piece of a paragraph repeats of the piece before, in sentences    |
    | least_words | a section of fewer words is left out; its own heading makes up for half at most  |
    | repeated    | a paragraph in so many documents is boilerplate; null keeps all                   |
    """

    def __init__(self, *, tokens: int = 200, overlap: int = 20, least_words: int = 6, repeated: int | None = 3) -> None:
        problems = []
        if tokens < SMALLEST:
            problems.append(f"chunker.tokens={tokens} must be at least {SMALLEST}; 200 suits most models")
        elif not 0 <= overlap < tokens / 4:
            problems.append(
                f"chunker.overlap={overlap} must be from 0 to less than a quarter of chunker.tokens={tokens}"
            )
        if least_words < 1:
            problems.append(f"chunker.least_words={least_words} must be at least 1")
        if repeated is not None and repeated < 2:
            problems.append(f"chunker.repeated={repeated} must be at least 2, or null to keep repeated paragraphs")
        if problems:
            raise UserError(*problems)
        self.tokens, self.overlap, self.least_words, self.repeated = tokens, overlap, least_words, repeated

    def cut(self, documents: Sequence[Document], tokenizer: Tokenizer) -> Cut:
        """Cut every document. Time and memory grow with the text, not faster.

        A passage's id depends on its own document alone, but for what counts as repeated: when the number of documents
        with a paragraph comes to `repeated`, the passages that it stood in change. Copies have one id; the first stays.
        """
        measure = Measure(tokenizer)
        parsed = [sections(document.text) for document in told("taking documents apart", documents)]
        parsed, counts = without_edges(parsed, repeated=self.repeated, short=self.least_words)
        counts.update(short=0, copies=0)
        passages: dict[str, Passage] = {}
        for document, found in told("cutting documents", list(zip(documents, parsed, strict=True))):
            position = 0
            for headings, text in self._texts(found, measure, counts):
                passage = Passage(text, document.name, headings, position)
                if passage.id in passages:
                    counts["copies"] += 1
                else:
                    passages[passage.id] = passage
                    position += 1
        return Cut(tuple(passages.values()), counts)

    def _texts(
        self, found: Sequence[Section], measure: Measure, counts: Counter[str]
    ) -> Iterator[tuple[tuple[str, ...], str]]:
        for section in found:
            words = sum(block.words[0] for block in section.blocks)
            above = counted(" ".join(section.headings[-1:]))[0]
            if words + min(above, self.least_words // 2) < self.least_words:
                counts["short"] += bool(section.blocks)
                continue
            fitting = self._fitting(section, measure)
            has_code = any(block.kind == "code" for block in section.blocks)  # where an address is no link
            for text in self._cut(fitting, measure):
                seen, linked = counted(text, code=has_code)
                if linked > seen / 2:
                    counts["navigation"] += 1
                else:
                    yield fitting.headings, text

    def _fitting(self, section: Section, measure: Measure) -> Section:
        """The section under as many of its headings, from the innermost out, as take at most half of a passage."""
        headings = section.headings
        while headings and measure.count(_above(headings)) > self.tokens // 2:
            headings = headings[1:]
        if section.headings and not headings:  # the innermost alone is too long: it is text
            return Section((), (Block(section.headings[-1]), *section.blocks))
        return Section(headings, section.blocks)

    def _cut(self, section: Section, measure: Measure) -> list[str]:
        """The section's passages. Tokens may differ where texts are joined; then it is cut again, smaller."""
        above = _above(section.headings)
        room = self.tokens - measure.count(above)
        costs = measure.pieces([block.text for block in section.blocks], "\n\n")
        while True:
            pieces: list[Piece] = []
            for block, (text, cost) in zip(section.blocks, costs, strict=True):
                fits = cost <= room
                pieces += [(text, cost)] if fits else measure.pieces(self._parts(block, room, measure), "\n\n")
            texts = packed(pieces, room, join="\n\n", lead_ins=True)
            over = max(measure.counts([above + text for text in texts]), default=0) - self.tokens
            if over <= 0 or room == 1:
                return texts
            room = max(1, room - over)

    def _parts(self, block: Block, room: int, measure: Measure) -> list[str]:
        """A block that is too long, in pieces."""
        if block.kind == "code":
            return [text.strip("\n") for text in cut(block.text, room, 0, measure)]
        if block.kind == "list":
            items: list[str] = []
            for item, cost in measure.pieces(block.parts, "\n"):
                items += [item] if cost <= room else sentences(item, room, self.overlap, measure)
            return packed(measure.pieces(items, "\n"), room, join="\n")
        head = "\n".join(block.parts[:2]) + "\n"
        left = room - measure.count(head)
        if block.kind == "table" and left > room / 2:
            rows: list[str] = []
            for row, cost in measure.pieces(block.parts[2:], "\n"):
                rows += [row] if cost <= left else cut(row, left, 0, measure)
            return [head + text for text in packed(measure.pieces(rows, "\n"), left, join="\n")]
        return sentences(block.text, room, self.overlap, measure)


def _above(headings: Sequence[str]) -> str:
    """What `Passage.whole` sets before the text."""
    return f"{Passage('', '', tuple(headings)).title}\n" if headings else ""
