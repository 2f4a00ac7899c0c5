"""What VictoriaLogs of other versions answers about snapshots: as its source says, without the server.

v1.31 takes a day as `name`, refuses one that is not attached, answers with one path and deletes none
(PartitionSnapshotCreate in storage.go). v1.44 takes `partition_prefix`, answers with a list, and
deletes. v1.53 answers POST only.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

Version = Literal["v1.30", "v1.31", "v1.44", "v1.53"]
DAYS = ("20260101", "20260102")
API = "/internal/partition/"


@dataclass
class OldServer:
    """A server of `version`; `key` is its -partitionManageAuthKey. It has snapshots by their path."""

    version: Version
    key: str = ""
    url: str = ""
    snapshots: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, form: Mapping[str, str]) -> tuple[int, str]:
        """Status and text of the answer to a request."""
        if self.version == "v1.53" and method != "POST":
            return 405, "only POST"
        if not path.startswith(API):
            return 400, f'unsupported path requested: "{path}"'
        if self.key and form.get("authKey") != self.key:
            return 401, "Expected to receive non-empty authKey when -partitionManageAuthKey is set"
        asked = path.removeprefix(API)
        if asked == "snapshot/list" and self.version != "v1.30":
            return 200, json.dumps(self.snapshots)
        if asked == "snapshot/create" and self.version == "v1.31":
            return self._create_one(form.get("name", ""))
        if asked == "snapshot/create" and self.version != "v1.30":
            prefix = form.get("partition_prefix") or form.get("name", "")
            made = [self._made(day) for day in DAYS if day.startswith(prefix)]
            return 200, json.dumps(made)
        if asked == "snapshot/delete" and self.version in ("v1.44", "v1.53"):
            if form.get("path") not in self.snapshots:
                return 400, f"cannot find snapshot at {form.get('path')}"
            self.snapshots.remove(form["path"])
            return 204, ""
        return 400, f'unsupported path requested: "{path}"'

    def _create_one(self, day: str) -> tuple[int, str]:
        if day not in DAYS:
            return 400, f'cannot create snapshot from partition "{day}", because it is missing'
        return 200, json.dumps(self._made(day))

    def _made(self, day: str) -> str:
        number = len(self.snapshots) + 1
        path = f"/data/partitions/{day}/snapshots/20260102030405-{number:016X}"
        self.snapshots.append(path)
        return path


@contextmanager
def old_server(version: Version, *, key: str = "") -> Iterator[OldServer]:
    """Run one on a loopback port during the context."""
    old = OldServer(version, key)

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            form = dict(parse_qsl(url.query) + parse_qsl(body))
            status, text = old.answer(self.command, url.path, form)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        old.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield old
        finally:
            server.shutdown()
            thread.join()
