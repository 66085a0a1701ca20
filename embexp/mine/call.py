"""Sends one request until it is answered or given up: reservations, waits, retries, and what the server does not take.

Called by `client`, whose event loop it runs in; every answer is in the journal before this returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any

from embexp.mine.protocol import Takes, answer_in, body_of
from embexp.service.budget import Budget, Cost, Price
from embexp.service.journal import Answer, Journal
from embexp.service.request import Request
from embexp.service.server import (
    FIRST_WAIT,
    LONGEST_BACKOFF,
    LOOK_AGAIN,
    OPENAI,
    SPREAD,
    Fault,
    Parameter,
    Server,
    fault_of,
)

log = logging.getLogger(__name__)

IN_A_ROW = 20  # requests that may fail one after another
GO_ON = "What was answered is kept: run the same command again to go on"


class StoppedError(Exception):
    """No further call is made. Says why, and how to go on."""


class Caller:
    """One server, asked by many tasks at a time.

    stopped: why nothing is sent any more. answered, failed: requests. sent, retried: calls. last_fault: in words.
    """

    def __init__(self, server: Server, key: str, journal: Journal, budget: Budget, price: Price | None) -> None:
        from openai import AsyncOpenAI, Timeout  # a second that only mining pays

        self.stopped: str | None = None
        self.answered, self.failed, self.sent, self.retried = 0, 0, 0, 0
        self.last_fault = ""
        self._server, self._key, self._journal, self._budget, self._price = server, key, journal, budget, price
        self._client = AsyncOpenAI(
            api_key=key,
            base_url=server.address,
            max_retries=0,
            timeout=Timeout(server.timeout, connect=min(10.0, server.timeout)),
        )
        # OpenAI's newer models refuse max_tokens, many other servers know nothing else
        self._takes = Takes(limit="max_completion_tokens" if server.address == OPENAI else "max_tokens")
        self._free = asyncio.Semaphore(server.concurrency)
        self._flying: dict[str, asyncio.Task[Any]] = {}
        self._probing, self._probed = False, asyncio.Event()
        self._halted = asyncio.Event()
        self._schema_works = False
        self._not_before = 0.0
        self._in_a_row = 0
        self._said: set[str] = set()

    async def answer(self, request: Request, key: str) -> Answer | None:
        """The answer, by then in the journal under `key`; None where the request is given up or mining has stopped."""
        if (twin := self._flying.get(key)) is not None:
            await asyncio.wait([twin])
        if key in self._journal:
            return self._journal.get(key)
        if twin is not None:
            return None
        task = asyncio.current_task()
        assert task is not None
        self._flying[key] = task
        try:
            async with self._free:
                return await self._after_the_first(request, key)
        finally:
            del self._flying[key]

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _after_the_first(self, request: Request, key: str) -> Answer | None:
        """The first request finds out what the server takes; the others wait for it."""
        if self._probing:
            await self._probed.wait()
        self._probing = True
        try:
            return await self._tried(request, key)
        finally:
            self._probed.set()

    async def _tried(self, request: Request, key: str) -> Answer | None:
        try:
            result = await self._until_answered(request, key)
        except StoppedError:
            return None
        except OSError as error:  # the journal's: what can't be kept would be paid for again and again
            self._stop(f"an answer can't be written ({error}). Free some space. {GO_ON}")
            return None
        if isinstance(result, Answer):
            self.answered += 1
            self._in_a_row = 0
            return result
        self.failed += 1
        self._in_a_row += 1
        self.last_fault = result.words
        if result.then == "stop":
            self._stop(f"{result.words}. {GO_ON}")
        elif result.unreachable and not self.answered:
            self._stop(f"{result.words}. Is the server running, and llm.base_url right? {GO_ON}")
        elif self._in_a_row >= IN_A_ROW:
            self._stop(f"{self._in_a_row} requests failed one after another, the last with: {result.words}. {GO_ON}")
        return None

    async def _until_answered(self, request: Request, key: str) -> Answer | Fault:
        sent, retries, backoff, answered = 0, 0, FIRST_WAIT, self.answered
        takes, spared = self._takes, set[str]()
        while True:
            sent += 1
            result = await self._call(request, key, takes, sent)
            if isinstance(result, Fault) and (parameter := self._to_spare(result, takes, spared)):
                spared.add(parameter)
                takes = takes.without(parameter)
                continue
            self._probed.set()
            if isinstance(result, Answer):
                self._learn(takes, spared)
                return result
            # a limit on the rate that lets others through is no failure, however often it is met
            passing = result.limited and self.answered > answered
            answered = self.answered
            if result.then != "again" or (retries == self._server.retries and not passing):
                return result
            retries += not passing
            self.retried += 1
            self._say_once("retry", "%s; trying again, up to %d times", result.words, self._server.retries)
            if not result.wait:
                await self._pause(backoff * random.uniform(0.5, 1))
                backoff = min(2 * backoff, LONGEST_BACKOFF)
            else:  # for the others too
                self._not_before = max(self._not_before, time.monotonic() + result.wait)
            if not spared:
                takes = self._takes

    def _to_spare(self, fault: Fault, takes: Takes, spared: set[str]) -> Parameter | None:
        """The parameter without which the same request is sent at once; each is tried once."""
        parameter = fault.parameter
        if fault.rejected and parameter is None and not self._schema_works:
            parameter = "response_format"  # what is refused is not said, and the schema is what servers differ in most
        if parameter is None or parameter in spared or takes.without(parameter) == takes:
            return None
        return parameter

    def _learn(self, takes: Takes, spared: set[str]) -> None:
        """Keep what was just answered as the way to ask."""
        self._schema_works = self._schema_works or takes.schema
        if spared:
            self._takes = takes
            for parameter in sorted(spared):
                self._say_once(parameter, "%s does not take %s; it is asked without", self._server.address, parameter)

    async def _call(self, request: Request, key: str, takes: Takes, sent: int) -> Answer | Fault:
        """One call: reserve, wait where the server asked for it, send, keep the answer, book."""
        tokens = request.most_prompt_tokens, self._server.max_tokens
        most = Answer("", prompt_tokens=tokens[0], completion_tokens=tokens[1], cost=self._cost(*tokens))
        lose = partial(self._journal.lose, key, most, about=request.about, model=self._server.model)
        await self._reserve(_cost_of(most))
        taken, out = Cost(0, calls=0), False
        try:
            while (early := self._not_before - time.monotonic()) > 0:
                await self._pause(early + random.uniform(0, SPREAD))
            self._refuse_when_stopped()
            self.sent, out = self.sent + 1, True
            result = await self._sent(request, takes, sent)
            if isinstance(result, Answer):
                taken = _cost_of(result)
                self._journal.add(key, result, about=request.about, model=self._server.model)
            elif result.billed:
                taken = _cost_of(most)
                lose()
            return result
        except asyncio.CancelledError:
            if out:
                lose()
            raise
        finally:
            self._budget.book(_cost_of(most), taken)

    async def _sent(self, request: Request, takes: Takes, sent: int) -> Answer | Fault:
        try:
            async with asyncio.timeout(self._server.timeout):
                # the bare body: some servers' answers are not quite what the client's types say
                body = body_of(request, self._server, takes)
                said = await self._client.post("/chat/completions", cast_to=object, body=body)
            answer = answer_in(said, request, key=self._key)
        except Exception as error:
            return fault_of(error, self._server, self._key)
        if answer.estimated:
            self._say_once(
                "usage",
                "%s does not say how many tokens it used; they are estimated: one for three bytes of text",
                self._server.address,
            )
        return replace(answer, attempts=sent, cost=self._cost(answer.prompt_tokens, answer.completion_tokens))

    async def _reserve(self, most: Cost) -> None:
        self._refuse_when_stopped()
        while not self._budget.reserve(most):
            if refusal := self._budget.refusal(most):
                self._stop(f"{refusal}. What was answered is kept: raise the cap and run the same command to go on")
            await self._pause(LOOK_AGAIN)  # calls in flight may take less than was reserved for them

    async def _pause(self, seconds: float) -> None:
        """Sleep; raises StoppedError as soon as nothing is sent any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._halted.wait()
        self._refuse_when_stopped()

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        return None if self._price is None else float(self._price.of(prompt_tokens, completion_tokens))

    def _stop(self, reason: str) -> None:
        self.stopped = self.stopped or reason
        self._halted.set()

    def _refuse_when_stopped(self) -> None:
        if self.stopped:
            raise StoppedError(self.stopped)

    def _say_once(self, about: str, text: str, *values: object) -> None:
        if about not in self._said:
            self._said.add(about)
            log.warning(text, *values)


def _cost_of(answer: Answer) -> Cost:
    return Cost(answer.prompt_tokens + answer.completion_tokens, Decimal(repr(answer.cost or 0.0)))
