"""Opens a page in a headless Chromium and asks it what a person would see. Speaks the DevTools protocol over a pipe."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")
SECONDS = 60.0


class NotInstalled(Exception):
    """There is no Chromium on this machine."""


class Page:
    """One open page. complaints: what it wrote to its console, and the requests that it made beside the file itself."""

    def __init__(self, out: int, back: int) -> None:
        self._out, self._back, self._rest, self._next = out, back, b"", 0
        self._session: str | None = None
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result; events are noted on the way."""
        self._next += 1
        message = {"id": self._next, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._next:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def open(self, file: Path, *, width: int = 1200, dark: bool = False, height: int = 900) -> None:
        """Load a file at this size of the window, and wait until it has been drawn."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=file.resolve().as_uri())
        end = time.monotonic() + SECONDS
        while self.asked("document.readyState") != "complete" and time.monotonic() < end:
            time.sleep(0.05)
        self.asked("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def asked(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key."""
        text = {"Enter": "\r"}.get(key, "")
        code = {"Tab": 9, "Enter": 13}[key]
        for kind in ("keyDown", "keyUp"):
            parameters = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", **parameters, **({"text": text} if kind == "keyDown" and text else {}))

    def shoot(self, file: Path) -> None:
        """Save a picture of the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def _note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(parameters["args"]))
        elif method == "Log.entryAdded":
            self.complaints.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._back], [], [], SECONDS)
            assert ready, "the browser does not answer"
            part = os.read(self._back, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextmanager
def opened(profile: Path) -> Iterator[Page]:
    """A page of a browser of its own, which ends with it. profile: an empty folder. Raises NotInstalled."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        raise NotInstalled("there is no Chromium here (Debian's package chromium)")
    in_child, out = os.pipe()
    back, out_of_child = os.pipe()

    def as_three_and_four() -> None:  # where the browser looks for the pipe
        high = [os.dup(end) for end in (in_child, out_of_child)]
        for place, end in enumerate(high, start=3):
            os.dup2(end, place)

    with (profile / "browser.log").open("w") as log:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}"], stdout=log, stderr=log, preexec_fn=as_three_and_four,
            pass_fds=(3, 4),
        )  # fmt: skip
    os.close(in_child)
    os.close(out_of_child)
    try:
        yield Page(out, back)
    finally:
        os.close(out)  # it ends when the pipe does
        os.close(back)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
