"""A client that writes, or asks, at a steady rate, and notes how long each answer takes.

A separate process for each, so that neither waits for the other or for the measured programs. As a
program: `python benchmarks/load.py insert|query URL RESULT`, until SIGTERM; writes a JSON list of
[begun, ended, answered, first row, rows], in seconds of the machine's monotonic clock.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import final
from urllib.parse import urlencode, urlsplit

INSERT, QUERY = "insert", "query"
INTERVAL_SECONDS = {INSERT: 0.005, QUERY: 0.05}
REQUEST_SECONDS = 60
BATCH_ROWS = 20
HOST = "zero-downtime"
ASKED = f'{{host="{HOST}"}} _time:1m | stats by (level) count() rows'


@dataclass(frozen=True)
class Request:
    """One request as the client saw it; moments are of the monotonic clock."""

    begun: float
    ended: float
    answered: bool
    first: int
    rows: int

    @property
    def milliseconds(self) -> float:
        """How long its answer took."""
        return (self.ended - self.begun) * 1000


@dataclass(frozen=True)
class Latency:
    """How long the answers to some requests took, in milliseconds."""

    median: float
    p99: float
    max: float

    @staticmethod
    def of(requests: Sequence[Request]) -> Latency:
        """Sum them up; raises ValueError for none."""
        took = sorted(request.milliseconds for request in requests)
        if not took:
            raise ValueError("no request was made")
        p99 = took[math.ceil(0.99 * len(took)) - 1]
        return Latency(statistics.median(took), p99, took[-1])


@final
class Client:
    """Runs the client of this `kind` at `url` during the context; then `requests` are what it saw."""

    def __init__(self, kind: str, url: str, result: Path) -> None:
        self._argv = [sys.executable, __file__, kind, url, str(result)]
        self._result = result
        self._child: subprocess.Popen[bytes] | None = None
        self.requests: list[Request] = []

    def __enter__(self) -> Client:
        self._child = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._child.stdout is not None
        if not self._child.stdout.readline():
            raise RuntimeError("the client's first request was not answered")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._child is not None
        self._child.terminate()
        self._child.communicate()
        if error is None:
            self.requests = [Request(*fields) for fields in json.loads(self._result.read_text())]

    def between(self, begun: float, ended: float) -> Latency:
        """Sum up the requests that were begun between two moments."""
        return Latency.of([one for one in self.requests if begun <= one.begun < ended])

    def acknowledged(self, before: float) -> set[int]:
        """Return the numbers of the rows that were acknowledged before a moment."""
        return {
            number
            for one in self.requests
            if one.answered and one.ended < before
            for number in range(one.first, one.first + one.rows)
        }

    @property
    def failed(self) -> int:
        """How many requests had no answer, or one other than 200."""
        return sum(not one.answered for one in self.requests)


def main(kind: str, url: str, result: str) -> None:
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    run = str(time.time_ns())
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=REQUEST_SECONDS)
    requests: list[Request] = []
    first, due = 0, time.monotonic()
    while not stopping:
        rows = BATCH_ROWS if kind == INSERT else 0
        body = _rows(run, first, rows) if rows else urlencode({"query": ASKED}).encode()
        begun = time.monotonic()
        answered = _ask(connection, kind, body)
        requests.append(Request(begun, time.monotonic(), answered, first, rows))
        if answered and len(requests) == 1:
            print("begun", flush=True)
        first += rows
        # At a rate of its own, as clients that don't wait for each other: after a slow answer, the next
        # comes at once.
        due = max(due + INTERVAL_SECONDS[kind], begun)
        time.sleep(max(0, due - time.monotonic()))
    fields = [[r.begun, r.ended, r.answered, r.first, r.rows] for r in requests]
    Path(result).write_text(json.dumps(fields))


def _rows(run: str, first: int, count: int) -> bytes:
    levels = ("info", "warn")
    lines = (
        {
            "_time": "0",
            "host": HOST,
            "run": run,
            "seq": str(number),
            "level": levels[number % 2],
            "_msg": f"request {number} took {number % 97}",
        }
        for number in range(first, first + count)
    )
    return "\n".join(map(json.dumps, lines)).encode()


def _ask(connection: http.client.HTTPConnection, kind: str, body: bytes) -> bool:
    path, content = {
        INSERT: ("/insert/jsonline?_stream_fields=host", "application/stream+json"),
        QUERY: ("/select/logsql/query", "application/x-www-form-urlencoded"),
    }[kind]
    try:
        connection.request("POST", path, body, {"Content-Type": content})
        response = connection.getresponse()
        response.read()
        return response.status == 200
    except (OSError, http.client.HTTPException):
        with contextlib.suppress(OSError):
            connection.close()
        return False


if __name__ == "__main__":
    main(*sys.argv[1:])
