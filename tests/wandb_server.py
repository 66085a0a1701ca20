"""A server that answers just enough of wandb's API for a run to go online; ended by its test, as a network is.

Run as `python tests/wandb_server.py`; prints its port, then a line for each request.
"""

from __future__ import annotations

import gzip
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROJECT = {"id": "p", "name": "embexp", "entity": {"id": "e", "name": "somebody"}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        print(self.path, flush=True)
        if self.path == "/graphql":
            self._answer({"data": self._data(json.loads(body))})
        else:
            self._answer({})

    def _data(self, request: dict) -> dict:
        if "upsertBucket" in request["query"]:
            name = request["variables"]["name"]
            bucket = {"id": "b", "name": name, "displayName": name, "config": "{}", "sweepName": None}
            return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0, "project": PROJECT}, "inserted": True}}
        if "createRunFiles" in request["query"]:
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}}
        return {"serverInfo": {"features": []}}

    def _answer(self, value: dict) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
