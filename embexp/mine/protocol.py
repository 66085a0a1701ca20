"""The chat completions protocol, as far as it is used: what is sent, and how an answer is read.

Called by `call`. Servers that call themselves compatible differ in three parameters and in much of what they send
back: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from embexp.service.journal import Answer
from embexp.service.request import Request, estimated_tokens
from embexp.service.server import NoCompletionError, Parameter, Server, without_key


@dataclass(frozen=True)
class Takes:
    """What a server was found to take. limit: the name that it has for the most tokens of an answer."""

    schema: bool = True
    temperature: bool = True
    limit: str = "max_tokens"

    def without(self, parameter: Parameter) -> Takes:
        """The same without a parameter that was refused; the limit goes by its other name."""
        if parameter == "response_format":
            return replace(self, schema=False)
        if parameter == "temperature":
            return replace(self, temperature=False)
        other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
        return replace(self, limit=other[self.limit])


def body_of(request: Request, server: Server, takes: Takes) -> dict[str, Any]:
    """The JSON that is sent."""
    body: dict[str, Any] = {"model": server.model, "messages": request.messages, takes.limit: server.max_tokens}
    temperature = server.temperature if request.temperature is None else request.temperature
    if takes.temperature and temperature is not None:
        body["temperature"] = temperature
    if takes.schema:
        schema = {"name": request.schema.name, "schema": request.schema.content, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def answer_in(body: Any, request: Request, *, key: str) -> Answer:
    """The answer in a response's JSON, without the key; tokens are estimated where the server does not count them.

    Raises NoCompletionError where there is none.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        said = body.get("error") if isinstance(body, dict) else body
        raise NoCompletionError(" ".join(str(said or "nothing").split())[:200])
    message = choices[0].get("message") or {}
    text, refusal = _text(message.get("content")), message.get("refusal")
    usage: dict[str, Any] = body.get("usage") or {}
    prompt: Any = usage.get("prompt_tokens")
    completion: Any = usage.get("completion_tokens")
    counted = isinstance(prompt, int) and isinstance(completion, int) and prompt > 0 and completion >= 0
    if not counted:
        prompt = sum(estimated_tokens(each["content"]) for each in request.messages)
        completion = estimated_tokens(text)
    return Answer(
        text=without_key(text, key),
        finish=str(choices[0].get("finish_reason") or "stop"),
        refusal=without_key(str(refusal), key) if refusal else None,
        prompt_tokens=prompt,
        completion_tokens=completion,
        estimated=not counted,
    )


def _text(content: Any) -> str:
    """A message's content; some servers send a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return str(content or "")
