"""The file that paid answers are kept in: one line per finished answer, appended as it arrives, never changed.

Called by `client`, which knows what to ask. A process that is killed at any moment leaves at most a torn last line,
which is cut off when the file is opened again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from embexp.errors import BusyError

log = logging.getLogger(__name__)

BLOCK = 8192  # bytes read at a time to find a line's end


@dataclass(frozen=True)
class Answer:
    """What a server said to one request, whether of use or not: it has been paid for.

    finish: the server's reason for ending (stop, length, content_filter ...). refusal: its words where it says so apart
    from the text. cost: USD, None where the price is not known. attempts: requests sent until it came. estimated: the
    server sent no usage, so the tokens are an estimate.
    """

    text: str
    finish: str = "stop"
    refusal: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    attempts: int = 1
    estimated: bool = False


@dataclass
class Spending:
    """Calls, tokens and USD, summed exactly.

    usd: of the calls whose price was known. unpriced: the spending on the others, which is in the other sums too.
    estimated: calls whose tokens the server did not count.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: Decimal = Decimal(0)
    estimated: int = 0
    unpriced: Spending | None = None

    @property
    def tokens(self) -> int:
        """Of prompts and completions together."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def cost(self) -> float | None:
        """USD; None where a call's price was not known."""
        return None if self.unpriced else float(self.usd)

    def add(self, spent: Answer) -> None:
        """Count one more call."""
        self.calls += 1
        self.prompt_tokens += spent.prompt_tokens
        self.completion_tokens += spent.completion_tokens
        self.estimated += spent.estimated
        if spent.cost is None:
            self.unpriced = self.unpriced or Spending()
            self.unpriced.add(replace(spent, cost=0.0))
        else:
            self.usd += Decimal(repr(spent.cost))  # the digits as they are written, so that sums are exact


class Journal:
    """Finished answers by key, in a JSONL file; an index of places is in memory, the texts are not.

    | line     | holds                                                                            |
    |----------|----------------------------------------------------------------------------------|
    | answer   | key, about, model, and the fields of Answer                                      |
    | lost     | lost: true and the same: a call that was cut off, perhaps billed, at its most    |

    answered, lost: the spending of each kind. To read it beside a process at work: `Journal(path, writing=False)`.
    """

    def __init__(self, path: Path, *, writing: bool = True) -> None:
        """Raises BusyError when another process, or another Journal of this one, writes to the file."""
        self.answered, self.lost = Spending(), Spending()
        self._places: dict[bytes, int] = {}
        self._path = path
        self._end = 0
        self._file: int | None = None
        # held by the process, whichever of its threads opens and closes the file
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0, thread_local=False)
        if writing:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._acquire()
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        elif path.exists():
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if self._file is not None:
            self._read(cut=writing)

    def __contains__(self, key: str) -> bool:
        return bytes.fromhex(key) in self._places

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Answer | None:
        """The answer under a key, read from the file."""
        place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        assert self._file is not None
        line = b""
        while b"\n" not in line:
            line += os.pread(self._file, BLOCK, place + len(line))
        return _answer(json.loads(line.partition(b"\n")[0]))

    def add(self, key: str, answer: Answer, *, about: str, model: str) -> None:
        """Append an answer; it is in the file when this returns. Raises OSError on a full disk, and adds nothing."""
        place = self._append({"key": key, "about": about, "model": model, **asdict(answer)})
        self._places[bytes.fromhex(key)] = place
        self.answered.add(answer)

    def lose(self, key: str, most: Answer, *, about: str, model: str) -> None:
        """Append that a call was cut off and may have been billed. most: what it can have cost."""
        self._append({"lost": True, "key": key, "about": about, "model": model, **asdict(most)})
        self.lost.add(most)

    def close(self) -> None:
        """Let another process in."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._lock.release()

    def _acquire(self) -> None:
        try:
            self._lock.acquire()
        except Timeout as error:
            raise BusyError(
                f"another process is at work on {self._path}; wait for it, or end it: its answers are kept"
            ) from error

    def _append(self, line: dict[str, Any]) -> int:
        assert self._file is not None
        content = json.dumps(line).encode() + b"\n"
        place = self._end
        left = content
        try:
            while left:  # one write, but for a disk that is full: there the next raises
                left = left[os.write(self._file, left) :]
        except OSError:
            os.ftruncate(self._file, place)
            raise
        self._end += len(content)
        return place

    def _read(self, *, cut: bool) -> None:
        """Build the index; a line without an end is cut off when this process writes, else passed over."""
        broken = 0
        for place, content in self._lines():
            try:
                line = json.loads(content)
                answer, key = _answer(line), bytes.fromhex(line["key"])
            except (ValueError, TypeError, KeyError):
                broken += 1
                continue
            if line.get("lost"):
                self.lost.add(answer)
            elif key not in self._places:
                self._places[key] = place
                self.answered.add(answer)
        if broken:
            log.warning("%s: %d lines can't be read and are passed over", self._path, broken)
        assert self._file is not None
        if cut and os.fstat(self._file).st_size > self._end:
            os.ftruncate(self._file, self._end)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Place and content of each whole line; leaves the place after the last one in `_end`."""
        with self._path.open("rb") as file:
            for content in file:
                if content.endswith(b"\n"):
                    yield self._end, content
                    self._end += len(content)


def _answer(line: dict[str, Any]) -> Answer:
    return Answer(**{name: line[name] for name in Answer.__dataclass_fields__})
