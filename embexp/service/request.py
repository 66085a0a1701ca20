"""What is asked of a server: one request, its key in the journal, and the most tokens that its prompt can have.

Made by `llm`, sent by `client`; knows nothing of servers' ways.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PER_MESSAGE = 16  # tokens that a chat template puts around a message, from above (OpenAI's takes 3)
PER_REQUEST = 64  # and around all of them


@dataclass(frozen=True)
class Schema:
    """The JSON schema of an answer. name: changes with its content, since answers are kept by it."""

    name: str
    content: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """One question to a model.

    about: the id of what it is about, such as a passage's. expected: tokens that an answer takes, for the dry run.
    temperature: None for the server's setting. subject: handed back with the answer, and no part of the key.
    """

    about: str
    system: str
    user: str
    schema: Schema
    expected: int
    temperature: float | None = None
    subject: Any = field(default=None, compare=False, repr=False)

    @property
    def messages(self) -> list[dict[str, str]]:
        """As the protocol has them."""
        return [{"role": "system", "content": self.system}, {"role": "user", "content": self.user}]

    @property
    def most_prompt_tokens(self) -> int:
        """No tokenizer makes more tokens than there are bytes; the schema is billed with the prompt."""
        texts = (self.system, self.user, json.dumps(self.schema.content))
        return sum(len(_encoded(text)) for text in texts) + 2 * PER_MESSAGE + PER_REQUEST

    def key(self, *, model: str, temperature: float | None, max_tokens: int) -> str:
        """A SHA-256 over everything that an answer depends on, and what it is about; not where the server is."""
        parameters = {"temperature": temperature, "max_tokens": max_tokens, "schema": self.schema.name}
        parts = [model, self.messages, parameters, self.about]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def estimated_tokens(text: str) -> int:
    """A token for each three bytes of UTF-8: about a fifth too many for English, right for Chinese."""
    return -(-len(_encoded(text)) // 3)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
