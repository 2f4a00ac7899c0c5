"""Where a server listens: what `url:` in the config says."""

from __future__ import annotations

import os
import re
import socket
import urllib.parse
from dataclasses import dataclass

# unix(7): what a socket's path may have.
LONGEST_SOCKET_PATH = 107
_PORTS = {"http": 80, "https": 443}
# As nginx writes it: the path of the socket, and after another colon what paths in it begin with.
_UNIX = re.compile(r"unix:(?P<path>/[^\s:?#]+)(?::(?P<prefix>/[^\s?#]*)?)?")
_HTTP = re.compile(r"https?://[^\s/?#@]+(?:/[^\s?#]*)?")


@dataclass(frozen=True)
class Address:
    """A server over HTTP, on a TCP port or on a unix socket."""

    # What the header `Host` says, and whose certificate it is.
    authority: str
    host: str
    port: int
    # The path of the unix socket; empty for a TCP port.
    path: str
    is_tls: bool
    # What all paths of its API begin with, without a slash at its end.
    prefix: str

    @property
    def target(self) -> str:
        """What ssh(1) takes for it after `-L local:`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.path or f"{host}:{self.port}"

    def connect(self, seconds: float) -> socket.socket:
        """Return a connection to it from this machine, with a time limit; raises OSError."""
        if self.path:
            return unix_connection(self.path, seconds)
        return socket.create_connection((self.host, self.port), seconds)


def parse(url: str) -> Address:
    """Return what `url` says; raises ValueError, which says what is wrong with it."""
    unix = _UNIX.fullmatch(url)
    if unix:
        if len(os.fsencode(unix["path"])) > LONGEST_SOCKET_PATH:
            raise ValueError(f"must have a path of at most {LONGEST_SOCKET_PATH} bytes")
        prefix = (unix["prefix"] or "").rstrip("/")
        return Address("localhost", "", 0, unix["path"], is_tls=False, prefix=prefix)
    wrong = ValueError(
        "must be the address of VictoriaLogs, such as http://127.0.0.1:9428 or "
        "unix:/run/victorialogs.sock"
    )
    if not (_HTTP.fullmatch(url) and url.isascii()):
        raise wrong
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong from None
    if not parts.hostname or port == 0:
        raise wrong
    return Address(
        authority=parts.netloc,
        host=parts.hostname,
        port=port or _PORTS[parts.scheme],
        path="",
        is_tls=parts.scheme == "https",
        prefix=parts.path.rstrip("/"),
    )


def unix_connection(path: str, seconds: float) -> socket.socket:
    """Return a connection to the unix socket `path`, with a time limit; raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(seconds)
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection
