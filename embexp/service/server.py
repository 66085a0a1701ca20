"""A server that speaks OpenAI's protocol: its settings, its key, and what its errors mean.

Read by `call` and `client`, and by `endpoint` for embeddings. The key is read from the environment and is in nothing
that leaves this module but the request's header.
"""

from __future__ import annotations

import email.utils
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from embexp.errors import UserError

OPENAI = "https://api.openai.com/v1"
NO_KEY = "none-needed"  # sent where no key is set: the client would read OPENAI_API_KEY, and send it anywhere
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
LOOKS_LIKE_A_KEY = re.compile(r"\bsk-[\w*-]{8,}|\bBearer\s+[^\s\"',;}]+")
HIDDEN = "[key]"
FIRST_WAIT, LONGEST_BACKOFF = 1.0, 60.0  # seconds before a call is sent again; each further wait is twice as long
LOOK_AGAIN = 0.05  # seconds between looks at a budget that calls in flight may free
SPREAD = 0.2  # seconds over which waiting calls go out again
LONGEST_WAIT = 600.0  # seconds that a server may ask to wait; where it wants more, mining stops
OUT_OF_MONEY = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance"}
PASSING = {408, 409, 425, 429}
Parameter = Literal["response_format", "max_tokens", "temperature"]  # those that servers differ in
NEVER_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "LocalProtocolError"}


def problems_of(group: str, *, base_url: str | None = None, api_key_env: str | None = None) -> list[str]:
    """What is wrong with an address or with the name of a key's variable; neither is repeated, since either may hold a
    secret. group: of the config, where they stand."""
    said = []
    if base_url is not None and not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", base_url):
        said.append(
            f"{group}.base_url must be an address such as http://localhost:11434/v1, without a user, a key or a "
            f"query; keys are read from the environment variable that {group}.api_key_env names"
        )
    if api_key_env is not None and not NAME.fullmatch(api_key_env):
        said.append(
            f"{group}.api_key_env must be the name of an environment variable, such as OPENAI_API_KEY; a key "
            "itself never enters a config, which is written to files. If that was a key, replace it with a new one"
        )
    return said


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where something is asked, and how. GROUP: of the config, whose keys errors name.

    base_url: null for OpenAI's. api_key_env: the name of the environment variable with the key, null where none is
    needed. concurrency: calls in flight. timeout: seconds until a call is given up. retries: how often a call that
    failed in passing is sent again.
    """

    GROUP: ClassVar[str] = "llm"

    model: str
    base_url: str | None = None
    api_key_env: str | None = "OPENAI_API_KEY"
    concurrency: int = 32
    timeout: float = 60
    retries: int = 5

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise UserError(*problems)

    def _problems(self) -> list[str]:
        group = self.GROUP
        said = problems_of(group, base_url=self.base_url, api_key_env=self.api_key_env)
        if not self.model.strip():
            said.append(f"{group}.model must be a model's name, as the server has it")
        for name, least in (("concurrency", 1), ("retries", 0)):
            if getattr(self, name) < least:
                said.append(f"{group}.{name}={getattr(self, name)} must be at least {least}")
        if not 0 < self.timeout < math.inf:
            said.append(f"{group}.timeout={self.timeout} must be seconds above 0")
        return said

    @property
    def address(self) -> str:
        """The base URL that is asked."""
        return self.base_url or OPENAI

    def key(self) -> str:
        """The key, from the environment. Raises UserError, without it, where there is none or it can't be sent."""
        if self.api_key_env is None:
            return NO_KEY
        found = os.environ.get(self.api_key_env, "").strip()  # a file's last line end comes along easily
        if not found:
            raise UserError(
                f"{self.api_key_env} is not set in the environment, and {self.address} needs a key. Set it (export "
                f"{self.api_key_env}=...), name another variable with {self.GROUP}.api_key_env=, or set "
                f"{self.GROUP}.api_key_env=null for a server that needs none, such as a local one"
            )
        if not (found.isascii() and found.isprintable() and " " not in found):
            raise UserError(
                f"the key in {self.api_key_env} has spaces, line ends or letters that no key has; copy it once more"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Server(Endpoint):
    """Where questions are answered.

    temperature: null for the server's own. max_tokens: of an answer, reasoning included. price: USD per million tokens
    as {input, output}, null for the price table's.
    """

    temperature: float | None = 0.7
    max_tokens: int = 1000
    price: dict[str, float] | None = None

    def _problems(self) -> list[str]:
        said = super()._problems()
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            said.append(f"llm.temperature={self.temperature} must be from 0 to 2, or null for the server's own")
        if self.max_tokens < 1:
            said.append(f"llm.max_tokens={self.max_tokens} must be at least 1")
        if self.price is not None and (
            set(self.price) != {"input", "output"} or not all(0 <= each < math.inf for each in self.price.values())
        ):
            said.append(
                f"llm.price={self.price} must be {{input: ..., output: ...}} in USD per million tokens, 0 or more, or "
                "null for the price table's"
            )
        return said

    def prices(self, table: Mapping[str, Mapping[str, float]]) -> Mapping[str, Mapping[str, float]]:
        """Its own price, where it is set, else the price table."""
        return table if self.price is None else {self.model: self.price}


def without_key(text: str, key: str) -> str:
    """The text with the key struck out: servers repeat what they were sent. A word such as EMPTY is no secret."""
    is_secret = len(key) >= 8 and not key.isalpha() and key != NO_KEY
    return text.replace(key, HIDDEN) if is_secret else text


@dataclass(frozen=True)
class Fault:
    """Why a call gave no answer, in words without the key, and what to do about it.

    then: again, after `wait` seconds where the server said so; leave the request for the next run; or stop, since no
    other request would do better. billed: the server may have answered all the same. rejected: it found fault with the
    request itself, and with which parameter. unreachable: there was no connection. limited: by the rate of calls.
    """

    words: str
    then: Literal["again", "leave", "stop"]
    wait: float | None = None
    billed: bool = False
    parameter: Parameter | None = None
    rejected: bool = False
    unreachable: bool = False
    limited: bool = False


class NoCompletionError(Exception):
    """A server answered 200 with something else: an error, a page, nothing."""


def fault_of(error: Exception, server: Endpoint, key: str) -> Fault:
    """What an exception of the openai client means."""
    status = getattr(error, "status_code", None)
    if not isinstance(status, int):
        return _no_answer(error, server, key)
    said = _message(error)
    words = _shown(f"{status}: {said}", key)
    code = f"{getattr(error, 'code', None)} {getattr(error, 'type', None)}"
    if status == 402 or any(name in code for name in OUT_OF_MONEY):
        return Fault(f"{server.address} answers no more: the account has no money left ({words}). Add credit", "stop")
    if status == 401:
        where = f"the key in {server.api_key_env}" if server.api_key_env else "a request without a key"
        hint = "Set the right one" if server.api_key_env else f"Set {server.GROUP}.api_key_env="
        return Fault(f"{server.address} does not take {where} ({words}). {hint}", "stop")
    if status == 403:
        return Fault(
            f"{server.address} does not permit this ({words}). Choose another {server.GROUP}.model, or key", "stop"
        )
    if status == 404:
        return Fault(
            f"{server.address} has no model {server.model}, or is no such server ({words}). Set {server.GROUP}.model "
            f"to one that it has, or mend {server.GROUP}.base_url, which mostly ends in /v1",
            "stop",
        )
    if status in (400, 422):
        return Fault(words, "leave", parameter=_refused_parameter(error, said), rejected=True)
    if status in PASSING or status >= 500:
        wait = asked_wait(error.response.headers)  # type: ignore[attr-defined]
        if wait is not None and wait > LONGEST_WAIT:
            return Fault(f"{server.address} asks to wait {wait:,.0f} seconds ({words}). Try again then", "stop")
        return Fault(words, "again", wait=wait, limited=status == 429)
    return Fault(words, "leave")


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, by retry-after-ms or Retry-After (seconds or a date); None where it does not.

    https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / unit
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, OverflowError):
                continue
            seconds = max(seconds, 0.0)  # a date that has passed: now
        if 0 <= seconds < math.inf:
            return seconds
    return None


