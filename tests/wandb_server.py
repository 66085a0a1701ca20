"""A server that answers just enough of wandb's API for runs, workspaces and reports; a test ends it, as networks end.

Run as `python tests/wandb_server.py`; prints its port, then a line for each request, and after it, as JSON, what was
sent of a view (a workspace or a report) or of a file. It takes every key but REFUSED, and saves nothing for READER.
"""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "0123456789" * 4
REFUSED = "f" * 40
READER = "e" * 40
ENTITIES = ("somebody", "my-team")
PROJECT = {"id": "p", "name": "embexp", "entity": {"id": "e", "name": "somebody"}}
VIEWER = {"id": "u", "username": "somebody", "entity": "somebody", "flags": "{}", "teams": {"edges": []}}
NODE = {
    "__typename": "Project", "id": "p", "name": "embexp", "entityName": "somebody", "createdAt": "2026-01-01",
    "isBenchmark": False, "user": None,
}  # fmt: skip
PAGE = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}


def say(*lines: str) -> None:
    """Print them whole: requests are answered in threads."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


@contextmanager
def serving() -> Iterator[tuple[dict[str, str], Callable[[], list[dict]]]]:
    """A server in its own process: the environment in which wandb uses it; what ends it and returns what was sent."""
    process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def ended() -> list[dict]:
        process.kill()
        return [json.loads(line) for line in process.communicate()[0].splitlines() if line.startswith("{")]

    try:
        address = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        yield {"WANDB_BASE_URL": address, "WANDB_MODE": "online", "WANDB_API_KEY": KEY}, ended
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        say(self.path, json.dumps({"file": self.path, "content": self._body().decode()}))
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        say(self.path)
        key = self._key()
        if key == REFUSED:
            self._answer({"errors": [{"message": "permission denied"}]}, status=401)
        elif key == READER and b"upsertView" in body:
            self._answer({"errors": [{"message": "permission denied"}]}, status=403)
        elif self.path == "/graphql":
            self._answer({"data": self._data(json.loads(body))})
        else:
            self._answer({})

    def _key(self) -> str:
        _, _, encoded = self.headers.get("Authorization", "").partition(" ")
        return base64.b64decode(encoded).decode().removeprefix("api:")

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _data(self, request: dict) -> dict:
        query, given = request["query"], request.get("variables") or {}
        if "upsertBucket" in query:
            name = given["name"]
            bucket = {"id": "b", "name": name, "displayName": name, "config": "{}", "sweepName": None}
            return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0, "project": PROJECT}, "inserted": True}}
        if "createRunFiles" in query:
            host, port = self.server.server_address
            files = [{"name": name, "uploadUrl": f"http://{host}:{port}/file/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "upsertView" in query:
            say(json.dumps({"view": {**given, "spec": json.loads(given["spec"])}}))
            view = {key: given[key] for key in ("name", "displayName", "description", "spec")}
            project = {"id": "p", "name": given["projectName"], "entityName": given["entityName"]}
            return {"upsertView": {"view": {**view, "id": "V1", "type": "runs", "project": project}, "inserted": True}}
        if "viewer" in query:
            return {"viewer": VIEWER}
        if "models(" in query:
            return {"models": {"pageInfo": PAGE, "edges": [{"node": NODE}]} if given["entity"] in ENTITIES else None}
        if "internalId" in query:
            return {"project": {"id": "p", "internalId": "7"}}
        if "ArtifactType(" in query:
            return {"project": {"artifact": None}}
        # as one that is there already, so that no file of it is asked for
        if "CreateArtifact(" in query.replace(" ", ""):
            sequence = {"id": "s", "latestArtifact": {"id": "a", "versionIndex": 0}}
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}
        return {"serverInfo": {"features": []}}

    def _answer(self, value: dict, *, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
