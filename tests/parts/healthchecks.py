"""A Healthchecks of the test's own: it keeps what it is pinged with."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import final


@final
class Healthchecks:
    """Listens on loopback while the context is open.

    `pings` are the states that borgmatic has reported, in order: `start`, `success` or `fail`.
    `texts` are what it sent with them.
    """

    def __init__(self) -> None:
        self.pings: list[str] = []
        self.texts: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def url(self) -> str:
        """What a borgmatic config has as `ping_url`."""
        return f"http://127.0.0.1:{self._server.server_port}/check"

    def taken(self) -> list[str]:
        """The pings since the last call."""
        taken = list(self.pings)
        self.pings.clear()
        return taken

    def __enter__(self) -> Healthchecks:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        pings, texts = self.pings, self.texts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                texts.append(self.rfile.read(length).decode())
                path = self.path.partition("?")[0]
                state = path.removeprefix("/check").strip("/") or "success"
                # Since 2.0 borgmatic also sends what it has logged, by itself.
                if state != "log":
                    pings.append(state)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_HEAD = do_POST

            def log_message(self, *_: object) -> None:
                pass

        return Handler
