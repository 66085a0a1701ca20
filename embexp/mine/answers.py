"""Reads what a model wrote: items of kind, question and span, whatever form they came in, and what went wrong.

Called by `llm`. Servers may ignore the JSON schema that they were given, and answers are cut off, so whole items are
saved one by one: from JSON, also fenced, broken or amid prose, from JSON lines, from `kind|question|span` lines, and
from numbered or labelled lines. Prose around them never becomes a question. No text makes this raise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embexp.mine.loose_json import containers

TRUNCATED, REFUSED, EMPTY, UNPARSABLE = "truncated", "refused", "empty", "unparsable"
NO_QUESTION, TOO_MANY, NOTHING = "item without question", "more items than asked for", "nothing to ask"
LONGEST = 50_000  # characters of an answer that are read

QUESTION_KEYS = ("question", "query", "q")
SPAN_KEYS = ("span", "answer", "answer_span", "quote", "evidence", "a")
KIND_KEYS = ("kind", "type", "category")
LIST_KEYS = ("items", "questions", "queries", "results")  # whose bare texts are questions
SYNONYMS = {
    "questions": "question", "natural question": "question", "natural": "question",
    "keyword": "keywords", "keyword query": "keywords",
    "problems": "problem", "problem description": "problem", "described problem": "problem",
}  # fmt: skip

THOUGHTS = re.compile(r"<(think|thinking|reasoning)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
# a number is followed by a space or a capital: 2.5 GHz and 3.x stay
BULLET = re.compile(r"^\s*(?:[-*•–>]\s+|#+\s+|\(?\d{1,2}[.)、](?:\s+|(?=[A-Z\u00c0-\uffff]))|[QqAa]\d{0,2}[.:)]\s+)+")
LABEL = re.compile(r"^\s*\**([A-Za-z_ ]{1,24}?)(?:\s+#?\d{1,3})?\s*\**\s*:\s*\**\s*(.*)$")
NO_ITEMS = re.compile(r"(```\w*\s*)?(\{\s*(\"\w+\"\s*:\s*\[\s*\])?\s*\}|\[\s*\])(\s*```)?")
QUOTES = {'"': '"', "'": "'", "“": "”", "„": "“", "«": "»", "`": "`", "**": "**", "*": "*"}
HEADERS = {"question", "query", "kind", "type", "keywords", "problem", "span", "answer", "answer span"}

_SURE = r"(sure( thing)?|certainly|of course|absolutely|okay|ok|great|no problem|natürlich|gerne|bien sûr|claro)"
CHATTER = re.compile(
    rf"^({_SURE}\s*([!.,:;—-]+\s*(here\b|i (can|will|have)\b|i['’](ll|ve)\b|let me\b|hier |voici|aquí)|[!.]*$)"
    r"|(sure,? )?(here|below|following)\s*(are|is|['’]s)\b.*"
    r"\b(question|quer(y|ies)|item|keyword|problem|answer|json|list)"
    r"|the following (are|is|question|quer|item)|hier (sind|ist) |voici |aquí (están|tienes|hay) "
    r"|(based on|according to) the (passage|text|document|context)[^?]*$)",
    re.IGNORECASE,
)
CLOSING = re.compile(r"^(i hope (this|these)|let me know|would you like|do you want me|is there anything|note:)", re.I)
REFUSAL = re.compile(
    r"^\W*((i['’]?m|i am|we['’]?re) (so |very )?(sorry|unable|not able)|sorry\b|apologies|i apologi[sz]e|as an ai\b"
    r"|unfortunately,? (i|we|the)\b|i (can['’]?t|cannot|can not|won['’]?t|will not|must decline)\b|i['’]m afraid i"
    r"|es tut mir leid|leider kann ich|(je suis )?désolé|lo siento|no puedo|mi dispiace"
    r"|抱歉|对不起|我无法|申し訳|죄송)",
    re.IGNORECASE,
)
# in the place of a question "I can't log in" is a problem like any other: only what a model says of its task counts
REFUSAL_AS_ITEM = re.compile(
    r"^\W*(as an ai\b"
    r"|((i['’]?m|i am) (so |very )?sorry|sorry|i apologi[sz]e)\b.{0,30}\bi (can['’]?t|cannot|won['’]?t|am )"
    r"|i (can['’]?t|cannot|won['’]?t|am unable to|am not able to) (help|assist|comply|fulfil?l|answer)\b"
    r"( you)?( with)? ?(this|that|your|the request|$))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Item:
    """One question as the model wrote it. span: the words that answer it, "" where it gave none."""

    kind: str
    question: str
    span: str


@dataclass(frozen=True)
class Parsed:
    """The items of an answer in their order, and its problems by name, one for each time."""

    items: tuple[Item, ...]
    problems: tuple[str, ...] = ()


def parse(text: str, *, kinds: Sequence[str], finish: str = "stop", refusal: str | None = None) -> Parsed:
    """The items in an answer's text.

    kinds: those asked for, in order, at least one; an item without a known kind has the one of its place. finish,
    refusal: as the server sent them. Items beyond as many as kinds are dropped, those of other kinds first.
    """
    problems = [TRUNCATED] if finish == "length" else []
    if refusal or finish == "content_filter":
        problems.append(REFUSED)
    written = THOUGHTS.sub("", text[:LONGEST]).replace("\ufeff", "").replace("\x00", "").strip()
    found: list[tuple[Item, bool]] = []
    for fields in _from_json(written, kinds) or _from_lines(written, kinds):
        question = tidy(fields.question)
        if REFUSAL_AS_ITEM.search(question):
            problems += [REFUSED] * (REFUSED not in problems)
        elif not re.search(r"\w", question):
            problems.append(NO_QUESTION)
        else:
            named = _kind(fields.kind, kinds)
            kind = named or kinds[min(len(found), len(kinds) - 1)]
            found.append((Item(kind, question, fields.span.strip()), named is not None))
    if not found and not problems:
        problems = [_why_nothing(written)]
    if len(found) > len(kinds):
        problems.append(TOO_MANY)
    return Parsed(tuple(_chosen(found, kinds)), tuple(problems))


def _chosen(found: Sequence[tuple[Item, bool]], kinds: Sequence[str]) -> list[Item]:
    """At most as many items as kinds, in their order; those whose kind the model named as one wanted come first."""
    left, chosen = Counter(kinds), set[int]()
    for place, (item, named) in enumerate(found):
        if named and left[item.kind] > 0:
            left[item.kind] -= 1
            chosen.add(place)
    others = [place for place in range(len(found)) if place not in chosen]
    return [found[place][0] for place in sorted([*chosen, *others[: len(kinds) - len(chosen)]])]


def tidy(question: str) -> str:
    """A question on one line, without numbering, a label, marks around it, or what a model says before it; "" if
    nothing of a question is left."""
    text = " ".join(question.split())
    before = None
    while text != before:
        before = text
        text = _unquoted(BULLET.sub("", text).strip())
        if (label := LABEL.match(text)) and _is_label(label.group(1), (*QUESTION_KEYS[:2], *SYNONYMS.values())):
            text = label.group(2)
        if CHATTER.search(text):
            text = text.partition(":")[2].strip()
    return "" if text.endswith((":", "：")) else text


def _why_nothing(written: str) -> str:
    if not written:
        return EMPTY
    if NO_ITEMS.fullmatch(written):
        return NOTHING
    return REFUSED if REFUSAL.search(written) else UNPARSABLE


def truth(text: str, keys: Sequence[str]) -> bool | None:
    """A yes or no: under one of `keys` in JSON, else as the first word of the text; None where it is neither."""
    written = THOUGHTS.sub("", text[:LONGEST]).strip()
    for value in _dicts(containers(written)):
        fields = _lowered(value)
        for said in (fields[key] for key in keys if key in fields):
            if (word := said if isinstance(said, bool) else _yes_or_no(str(said))) is not None:
                return word
    return _yes_or_no(written)


# --- JSON ------------------------------------------------------------------------------------------------------------


def _from_json(text: str, kinds: Sequence[str]) -> list[Item]:
    """Every item in the JSON of the text; an item's question is "" where it has none."""
    values = containers(text)
    if not re.match(r"(```\w*\s*)?\[", text):  # a list of texts is one of questions where nothing stands before it
        values = [value for value in values if isinstance(value, Mapping) or any(map(_is_container, value))]
    return [item for value in values for item in _items(value, kinds)]


