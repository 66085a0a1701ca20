"""Embeddings of a server that speaks OpenAI's protocol: what is not kept is sent, in batches, and kept as it comes.

Called by `endpoint`; `encoding.embedding` asks for the vectors. Keys, faults, waits and caps are those of
mining's calls: https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from embexp.errors import UserError, counted
from embexp.models.vector_store import VectorStore
from embexp.progress import counting
from embexp.service.budget import Budget, Cost, Price
from embexp.service.request import estimated_tokens
from embexp.service.server import (
    FIRST_WAIT,
    LONGEST_BACKOFF,
    LOOK_AGAIN,
    SPREAD,
    Endpoint,
    NoCompletionError,
    fault_of,
)

log = logging.getLogger(__name__)

TOO_LARGE = (400, 413, 422)  # what servers say to more texts, or longer ones, than they take
GO_ON = "What was embedded is kept: run the same command again to go on"


@dataclass(frozen=True)
class Sent:
    """What one call gave. rows: (texts, dimensions). tokens: as the server counted them, or estimated."""

    rows: np.ndarray
    tokens: int
    counted: bool


class _RefusedError(Exception):
    """The server found fault with a batch."""


class Remote:
    """One model at one endpoint. sent: texts, calls and tokens of this process, for the record. store: where vectors
    are kept."""

    def __init__(
        self, endpoint: Endpoint, store: VectorStore, *, dimensions: int, shorten: bool, batch_size: int,
        budget: Budget, price: Price | None,
    ) -> None:  # fmt: skip
        """budget: made for this, which books what the store has been paid for. shorten: ask for `dimensions`."""
        self.sent = {"texts": 0, "calls": 0, "tokens": 0}
        self.store, self._endpoint, self._budget, self._price = store, endpoint, budget, price
        self._dimensions, self._parameters = dimensions, {"dimensions": dimensions} if shorten else {}
        self._size = batch_size
        self._halted = threading.Event()
        self._not_before, self._answered = 0.0, 0  # when the server takes calls again; calls that it answered
        self._retried, self._announced = False, set[int]()  # the texts' hashes: a million texts are not held for this
        self._key = ""
        self._client: Any = None
        budget.book_earlier(store.spent(), price)

    def announce(self, texts: Sequence[str]) -> None:
        """Say what these texts will take before any is sent. Raises UserError where the budget does not allow it."""
        new = self.store.lacking(texts)
        most = self._cost(new, calls=math.ceil(len(new) / self._size))
        usd = "" if self._price is None else f", {most.usd:.4f} USD"
        words = (
            f"{len(new):,} of {len(set(texts)):,} texts go to {self._endpoint.address} ({self._endpoint.model}): about "
            f"{most.tokens:,} tokens{usd}, in {counted(most.calls, 'call')}; its tokenizer is not known here"
        )
        if new and (refusal := self._refusal(most)):
            raise UserError(f"{words}. {refusal}. Raise the cap. Nothing was sent")
        log.info("%s", words if new else f"all {len(set(texts)):,} texts are kept: nothing is sent")
        self._announced.update(map(hash, new))

    def embedded(self, texts: Sequence[str], progress: str | None) -> np.ndarray:
        """A row of length 1 for each text, (texts, dimensions). Raises UserError, with what was answered kept.

        Texts that were not announced are now.
        """
        new = self.store.lacking(texts)
        if new:
            if not self._announced.issuperset(map(hash, new)):
                self.announce(texts)
            self._halted.clear()
            with counting(progress, len(new), unit="texts") as add:
                for asked, sent in self._answers(new):
                    self._keep(asked, sent)
                    add(len(asked))
            log.info("%s embedded by %s; %s tokens so far", counted(len(new), "text"), self._endpoint.model,
                     f"{self.sent['tokens']:,}")  # fmt: skip
        rows = self.store.of(texts, dimensions=self._dimensions)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    def _answers(self, texts: Sequence[str]) -> Iterator[tuple[list[str], Sent]]:
        """Batches with their answers as they come; the first goes alone, to see what the server takes."""
        self._connect()
        left, flying = list(reversed(texts)), dict[Future[Sent], list[str]]()
        most = 1
        with ThreadPoolExecutor(self._endpoint.concurrency) as pool:
            try:
                while left or flying:
                    while left and len(flying) < most:
                        batch = [left.pop() for _ in range(min(self._size, len(left)))]
                        flying[pool.submit(self._answer, batch)] = batch
                    for done in wait(flying, return_when=FIRST_COMPLETED).done:
                        batch = flying.pop(done)
                        try:
                            sent = done.result()
                        except _RefusedError as error:
                            self._halve(batch, error)
                            left += reversed(batch)
                            continue
                        most = self._endpoint.concurrency
                        yield batch, sent
            except BaseException:
                self._halted.set()
                for future, batch in flying.items():  # what is paid for anyway is kept
                    if not future.cancel() and future.exception() is None:
                        self._keep(batch, future.result())
                raise

    def _keep(self, texts: Sequence[str], sent: Sent) -> None:
        self.store.add(texts, sent.rows, tokens=sent.tokens, counted=sent.counted)
        for name, number in (("texts", len(texts)), ("calls", 1), ("tokens", sent.tokens)):
            self.sent[name] += number

    def _halve(self, batch: Sequence[str], error: _RefusedError) -> None:
        if len(batch) == 1:
            raise UserError(
                f"{self._endpoint.address} refuses a text of {len(batch[0]):,} characters alone ({error}). If it is "
                f"too long, cut passages shorter. {GO_ON}"
            ) from error
        if len(batch) <= self._size:  # the first to say so
            self._size = (len(batch) + 1) // 2
            log.warning("%s does not take %d texts at once (%s); trying %d", self._endpoint.address, len(batch), error,
                        self._size)  # fmt: skip

    def _answer(self, texts: Sequence[str]) -> Sent:
        """One batch, sent until it is answered. Raises UserError, or _RefusedError for fault with the batch."""
        retries, backoff, answered = 0, FIRST_WAIT, self._answered
        while True:
            try:
                return self._call(texts)
            except (UserError, _RefusedError):
                raise
            except Exception as error:
                fault = fault_of(error, self._endpoint, self._key)
                if getattr(error, "status_code", None) in TOO_LARGE:
                    raise _RefusedError(fault.words) from error
                # as when mining: a limit on the rate that lets others through is no failure, however often it is met
                passing = fault.limited and self._answered > answered
                answered = self._answered
                if fault.then != "again" or (retries == self._endpoint.retries and not passing):
                    raise UserError(f"{fault.words}. {GO_ON}") from error
            retries += not passing
            level = logging.DEBUG if self._retried else logging.WARNING  # once: a limit on the rate is met all the time
            self._retried = True
            log.log(level, "%s; trying again, up to %d times", fault.words, self._endpoint.retries)
            if not fault.wait:
                self._pause(backoff * random.uniform(0.5, 1))
                backoff = min(2 * backoff, LONGEST_BACKOFF)
            else:  # for the others too
                self._not_before = max(self._not_before, time.monotonic() + fault.wait)

    def _call(self, texts: Sequence[str]) -> Sent:
        """One call: wait where the server asked for it, reserve, send, check, book."""
        while (early := self._not_before - time.monotonic()) > 0:
            self._pause(early + random.uniform(0, SPREAD))
        most = self._cost(texts, calls=1)
        self._reserve(most)
        taken = Cost(0, calls=0)
        try:
            body = {"model": self._endpoint.model, "input": list(texts), **self._parameters}
            said = self._client.post("/embeddings", cast_to=object, body=body)
            rows = rows_in(said, len(texts), self._dimensions, where=self._endpoint.address)
            tokens = _tokens_in(said)
            sent = Sent(rows, most.tokens if tokens is None else tokens, tokens is not None)
            taken = Cost(sent.tokens, self._usd(sent.tokens), 1)
            self._answered += 1
            return sent
        except Exception as error:
            if fault_of(error, self._endpoint, self._key).billed:
                taken = most
                self.store.lose(most.tokens)
            raise
        finally:
            self._budget.book(most, taken)

    def _reserve(self, most: Cost) -> None:
        while not self._budget.reserve(most):
            if refusal := self._refusal(most):
                raise UserError(f"{refusal}. Raise the cap. {GO_ON}")
            self._pause(LOOK_AGAIN)

    def _refusal(self, most: Cost) -> str | None:
        return self._budget.refusal(most, key="model.budget", on=f"the vectors of {self._endpoint.model}")

    def _pause(self, seconds: float) -> None:
        if self._halted.wait(seconds):
            raise UserError("another call has failed")

    def _cost(self, texts: Sequence[str], *, calls: int) -> Cost:
        tokens = sum(map(estimated_tokens, texts))
        return Cost(tokens, self._usd(tokens), calls)

    def _usd(self, tokens: int) -> Any:
        return self._price.of(tokens, 0) if self._price is not None else Cost(0).usd

    def _connect(self) -> None:
        if self._client is not None:
            return
        from openai import OpenAI, Timeout  # a second that only this pays

        self._key = self._endpoint.key()
        timeout = Timeout(self._endpoint.timeout, connect=min(10.0, self._endpoint.timeout))
        self._client = OpenAI(api_key=self._key, base_url=self._endpoint.address, max_retries=0, timeout=timeout)


def rows_in(body: Any, count: int, dimensions: int, *, where: str) -> np.ndarray:
    """The vectors in an answer's JSON, (count, dimensions), in the order of the texts, which `index` tells.

    Raises NoCompletionError where there are none, and UserError where they are not what was asked for.
    """
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list):
        said = body.get("error") if isinstance(body, dict) else body
        raise NoCompletionError(" ".join(str(said or "nothing").split())[:200])
    places = [each.get("index") if isinstance(each, dict) else None for each in data]
    if sorted(place for place in places if isinstance(place, int)) != list(range(count)) or len(data) != count:
        raise UserError(f"{where} gave {len(data)} vectors for {count} texts, or did not number them 0, 1, ...")
    lengths = {len(each["embedding"]) if isinstance(each.get("embedding"), list) else None for each in data}
    if lengths != {dimensions}:
        found = ", ".join(sorted(map(str, lengths)))
        raise UserError(
            f"{where} gave vectors of {found} numbers, and model.dimensions={dimensions}; set it to what the model "
            "gives, or model.shorten=true where the model can give fewer"
        )
    rows = np.empty((count, dimensions), dtype=np.float32)
    for place, each in zip(places, data, strict=True):
        rows[place] = [math.nan if number is None else number for number in each["embedding"]]
    bad = int((~np.isfinite(rows).all(axis=1) | ~rows.any(axis=1)).sum())
    if bad:
        raise UserError(f"{where} gave {bad} of {count} vectors with NaN, infinite or only zero numbers; none was kept")
    return rows


def _tokens_in(body: Any) -> int | None:
    usage = body.get("usage") or {}
    found = usage.get("prompt_tokens") or usage.get("total_tokens")
    return found if isinstance(found, int) and found > 0 else None
