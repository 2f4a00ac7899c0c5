"""A running VictoriaLogs (or its stand-in): the process, a client, and steady ingestion."""

from __future__ import annotations

import http.client
import json
import re
import signal
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import final
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import BaseHandler, HTTPSHandler, ProxyHandler, Request, build_opener

from tests.parts.processes import spawn
from tests.parts.waiting import wait_until

# Without this type the server takes the lines for a form, answers 200 and stores nothing.
_JSON_LINES = {"Content-Type": "application/stream+json"}
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}

# An account and a project in it: VictoriaLogs keeps the rows of each tenant apart.
Tenant = tuple[int, int]
NO_TENANT: Tenant = (0, 0)


class RequestRefused(Exception):
    """The server is not there, broke off, or answered with a status other than 200."""


class LogServer:
    """Client of a server at `url`; every method raises RequestRefused when it has no answer.

    `ca_file`, `headers` and `flush_key` are what a server with TLS, a password and -forceFlushAuthKey
    asks for.
    """

    def __init__(
        self,
        url: str,
        timeout: float = 30,
        *,
        ca_file: Path | None = None,
        headers: Mapping[str, str] | None = None,
        flush_key: str = "",
    ) -> None:
        self.url, self._timeout = url.rstrip("/"), timeout
        self._headers = dict(headers or {})
        self._flush_form = urlencode({"authKey": flush_key}).encode() if flush_key else None
        # A proxy from the environment must never see the requests to loopback.
        handlers: list[BaseHandler] = [ProxyHandler({})]
        if ca_file:
            handlers.append(HTTPSHandler(context=ssl.create_default_context(cafile=ca_file)))
        self._opener = build_opener(*handlers)

    def _request(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> str:
        request = Request(self.url + path, body, {**self._headers, **(headers or {})})
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                text: str = answer.read().decode()
                return text
        except HTTPError as error:
            detail = error.read().decode(errors="replace").strip()
            raise RequestRefused(f"{self.url}{path}: {error}: {detail}") from error
        except (URLError, OSError, http.client.HTTPException) as error:
            raise RequestRefused(f"{self.url}{path}: {error}") from error

    def healthy(self) -> bool:
        try:
            return self._request("/health") == "OK"
        except RequestRefused:
            return False

    def wait_healthy(self, timeout: float = 30) -> None:
        """TimeoutError unless the server says it is healthy within `timeout` seconds."""
        wait_until(self.healthy, timeout, f"{self.url} is healthy")

    def ingest(self, rows: Iterable[Mapping[str, object]], tenant: Tenant = NO_TENANT) -> None:
        """Send rows in one request; on return the server has acknowledged them (in memory)."""
        body = "\n".join(json.dumps({"_time": "0", **row}) for row in rows)
        headers = {**_JSON_LINES, **_of_tenant(tenant)}
        self._request("/insert/jsonline?_stream_fields=host", body.encode(), headers)

    def query(self, query: str, tenant: Tenant = NO_TENANT) -> list[dict[str, str]]:
        """All results of a LogsQL query, without a limit."""
        form = urlencode({"query": query}).encode()
        headers = {**_FORM, **_of_tenant(tenant)}
        answer = self._request("/select/logsql/query", form, headers)
        return [json.loads(line) for line in answer.splitlines()]

    def rows(self, query: str = "*", tenant: Tenant = NO_TENANT) -> list[dict[str, str]]:
        """All rows that match, those just ingested included."""
        self.flush()
        return self.query(query, tenant)

    def count(self, query: str = "*") -> int:
        """How many rows match, those just ingested included."""
        self.flush()
        return int(self.query(f"{query} | count() rows")[0]["rows"])

    def flush(self) -> None:
        """Make acknowledged rows visible to queries."""
        self._request("/internal/force_flush", self._flush_form)

    def merge(self) -> None:
        """Ask for all parts to be merged; the real server does so in the background."""
        self._request("/internal/force_merge")

    def detach(self, day: str) -> None:
        """Have it serve the partition of `day` no more; its directory stays."""
        self._request(f"/internal/partition/detach?name={day}", b"")

    @contextmanager
    def tail(self) -> Iterator[None]:
        """Have a live tail open in the block: the real server waits for it before it stops."""
        request = Request(f"{self.url}/select/logsql/tail?query=*", headers=self._headers)
        try:
            answer = self._opener.open(request, timeout=self._timeout)
        except (URLError, OSError, http.client.HTTPException) as error:
            raise RequestRefused(f"{request.full_url}: {error}") from error
        with answer:
            yield

    def storage_rows(self, where: str = "") -> int:
        """Rows stored, as the server's metrics say: all, or those in parts `where`, as "inmemory"."""
        pattern = rf"^vl_storage_rows\{{.*{where}.*\}} (\d+)"
        found = re.findall(pattern, self._request("/metrics"), re.MULTILINE)
        return sum(map(int, found))

    def is_read_only(self) -> bool:
        """Whether it takes no rows because its disk has too little space left, by its metrics."""
        pattern = r"^vl_storage_is_read_only\{.*\} 1$"
        return re.search(pattern, self._request("/metrics"), re.MULTILINE) is not None


def _of_tenant(tenant: Tenant) -> dict[str, str]:
    account, project = map(str, tenant)
    return {"AccountID": account, "ProjectID": project}


@final
class VictoriaLogsProcess:
    """A server as a plain child process on a loopback port; gone at the end of the context."""

    def __init__(
        self, executable: Path, data_path: Path, port: int, extra_flags: Sequence[str] = ()
    ) -> None:
        self.executable, self.data_path, self.port = executable, data_path, port
        self.extra_flags = tuple(extra_flags)
        self.log = data_path.with_name(f"{data_path.name}.log")
        self.server = LogServer(f"http://127.0.0.1:{port}")
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def argv(self) -> list[str]:
        return server_argv(self.executable, self.data_path, self.port, self.extra_flags)

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        """The process started last; RuntimeError if there was none."""
        return self._started().pid

    def start(self, timeout: float = 30) -> VictoriaLogsProcess:
        """Start and wait until healthy. RuntimeError with the log's end if it exits instead."""
        if self.running:
            raise RuntimeError(f"{self.executable} runs already")
        self._child = spawn(self.argv, self.log)

        def started() -> bool:
            if not self.running:
                end = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"exit status {self._started().returncode}: {end}")
            return self.server.healthy()

        wait_until(started, timeout, f"{self.server.url} is healthy")
        return self

    def stop(self, timeout: float = 30) -> int:
        """Stop cleanly (SIGTERM) and return the exit status; TimeoutExpired if it won't."""
        return self._end(signal.SIGTERM, timeout)

    def kill(self) -> int:
        """SIGKILL: what was in memory is lost. Returns the exit status."""
        return self._end(signal.SIGKILL, 10)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise RuntimeError(f"{self.executable} was never started")
        return self._child

    def _end(self, number: signal.Signals, timeout: float) -> int:
        child = self._started()
        if child.poll() is None:
            child.send_signal(number)
        return child.wait(timeout)

    def __enter__(self) -> VictoriaLogsProcess:
        return self if self.running else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.running:
            self.kill()


