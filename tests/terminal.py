"""A program on a terminal of its own, and what a person saw there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONTROL = r"\x1b\[([0-9;?]*)([A-Za-z])"


@dataclass(frozen=True)
class Seen:
    """All that was written to the terminal; exit code."""

    written: str
    code: int
    columns: int

    @property
    def drawn(self) -> list[str]:
        """Each line as it was written, also those that were taken away again, without what controls the terminal."""
        return [re.sub(CONTROL, "", line) for line in re.split("[\r\n]+", self.written)]

    @property
    def screen(self) -> list[str]:
        """The lines that stand there at the end; a line that is too long goes on in the next row, as on a real one."""
        rows: list[list[str]] = [[]]
        row = column = 0
        for found in re.finditer(rf"{CONTROL}|[\s\S]", self.written):
            number, letter = found.groups()
            if letter == "A":
                row -= int(number or 1)
            elif letter == "K":
                assert number == "2", found
                rows[row] = []
            elif letter is not None:
                assert letter == "m", found
            elif found[0] == "\r":
                column = 0
            else:
                if found[0] == "\n" or column == self.columns:
                    row, column = row + 1, column if found[0] == "\n" else 0
                    rows += [[]] * (row == len(rows))
                if found[0] != "\n":
                    rows[row] = [*rows[row], *[" "] * (column + 1 - len(rows[row]))]
                    rows[row][column] = found[0]
                    column += 1
        return ["".join(each) for each in rows]


def on_a_terminal(
    *words: str,
    environment: Mapping[str, str] | None = None,
    columns: int = 100,
    keys: Sequence[tuple[str, bytes]] = (),
) -> Seen:
    """Run Python with the words on a terminal. keys: what is typed once a text has appeared."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}

    def take_the_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, *words], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=take_the_terminal, env={**plain, "TERM": "xterm", **(environment or {})},
    )  # fmt: skip
    os.close(theirs)
    written, waiting, end = b"", list(keys), time.monotonic() + 240
    try:
        while time.monotonic() < end:
            try:
                read = os.read(ours, 65536)
            except OSError:  # how Linux says that nobody has it open any more
                break
            written += read
            if not read:
                break
            if waiting and waiting[0][0].encode() in written:
                os.write(ours, waiting.pop(0)[1])
        return Seen(written.decode(), process.wait(30), columns)
    finally:
        process.kill()
        os.close(ours)