def _is_container(value: Any) -> bool:
    return isinstance(value, list | Mapping)


def _items(value: Any, kinds: Sequence[str]) -> Iterator[Item]:
    if isinstance(value, str):
        yield Item("", value, "")  # in a list of questions
    elif isinstance(value, list):
        for each in value:
            yield from _items(each, kinds)
    elif isinstance(value, Mapping):
        fields = _lowered(value)
        named = [name for name in fields if name not in LIST_KEYS and _kind(name, kinds)]
        if any(key in fields for key in KIND_KEYS):
            named = []
        if len(named) > 1 or (named and not any(key in fields for key in QUESTION_KEYS)):
            for name in named:  # {"question": ..., "keywords": ...}: an item for each kind
                for item in _items(fields[name], kinds):
                    yield Item(name, item.question, item.span or _first(fields, SPAN_KEYS))
        elif any(key in fields for key in (*QUESTION_KEYS, *SPAN_KEYS)) and not _holds_items(fields):
            first = (_first(fields, keys) for keys in (KIND_KEYS, QUESTION_KEYS, SPAN_KEYS))
            yield Item(*first)
        else:
            for key, each in fields.items():
                if isinstance(each, list) and key not in LIST_KEYS:
                    each = [one for one in each if not isinstance(one, str)]
                if isinstance(each, list | Mapping) or re.fullmatch(r"(question|query|q)[ _-]?\d+", key):
                    yield from _items(each, kinds)


