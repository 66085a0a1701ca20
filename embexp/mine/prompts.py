"""Prompts from conf/prompt: texts with {placeholders}, filled in one pass. Called by `llm`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from embexp.errors import UserError, listed

PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")  # other braces, as those of JSON, are left alone
CLOSING_TAG = re.compile(r"</\s*([\w-]+)\s*>")
PARTS = ("system", "user")


class Prompt:
    """A system and a user text. What is filled in can't end the tags, such as <passage>, that stand around it."""

    def __init__(self, texts: Mapping[str, str], *, needs: Iterable[str], knows: Iterable[str] = ()) -> None:
        """needs: placeholders that must be in it. knows: others that may. Raises UserError with every mistake."""
        needs, known = set(needs), {*needs, *knows}
        problems = []
        if set(texts) != set(PARTS):
            problems.append(f"a prompt has a text for system and one for user, this one has {listed(sorted(texts))}")
        said = {part: str(texts.get(part) or "") for part in PARTS}
        there = {name for text in said.values() for name in PLACEHOLDER.findall(text)}
        for name in sorted(there - known):
            problems.append(f"a prompt has the placeholder {{{name}}}; there are {listed(_braced(known), most=9)}")
        for name in sorted(needs - there):
            problems.append(f"a prompt lacks the placeholder {{{name}}}")
        if problems:
            raise UserError(*problems)
        self._texts = said
        self._tags = {tag.lower() for text in said.values() for tag in CLOSING_TAG.findall(text)}

    def filled(self, values: Mapping[str, str]) -> tuple[str, str]:
        """(system, user) with each placeholder replaced by its value, whatever that holds."""
        safe = {name: self._within_tags(value) for name, value in values.items()}
        system, user = (PLACEHOLDER.sub(lambda found: safe[found[1]], self._texts[part]).strip() for part in PARTS)
        return system, user

    def _within_tags(self, value: str) -> str:
        """The value with a space in each closing tag that the prompt uses, so that it ends nothing."""
        return CLOSING_TAG.sub(lambda tag: f"< /{tag[1]}>" if tag[1].lower() in self._tags else tag[0], value)


def _braced(names: Iterable[str]) -> list[str]:
    return [f"{{{name}}}" for name in sorted(names)]