def _no_answer(error: Exception, server: Endpoint, key: str) -> Fault:
    cause = error.__cause__ or error
    name = type(cause).__name__
    if name in NEVER_SENT:
        words = _shown(f"no connection to {server.address} ({cause})", key)
        return Fault(words, "again", unreachable=True)
    if isinstance(error, NoCompletionError):
        return Fault(_shown(f"{server.address} answered with no completion: {error}", key), "again")
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return Fault(f"no answer within {server.timeout:g} seconds", "again", billed=True)
    words = _shown(f"the connection to {server.address} broke, or its answer was none ({name}: {cause})", key)
    return Fault(words, "again", billed=True)


def _shown(text: str, key: str) -> str:
    return LOOKS_LIKE_A_KEY.sub(HIDDEN, without_key(text, key))  # a part of the key may be repeated too


def _message(error: Any) -> str:
    body = error.body
    inner = body.get("message") or body.get("detail") or body.get("error") if isinstance(body, dict) else body
    return " ".join(str(inner or error).split())[:500]


def _refused_parameter(error: Any, said: str) -> Parameter | None:
    """Which of the parameters that servers differ in a 400 or 422 is about."""
    text = f"{error.param or ''} {said}".lower()
    if re.search(r"context[ _](length|window|size)|too (long|large)|maximum", text):
        return None  # the prompt is too long, whatever else is named
    if "response_format" in text or "json_schema" in text or "schema" in text:
        return "response_format"
    if "max_tokens" in text or "max_completion_tokens" in text:
        return "max_tokens"
    return "temperature" if "temperature" in text else None