def _holds_items(fields: Mapping[str, Any]) -> bool:
    """Whether a key such as `question` holds further items instead of a text."""
    return any(isinstance(fields.get(key), list | Mapping) for key in QUESTION_KEYS)


def _first(fields: Mapping[str, Any], keys: Sequence[str]) -> str:
    found = next((fields[key] for key in keys if key in fields), "")
    if isinstance(found, list) and all(isinstance(each, str) for each in found):
        return " ".join(found)
    return str(found) if isinstance(found, str | int | float) and not isinstance(found, bool) else ""


def _lowered(value: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key).strip().lower(): each for key, each in value.items()}


def _dicts(values: Sequence[Any]) -> Iterator[Mapping[Any, Any]]:
    for value in values:
        if isinstance(value, Mapping):
            yield value
        elif isinstance(value, list):
            yield from _dicts(value)


# --- lines -----------------------------------------------------------------------------------------------------------


def _from_lines(text: str, kinds: Sequence[str]) -> list[Item]:
    """Items in lines of kind|question|span, of a label and a question, or with a number and a question mark."""
    found: list[Item] = []
    for line in text.splitlines():
        bare = BULLET.sub("", line).strip().strip("*").strip()
        if not bare or bare.startswith("```") or CHATTER.search(bare) or CLOSING.search(bare):
            continue
        label = LABEL.match(bare)
        if bare.count("|") - bare.startswith("|") - bare.endswith("|") > 0:
            if (item := _from_pipes(bare, kinds)) is not None:
                found.append(item)
        elif label and _is_label(label.group(1), SPAN_KEYS) and found and not found[-1].span:
            last = found.pop()
            found.append(Item(last.kind, last.question, _unquoted(label.group(2).strip())))
        elif label and label.group(2) and (kind := _kind(label.group(1), (*kinds, *QUESTION_KEYS[:2]))):
            found.append(Item(kind, label.group(2), ""))
        elif BULLET.match(line) and bare.rstrip("\"'”*").endswith(("?", "？", "؟")):
            found.append(Item("", bare, ""))
    return found


def _from_pipes(line: str, kinds: Sequence[str]) -> Item | None:
    cells = [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
    if len(cells) > 2 and cells[0].isdigit():  # a numbered table
        cells = cells[1:]
    if all(re.fullmatch(r":?-*:?", cell) for cell in cells) or all(_bare(cell) in HEADERS for cell in cells):
        return None  # a table's head, or the rule below it
    kind, question, *rest = cells
    if not _kind(kind, kinds):
        if not rest:  # question|span
            return Item("", kind, _unquoted(question)) if kind.endswith(("?", "？", "؟")) else None
        if not re.fullmatch(r"[^\W\d]+([ _-][^\W\d]+)?", kind):
            return None  # prose, or anything, with pipes in it
    return Item(kind, question, _unquoted("|".join(rest).strip()))


def _kind(name: str, kinds: Sequence[str]) -> str | None:
    """The kind of those asked for that a name means."""
    bare = _bare(name)
    return next((kind for kind in (bare, SYNONYMS.get(bare)) if kind in kinds), None)


def _bare(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.strip(" *_`\"'").lower())


def _is_label(name: str, names: Sequence[str]) -> bool:
    return _bare(name) in names or SYNONYMS.get(_bare(name)) in names


def _unquoted(text: str) -> str:
    for left, right in QUOTES.items():
        inner = text[len(left) : -len(right)]
        if len(text) > len(left + right) and text.startswith(left) and text.endswith(right) and left not in inner:
            return inner.strip()
    return text


def _yes_or_no(text: str) -> bool | None:
    word = re.match(r"\W*(yes|true|no|false)\b", text.lower())
    return None if word is None else word.group(1) in ("yes", "true")
