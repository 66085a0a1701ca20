"""Fits pieces of text into passages of so many tokens, evenly. Called by `chunker`; knows nothing of Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LETTERS_PER_TOKEN = 16
STRETCH = 20_000  # letters
# what ends in a colon, or is a short line that ends as no sentence does: a caption, or a word in bold for a heading
LEAD_IN = re.compile(r".*:|[^\n]{0,79}[^\n.!?。！？)`|]", re.DOTALL)

Piece = tuple[str, int]  # a text and its tokens, with those of the blanks that follow it


class Measure:
    """Counts tokens without special ones, however long a text is.

    A token counts for at most sixteen letters, since BERT's tokenizers take a word of a thousand letters (an encoded
    picture, say) for one unknown token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = type(tokenizer).from_str(tokenizer.to_str())  # the caller's own stays as it is
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def counts(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text."""
        found: list[int] = []
        for first in range(0, len(texts), 1000):  # so that memory is bounded
            some = list(texts[first : first + 1000])
            encoded = self._tokenizer.encode_batch_fast(some, add_special_tokens=False)
            found += [max(len(one), _least(text)) for one, text in zip(encoded, some, strict=True)]
        return found

    def count(self, text: str) -> int:
        """The tokens of a text."""
        return self.counts([text])[0]

    def pieces(self, texts: Sequence[str], join: str) -> list[Piece]:
        """The texts with their tokens when they are joined."""
        return list(zip(texts, self.counts([text + join for text in texts]), strict=True))


def _least(text: str) -> int:
    return math.ceil((len(text) - text.count(" ") - text.count("\n")) / LETTERS_PER_TOKEN)


def packed(pieces: Sequence[Piece], room: int, *, join: str, overlap: int = 0, lead_ins: bool = False) -> list[str]:
    """Join neighbouring pieces into texts of at most `room` tokens, of like size: 210 tokens make two of about 105.

    A text opens with the last pieces of the one before when they have at most `overlap` tokens. With `lead_ins`, a
    piece that leads in to the next one goes with it instead. A piece that is larger than the room is a text of its own.
    """
    total = sum(cost for _, cost in pieces)
    target = total / max(1, math.ceil(total / room))
    groups: list[list[Piece]] = [[]]
    size = passed = 0
    for piece in pieces:
        cost = piece[1]
        over = passed + cost - target * len(groups)  # where the text would end, after its even share
        if groups[-1] and (size + cost > room or over >= cost - over):
            opening = _lead_in(groups[-1], room - cost) if lead_ins else _overlap(groups[-1], room - cost, overlap)
            groups.append(opening)
            size = sum(cost for _, cost in opening)
        groups[-1].append(piece)
        size += cost
        passed += cost
    return [text for text in (join.join(text for text, _ in group).strip("\n").rstrip() for group in groups) if text]


def _lead_in(before: list[Piece], room: int) -> list[Piece]:
    """The last piece of the text before, taken from there, if it leads in to what comes."""
    leads_in = len(before) > 1 and before[-1][1] <= room and LEAD_IN.fullmatch(before[-1][0].rstrip())
    return [before.pop()] if leads_in else []


def _overlap(before: list[Piece], room: int, overlap: int) -> list[Piece]:
    opening: list[Piece] = []
    left = min(room, overlap)
    for piece in reversed(before[1:]):
        left -= piece[1]
        if left < 0:
            break
        opening.insert(0, piece)
    return opening


def sentences(text: str, room: int, overlap: int, measure: Measure) -> list[str]:
    """Cut a text between sentences, or inside one that is longer than the room at words."""
    from sentencex import segment

    found: list[str] = []
    for stretch in _stretches(text):
        parts = segment("en", stretch)  # abbreviations apart, it cuts other languages alike
        for part, cost in measure.pieces(list(parts), ""):
            found += [part] if cost <= room else cut(part, room, overlap, measure)
    return [one.strip() for one in packed(measure.pieces(found, ""), room, join="", overlap=overlap)]


def cut(text: str, room: int, overlap: int, measure: Measure) -> list[str]:
    """Cut a text at its largest gaps: empty lines, lines, words."""
    from semantic_text_splitter import TextSplitter

    found: list[str] = []
    for stretch in filter(str.strip, _stretches(text)):
        tokens = max(1, measure.count(stretch))
        even = math.ceil(tokens / math.ceil(tokens / room))
        splitter = TextSplitter.from_callback(measure.count, (even, room), min(overlap, even - 1), trim=False)
        found += splitter.chunks(stretch)
    return found


def _stretches(text: str) -> list[str]:
    """The text in parts that the splitters take in a time that grows with the text: they slow down with length."""
    found = []
    while len(text) > STRETCH:
        borders = (text.rfind(border, STRETCH // 2, STRETCH) + len(border) for border in ("\n\n", ". ", "\n", " "))
        end = next((border for border in borders if border >= STRETCH // 2), STRETCH)
        found.append(text[:end])
        text = text[end:]
    return [*found, text]
