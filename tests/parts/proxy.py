"""A real proxy in front of a VictoriaLogs: on a port or a unix socket, perhaps with a bearer token."""

from __future__ import annotations

import http.client
import socket
import socketserver
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import final


@dataclass(frozen=True)
class Asked:
    """A request that came, whether it was passed on or not."""

    method: str
    path: str
    host: str


@final
class Proxy:
    """Passes requests on to the server on `port` of loopback, which it takes for its own `prefix`.

    It listens on the unix socket `path`, or without it on a port. Who has not the `token` gets 401.
    """

    def __init__(
        self, port: int, *, path: Path | None = None, prefix: str = "", token: str = ""
    ) -> None:
        self.asked: list[Asked] = []
        self._server = _Server(str(path) if path else ("127.0.0.1", 0), _handler(self, port))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.prefix, self.token = prefix, token
        address = f"unix:{path}" if path else f"http://127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{address}{':' if path and prefix else ''}{prefix}"

    def __enter__(self) -> Proxy:
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


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(
        self, address: str | tuple[str, int], handler: type[BaseHTTPRequestHandler]
    ) -> None:
        self.address_family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        super().__init__(address, handler)  # type: ignore[arg-type]

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        connection, _ = self.socket.accept()
        return connection, ("", 0)


def _handler(proxy: Proxy, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            proxy.asked.append(Asked(self.command, self.path, self.headers.get("Host", "")))
            if proxy.token and self.headers.get("Authorization") != f"Bearer {proxy.token}":
                self.send_error(401)
                return
            if not self.path.startswith(f"{proxy.prefix}/"):
                self.send_error(404)
                return
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            headers = {"Content-Type": self.headers["Content-Type"]} if body else {}
            try:
                path = self.path.removeprefix(proxy.prefix)
                upstream.request(self.command, path, body or None, headers)
                answer = upstream.getresponse()
                content = answer.read()
            except OSError:
                self.send_error(502)
                return
            finally:
                upstream.close()
            self.send_response(answer.status)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = pass_on

        def log_message(self, *_: object) -> None: ...

    return Handler