def server_argv(
    executable: Path, data_path: Path, port: int, extra_flags: Sequence[str] = ()
) -> list[str]:
    """The argument vector of a server on a loopback port.

    The retention is long, so that tests may use rows of any day, unless `extra_flags` says other.
    """
    return [
        str(executable),
        f"-storageDataPath={data_path}",
        f"-httpListenAddr=127.0.0.1:{port}",
        "-retentionPeriod=100y",
        *extra_flags,
    ]


@dataclass(frozen=True)
class Batch:
    """Rows that one request carried, and when the server had acknowledged it (monotonic time)."""

    sequence: range
    acknowledged: float


def steady_row(number: int) -> dict[str, object]:
    """A row as most tests want it: all are of one stream."""
    return {"host": "steady", "_msg": f"row {number}"}


@final
class SteadyIngestion:
    """A thread that sends numbered rows all the time, as an application would.

    Each row's `seq` field is its number; `row` makes the others of it. A refused batch is counted
    and never sent again, since the server may have taken it and only the answer was lost; its rows
    may be there or not.
    """

    def __init__(
        self,
        server: LogServer,
        batch: int = 10,
        interval: float = 0.02,
        row: Callable[[int], Mapping[str, object]] = steady_row,
        tenant: Tenant = NO_TENANT,
    ) -> None:
        self._server, self._batch, self._interval = server, batch, interval
        self._row, self.tenant = row, tenant
        self._acknowledged: list[Batch] = []
        self._refused = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def acknowledged(self) -> list[Batch]:
        """The batches acknowledged up to now, in order."""
        return list(self._acknowledged)

    @property
    def refused(self) -> int:
        """Requests that had no answer or one other than 200."""
        return self._refused

    def sequences(self, before: float | None = None) -> set[int]:
        """Numbers of the rows acknowledged before a moment of monotonic time (default: now)."""
        moment = time.monotonic() if before is None else before
        batches = [batch for batch in self.acknowledged if batch.acknowledged < moment]
        return {number for batch in batches for number in batch.sequence}

    def missing(self, rows: Iterable[Mapping[str, str]], before: float | None = None) -> set[int]:
        """Numbers acknowledged before that moment that are not among `rows`."""
        return self.sequences(before) - {int(row["seq"]) for row in rows}

    def wait_for(self, count: int, timeout: float = 30) -> None:
        """Wait until `count` more rows are acknowledged; TimeoutError after `timeout` seconds."""
        goal = len(self.sequences()) + count
        what = f"{count} more rows acknowledged"
        wait_until(lambda: len(self.sequences()) >= goal, timeout, what)

    def stop(self) -> None:
        """Send nothing more; the request under way is finished first."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        first = 0
        while not self._stopping.wait(self._interval):
            sequence = range(first, first + self._batch)
            rows = [{**self._row(number), "seq": str(number)} for number in sequence]
            first = sequence.stop
            try:
                self._server.ingest(rows, self.tenant)
            except RequestRefused:
                self._refused += 1
            else:
                self._acknowledged.append(Batch(sequence, time.monotonic()))

    def __enter__(self) -> SteadyIngestion:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


@final
class SteadyQueries:
    """A thread that asks the same all the time, as a dashboard would."""

    def __init__(self, server: LogServer, query: str, interval: float = 0.05) -> None:
        self._server, self._query, self._interval = server, query, interval
        self.answered = self.refused = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stopping.wait(self._interval):
            try:
                self._server.query(self._query)
            except RequestRefused:
                self.refused += 1
            else:
                self.answered += 1

    def __enter__(self) -> SteadyQueries:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join()


def doubled(rows: Iterable[Mapping[str, str]]) -> set[int]:
    """Numbers that more than one row carries."""
    counts = Counter(int(row["seq"]) for row in rows)
    return {number for number, times in counts.items() if times > 1}
