"""A server that speaks /v1/chat/completions over real HTTP, answers what a test says, and injects faults.

In a test: `with Stub(plan) as server`, where `plan` turns a Call into a Reply. As a process of its own, for benchmarks
and for clients that are killed: `python tests/mine_server.py --latency 0.5` prints its port, then answers well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PASSAGE = re.compile(r"<passage>\s*(.*?)\s*</passage>", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """One request. number: how many came before it. about: the passage between its tags, else the last message."""

    number: int
    body: dict[str, Any]
    headers: dict[str, str]
    path: str

    @property
    def about(self) -> str:
        text = self.body["messages"][-1]["content"]
        found = PASSAGE.search(text)
        return found.group(1) if found else text


@dataclass(frozen=True)
class Reply:
    """What the server does. content None: no text in the message; body: sent instead of a completion."""

    content: Any = "{}"
    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    finish: str = "stop"
    refusal: str | None = None
    usage: dict[str, int] | None = field(default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 10})
    latency: float = 0.0
    drop: bool = False  # close the connection instead of answering
    hang: bool = False  # never answer
    trickle: bool = False  # answer a byte at a time, ten in a second


def error(status: int, message: str, *, code: str | None = None, param: str | None = None, **headers: str) -> Reply:
    """An error as OpenAI words it."""
    body = {"error": {"message": message, "type": "an_error", "code": code, "param": param}}
    return Reply(status=status, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


def items(*questions: tuple[str, str, str]) -> str:
    """The text of a good answer: (kind, question, span) each."""
    named = [dict(zip(("kind", "question", "span"), each, strict=True)) for each in questions]
    return json.dumps({"items": named})


def good(call: Call, *, latency: float = 0.0) -> Reply:
    """One item of each kind, with the passage's first words as the span; tokens that depend on the passage alone."""
    start = " ".join(call.about.split()[:3])
    text = items(*((kind, f"{kind} about {start}", start) for kind in ("question", "keywords", "problem")))
    usage = {"prompt_tokens": 50 + len(call.about), "completion_tokens": 7 + len(call.about) % 5}
    return Reply(text, usage=usage, latency=latency)


class Stub:
    """The server, in a thread of this process. calls: every request that came, in order; most: at a time."""

    def __init__(self, plan: Callable[[Call], Reply] = good) -> None:
        self.plan = plan
        self.calls: list[Call] = []
        self.most = 0
        self._now = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Stub:
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(self.start(), self._loop)
        self.port = started.result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def abouts(self) -> list[str]:
        return [call.about for call in self.calls]

    async def start(self, *, keep: bool = True) -> int:
        """Listen and return the port. keep: whether to remember the calls."""
        self._keep, self._count, self._tasks = keep, 0, set[asyncio.Task[None]]()
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=2**22)
        return int(self._server.sockets[0].getsockname()[1])

    async def _end(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._request(reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):  # client or server went away
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))))
        call = Call(self._count, body, headers, first.split(" ")[1])
        self._count += 1
        if self._keep:
            self.calls.append(call)
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            reply = self.plan(call)
            await asyncio.sleep(3600 if reply.hang else reply.latency)
        finally:
            self._now -= 1
        if reply.drop:
            return False
        content = json.dumps(self._body(call, reply)) if not isinstance(reply.body, str) else reply.body
        kind = "text/html" if isinstance(reply.body, str) else "application/json"
        extra = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        head = f"HTTP/1.1 {reply.status} Said\r\nContent-Type: {kind}\r\n{extra}Content-Length: {len(content.encode())}"
        if reply.trickle:  # reading goes on, so that only a limit on the whole ends it
            for byte in f"{head}\r\n\r\n{content}".encode():
                writer.write(bytes([byte]))
                await asyncio.sleep(0.1)
        writer.write(f"{head}\r\n\r\n{content}".encode())
        await writer.drain()
        return True

    def _body(self, call: Call, reply: Reply) -> Any:
        if reply.body is not None:
            return reply.body
        message = {"role": "assistant", "content": reply.content, "refusal": reply.refusal}
        choice = {"index": 0, "message": message, "finish_reason": reply.finish, "logprobs": None}
        answer = {"id": f"chat-{call.number}", "object": "chat.completion", "created": 0, "choices": [choice]}
        usage = {**reply.usage, "total_tokens": sum(reply.usage.values())} if reply.usage is not None else None
        return {**answer, "model": call.body["model"], "usage": usage}


async def _serve(latency: float) -> None:
    stub = Stub(lambda call: good(call, latency=latency))
    print(await stub.start(keep=False), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.0)
    asyncio.run(_serve(parser.parse_args().latency))
