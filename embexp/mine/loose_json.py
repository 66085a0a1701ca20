"""Finds the JSON in a text that holds more than JSON, or JSON that is cut off or not quite right.

Called by `answers`. No text makes this raise, and its time is bounded.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

MOST_TRIES = 500  # places where a value is looked for
LONGEST_REPAIR = 10_000  # characters of a value that is mended
BRACKET = re.compile(r"[{\[]")
_STRICT = json.JSONDecoder(strict=False)  # line ends inside texts are common


def containers(text: str) -> list[Any]:
    """The objects and lists in a text, in order. Of a broken or unfinished one those inside it that are whole."""
    found: list[Any] = []
    place = 0
    for _ in range(MOST_TRIES):
        start = BRACKET.search(text, place)
        if start is None:
            break
        value, place = _value_at(text, start.start())
        if value:
            found.append(value)
    return found


def _value_at(text: str, start: int) -> tuple[Any, int]:
    """The value that begins at a place and where it ends; where none can be read, None and the next place."""
    try:
        return _STRICT.raw_decode(text, start)
    except (ValueError, RecursionError):
        pass
    end = _closing(text, start)
    if end is not None:
        mended = _mended(text[start:end])
        if mended is not None:
            return mended, end
    return None, start + 1


def _closing(text: str, start: int) -> int | None:
    """Where the bracket at `start` is closed, if nothing but a flat value is inside; quotes are passed over."""
    closing = {"{": "}", "[": "]"}[text[start]]
    quoted: str | None = None
    place = start + 1
    limit = min(len(text), start + LONGEST_REPAIR)
    while place < limit:
        sign = text[place]
        if quoted:
            if sign == "\\":
                place += 1
            elif sign == quoted and not _inside_a_word(text, place):
                quoted = None
        elif sign == '"' or (sign == "'" and not _inside_a_word(text, place)):
            quoted = sign
        elif sign == closing:
            return place + 1
        elif sign in "{[":
            return None  # those inside are looked at one by one
        place += 1
    return None


def _inside_a_word(text: str, place: int) -> bool:
    """An apostrophe, as in what's, is no end of a text."""
    return text[place] == "'" and text[place - 1 : place].isalnum() and text[place + 1 : place + 2].isalnum()


def _mended(text: str) -> Any:
    """A flat object or list with trailing commas, single quotes or Python's words, or None."""
    without_commas = re.sub(r",\s*([}\]])", r"\1", text)
    try:
        return _STRICT.decode(without_commas)
    except (ValueError, RecursionError):
        pass
    # an apostrophe inside a word would end a text in single quotes
    escaped = re.sub(r"(?<=\w)'(?=\w)", r"\\'", without_commas) if '"' not in text else without_commas
    for candidate in (without_commas, escaped):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes such as \d
                value = ast.literal_eval(candidate)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, dict | list) else None
    return None
