"""Asks a server many things at a time, and nothing twice: what was answered in an earlier run comes from the journal.

Called by `llm`, in whose thread requests are made and answers come; calls run in an event loop of a thread of their
own. Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from embexp.errors import UserError
from embexp.mine.call import Caller
from embexp.mine.progress import Progress
from embexp.service.budget import Budget, price_of, unpriced
from embexp.service.journal import Answer, Journal, Spending
from embexp.service.request import Request
from embexp.service.server import Server

AHEAD = 4  # requests handed over for each call in flight, so that a caller at work keeps none waiting
MESSAGE_TOKENS, REPLY_TOKENS = 4, 3  # that OpenAI's template puts around a message and before the reply
ENDING = 10.0  # seconds that calls in flight may take to be given up


@dataclass(frozen=True)
class Estimate:
    """What requests would take, without a call.

    answered: calls of `calls` that are in the journal and cost nothing. The tokens and USD are of the others: as an
    answer is expected to be, and at most, when each answer is as long as it may be. usd: None without a known price.
    """

    calls: int
    answered: int
    prompt_tokens: int
    completion_tokens: int
    most_completion_tokens: int
    usd: float | None
    most_usd: float | None


@dataclass(frozen=True)
class Report:
    """What a client has done.

    answered, lost: the spending on the data set by all attempts; lost are calls that were cut off and may have been
    billed, at their most. sent, kept, failed, retried: calls and requests of this run, kept being those that an
    earlier one had paid for. stopped: why nothing is sent any more, and how to go on.
    """

    answered: Spending
    lost: Spending
    sent: int
    kept: int
    failed: int
    retried: int
    last_fault: str
    stopped: str | None


class Client:
    """One server, one journal, one budget. Use as a context: it has a thread, connections and the journal's lock."""

    def __init__(
        self,
        server: Server,
        *,
        journal: Path,
        budget: Budget | None = None,
        prices: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """journal: the file of finished answers, made when something is asked first. budget: the data set's caps, made
        for this client, which books what the journal holds.

        prices: USD per million tokens by model, as {input, output}. Raises UserError when USD are capped and the
        model's price is not known.
        """
        table = server.prices(prices or {})
        self.server = server
        self._price = price_of(server.model, table)
        self._budget = budget or Budget()
        self._path = journal
        self._journal: Journal | None = None
        self._caller: Caller | None = None
        self._kept = 0
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        if self._budget.caps_usd and (problem := unpriced(server.model, table)):
            raise UserError(problem)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def stopped(self) -> str | None:
        """Why nothing is sent any more (the budget, the key, a server that fails), and how to go on; None else."""
        return self._caller.stopped if self._caller else None

    @property
    def larger_caps(self) -> dict[str, str]:
        """Where the budget stopped it: the cap that did, by its name in `budget`, and one that would let it go on."""
        return self._budget.larger if self.stopped else {}

    def report(self) -> Report:
        """What was done and spent so far."""
        caller = self._caller
        journal = self._journal or Journal(self._path, writing=False)
        if journal is not self._journal:
            journal.close()
        return Report(
            answered=copy.deepcopy(journal.answered),
            lost=copy.deepcopy(journal.lost),
            sent=caller.sent if caller else 0,
            kept=self._kept,
            failed=caller.failed if caller else 0,
            retried=caller.retried if caller else 0,
            last_fault=caller.last_fault if caller else "",
            stopped=self.stopped,
        )

    def ask(
        self, requests: Iterable[Request], *, what: str = "asking", total: int | None = None
    ) -> Iterator[tuple[Request, Answer]]:
        """The requests with their answers as they come, in any order; those without an answer are left out.

        requests: taken as they are needed, in the caller's thread. what, total: for what is shown. Ends early, with
        the reason in `stopped`, when the budget is spent or the server refuses; answers in the journal still come.
        Closing the iterator gives up the calls in flight. Raises UserError without a key, BusyError where another
        process asks for the same data set.
        """
        journal, caller, loop = self._open()
        bar = Progress(what, len(requests) if total is None and isinstance(requests, Sized) else total)
        ready: SimpleQueue[tuple[Request, Future[Answer | None]]] = SimpleQueue()
        flying: set[Future[Answer | None]] = set()

        def arrived() -> Iterator[tuple[Request, Answer]]:
            request, future = ready.get()
            flying.discard(future)
            answer = None if future.cancelled() else future.result()  # cancelled: the client was closed meanwhile
            if answer is not None:
                bar.answered(answer)
                yield request, answer

        try:
            for request in requests:
                key = self._key(request)
                if key in journal and (kept := journal.get(key)) is not None:
                    self._kept += 1
                    bar.kept()
                    yield request, kept
                elif not caller.stopped:
                    future = asyncio.run_coroutine_threadsafe(caller.answer(request, key), loop)
                    flying.add(future)
                    future.add_done_callback(lambda done, request=request: ready.put((request, done)))  # type: ignore[misc]
                while not ready.empty() or len(flying) >= AHEAD * self.server.concurrency:
                    yield from arrived()
            while flying:
                yield from arrived()
        finally:
            for future in flying:
                future.cancel()
            wait(flying, timeout=ENDING)
            bar.close()

    def estimate(self, requests: Iterable[Request], count_tokens: Callable[[str], int]) -> Estimate:
        """What `ask` would take. count_tokens: of a text, by the tokenizer at hand; the server's own may differ."""
        journal = self._journal or Journal(self._path, writing=False)
        calls = answered = prompts = expected = 0
        for request in requests:
            calls += 1
            if self._key(request) in journal:
                answered += 1
                continue
            texts = [message["content"] for message in request.messages]
            prompts += sum(count_tokens(text) + MESSAGE_TOKENS for text in texts) + REPLY_TOKENS
            expected += min(request.expected, self.server.max_tokens)
        if journal is not self._journal:
            journal.close()
        most = (calls - answered) * self.server.max_tokens
        usd, most_usd = (
            None if self._price is None else float(self._price.of(prompts, tokens)) for tokens in (expected, most)
        )
        return Estimate(calls, answered, prompts, expected, most, usd, most_usd)

    def close(self) -> None:
        """Give up the calls in flight and let another process at the journal."""
        self._closed = True
        loop, self._loop = self._loop, None
        try:
            if loop is not None:
                asyncio.run_coroutine_threadsafe(self._end(), loop).result(ENDING)
        finally:
            if loop is not None and self._thread is not None:
                loop.call_soon_threadsafe(loop.stop)
                self._thread.join(ENDING)
            if self._journal is not None:
                self._journal.close()

    def _key(self, request: Request) -> str:
        server = self.server
        temperature = server.temperature if request.temperature is None else request.temperature
        return request.key(model=server.model, temperature=temperature, max_tokens=server.max_tokens)

    def _open(self) -> tuple[Journal, Caller, asyncio.AbstractEventLoop]:
        assert not self._closed, "a closed client is asked"
        if self._journal is None or self._caller is None or self._loop is None:
            key = self.server.key()
            self._journal = Journal(self._path)
            for spending in (self._journal.answered, self._journal.lost):
                self._budget.book_earlier(spending, self._price)
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_run, args=(self._loop,), name="asking", daemon=True)
            self._thread.start()
            self._caller = asyncio.run_coroutine_threadsafe(self._made(key, self._journal), self._loop).result()
        return self._journal, self._caller, self._loop

    async def _made(self, key: str, journal: Journal) -> Caller:
        return Caller(self.server, key, journal, self._budget, self._price)  # in the loop that it will live in

    async def _end(self) -> None:
        others: list[asyncio.Task[Any]] = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._caller is not None:
            await self._caller.close()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()
