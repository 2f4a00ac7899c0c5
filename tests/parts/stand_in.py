#!/usr/bin/env python3
"""A stand-in for VictoriaLogs v1.51, for machines on which the real one can't be had.

It keeps VictoriaLogs' promises that a backup depends on (layout, lock, parts, what a stop writes,
what makes a start panic) and answers the few HTTP endpoints that the tests use. The contents of the
part files are its own: neither server can read the other's data. It causes no faults: the real one
can be made to show all of them.
"""

from __future__ import annotations

import calendar
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qs, urlsplit

VERSION = "victoria-logs-stand-in"
SECOND = 10**9  # in the unit of every timestamp here, nanoseconds
DAY = 86400 * SECOND

FLAGS = {
    "storageDataPath": "victoria-logs-data",
    "httpListenAddr": ":9428",
    "retentionPeriod": "7d",
    "futureRetention": "2d",
    "inmemoryDataFlushInterval": "5s",
    "version": "false",
}
UNITS = {"ms": 10**6, "s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND}
UNITS |= {"d": DAY, "w": 7 * DAY, "y": 365 * DAY, "": 31 * DAY}

# The names that the real server gives the files of a part. Those that the rows need no place in
# are written all the same, since a copy must bring each of them.
ROWS_FILE, TIMES_FILE = "values.bin0", "timestamps.bin"
DATA_FILES = (
    "bloom.bin0",
    "column_idxs.bin",
    "column_names.bin",
    "columns_header.bin",
    "columns_header_index.bin",
    "index.bin",
    "message_bloom.bin",
    "message_values.bin",
    "metaindex.bin",
    TIMES_FILE,
    ROWS_FILE,
)
STREAMS_FILE = "items.bin"
INDEX_FILES = ("index.bin", STREAMS_FILE, "lens.bin", "metaindex.bin")

Row = dict[str, str]
TimedRow = tuple[int, Row]


class Refused(Exception):
    """A request that the server answers with status 400 and this text."""


def panic(message: str) -> NoReturn:
    """End the process at once, as the real server does when its data cannot be trusted."""
    print(f"FATAL: {message}", file=sys.stderr, flush=True)
    os._exit(2)


def parse_duration(text: str) -> int:
    """`7d`, `100ms`; a bare number counts months, as for VictoriaLogs. ValueError if neither."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]*)", text)
    if match is None or match[2] not in UNITS:
        raise ValueError(f"not a duration: {text!r}")
    return int(float(match[1]) * UNITS[match[2]])


def parse_time(text: str) -> int:
    """An RFC 3339 time in UTC as Unix nanoseconds; ValueError if it is not one."""
    match = re.fullmatch(
        r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?Z",
        text,
    )
    if match is None:
        raise ValueError(f"not an RFC 3339 time in UTC: {text!r}")
    seconds = calendar.timegm(tuple(int(match[i]) for i in range(1, 7)))
    return seconds * SECOND + int((match[7] or "0").ljust(9, "0"))


def format_time(timestamp: int) -> str:
    """Unix nanoseconds as VictoriaLogs prints them: RFC 3339, no trailing zeros."""
    seconds, nanoseconds = divmod(timestamp, SECOND)
    fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"


def day_of(timestamp: int) -> str:
    """The name of the partition that a row of this time belongs to."""
    return time.strftime("%Y%m%d", time.gmtime(timestamp // SECOND))


def replace_file(path: Path, text: str) -> None:
    """Write `path` so that a reader sees the old text or the new text, never a piece."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def flatten(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The fields of one JSON line: all values become strings, empty ones count as absent."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from flatten(item, f"{prefix}{key}.")
        elif item is not None and item != "":
            yield prefix + key, item if isinstance(item, str) else json.dumps(item)


def metadata_of(part: Path) -> dict[str, Any]:
    """The part's metadata.json; panics if it can't be read."""
    try:
        metadata: dict[str, Any] = json.loads((part / "metadata.json").read_text())
        return metadata
    except (OSError, ValueError) as error:
        panic(f"cannot read the metadata of part {part}: {error}")


def write_part(
    directory: Path, names: Iterable[str], contents: dict[str, bytes], metadata: dict[str, Any]
) -> int:
    """Write one part directory; returns the bytes of its files, without metadata.json."""
    directory.mkdir(mode=0o755)
    size = 0
    for name in names:
        data = contents.get(name, directory.name.encode())
        (directory / name).write_bytes(data)
        size += len(data)
    if "RowsCount" in metadata:
        metadata = {"FormatVersion": 3, "CompressedSizeBytes": size, **metadata}
    (directory / "metadata.json").write_text(json.dumps(metadata, separators=(",", ":")))
    return size


class PartNames:
    """Names of parts: sixteen upper-case hexadecimal digits, never the same twice."""

    def __init__(self) -> None:
        self._last = time.time_ns()

    def next(self) -> str:
        self._last += 1
        return f"{self._last:016X}"


@dataclass
class Partition:
    """One day: rows in memory, parts on disk with their rows kept in memory too for queries."""

    path: Path
    names: PartNames
    memory: list[TimedRow] = field(default_factory=list)
    parts: dict[str, list[TimedRow]] = field(default_factory=dict)
    index_parts: list[str] = field(default_factory=list)
    streams: set[str] = field(default_factory=set)

    def create(self) -> None:
        for kind in ("datadb", "indexdb"):
            (self.path / kind).mkdir(parents=True)
            replace_file(self.path / kind / "parts.json", "[]")

    def open(self) -> None:
        """Read what is on disk. A listed part must be whole; an unlisted one is removed."""
        for name in self._listed("datadb"):
            self.parts[name] = self._read_rows(self.path / "datadb" / name)
        for name in self._listed("indexdb"):
            self.index_parts.append(name)
            metadata_of(self.path / "indexdb" / name)
            streams = (self.path / "indexdb" / name / STREAMS_FILE).read_text()
            self.streams.update(streams.splitlines())

    def _listed(self, kind: str) -> list[str]:
        directory = self.path / kind
        try:
            names: list[str] = json.loads((directory / "parts.json").read_text()) or []
        except (OSError, ValueError) as error:
            panic(f"cannot read {directory / 'parts.json'}: {error}")
        for name in names:
            if not (directory / name).is_dir():
                panic(f"part {directory / name} is listed in parts.json and missing")
        for entry in directory.iterdir():
            if entry.is_dir() and entry.name not in names:
                shutil.rmtree(entry)
        return names

    def _read_rows(self, part: Path) -> list[TimedRow]:
        metadata_of(part)
        lines = (part / ROWS_FILE).read_text().splitlines()
        times = (part / TIMES_FILE).read_text().split()
        return [(int(t), json.loads(line)) for t, line in zip(times, lines, strict=True)]

    def rows(self) -> Iterator[TimedRow]:
        for rows in self.parts.values():
            yield from rows
        yield from self.memory

    def flush(self) -> None:
        """Write the rows in memory as a new part."""
        if not self.memory:
            return
        self._write_streams()
        name = self.names.next()
        self._write_rows(name, self.memory)
        self.parts[name], self.memory = self.memory, []
        self._list_parts()

    def merge(self) -> None:
        """Rewrite all parts into one; the old ones vanish once parts.json no longer has them."""
        if len(self.parts) < 2:
            return
        old, name = self.parts, self.names.next()
        rows = sorted((row for part in old.values() for row in part), key=lambda row: row[0])
        self._write_rows(name, rows)
        self.parts = {name: rows}
        self._list_parts()
        for gone in old:
            shutil.rmtree(self.path / "datadb" / gone)

    def _list_parts(self) -> None:
        replace_file(self.path / "datadb" / "parts.json", json.dumps(list(self.parts)))

    def _write_rows(self, name: str, rows: list[TimedRow]) -> None:
        lines = [json.dumps(row, separators=(",", ":")) + "\n" for _, row in rows]
        contents = {
            ROWS_FILE: "".join(lines).encode(),
            TIMES_FILE: " ".join(str(timestamp) for timestamp, _ in rows).encode(),
        }
        metadata = {
            "UncompressedSizeBytes": sum(map(len, lines)),
            "RowsCount": len(rows),
            "BlocksCount": 1,
            "MinTimestamp": min(timestamp for timestamp, _ in rows),
            "MaxTimestamp": max(timestamp for timestamp, _ in rows),
            "BloomValuesShardsCount": 1,
        }
        write_part(self.path / "datadb" / name, DATA_FILES, contents, metadata)

    def _write_streams(self) -> None:
        new = sorted({row["_stream"] for _, row in self.memory} - self.streams)
        if not new:
            return
        name = self.names.next()
        contents = {STREAMS_FILE: "\n".join(new).encode()}
        metadata = {
            "ItemsCount": 3 * len(new),  # the real index has three items for a stream of one field
            "BlocksCount": 1,
            "FirstItem": new[0].encode().hex(),
            "LastItem": new[-1].encode().hex(),
        }
        write_part(self.path / "indexdb" / name, INDEX_FILES, contents, metadata)
        self.streams.update(new)
        self.index_parts.append(name)
        replace_file(self.path / "indexdb" / "parts.json", json.dumps(self.index_parts))


class Storage:
    """The data directory. Its methods may be called from any thread."""

    def __init__(self, path: Path, retention: int, future_retention: int) -> None:
        self._path, self._retention, self._future = path, retention, future_retention
        self._guard = threading.Lock()
        self._names = PartNames()
        self._partitions: dict[str, Partition] = {}

    def open(self) -> None:
        """Take the lock, drop partitions that are past the retention, read the others."""
        directory = self._path / "partitions"
        directory.mkdir(parents=True, exist_ok=True)
        # Never closed: the lock is held until the process is gone.
        self._lock = (self._path / "flock.lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            panic(f"cannot lock {self._lock.name}; is another server running on it? {error}")
        now = time.time_ns()
        for entry in sorted(directory.iterdir()):
            if entry.name.startswith("."):
                continue
            if entry.is_dir() and not any(entry.iterdir()):
                entry.rmdir()
                continue
            if not re.fullmatch(r"\d{8}", entry.name):
                panic(f"unexpected name of a partition: {entry}")
            if not day_of(now - self._retention) <= entry.name <= day_of(now + self._future):
                shutil.rmtree(entry)
                continue
            partition = Partition(entry, self._names)
            partition.open()
            self._partitions[entry.name] = partition

    def add(self, rows: Iterable[TimedRow]) -> None:
        """Take rows into memory; those outside the retention are dropped."""
        now = time.time_ns()
        with self._guard:
            for timestamp, row in rows:
                day = day_of(timestamp)
                if not day_of(now - self._retention) <= day <= day_of(now + self._future):
                    continue
                if day not in self._partitions:
                    partition = Partition(self._path / "partitions" / day, self._names)
                    partition.create()
                    self._partitions[day] = partition
                self._partitions[day].memory.append((timestamp, row))

    def flush(self) -> None:
        with self._guard:
            for partition in self._partitions.values():
                partition.flush()

    def merge(self) -> None:
        with self._guard:
            for partition in self._partitions.values():
                partition.merge()

    def rows(self) -> list[TimedRow]:
        with self._guard:
            return [row for partition in self._partitions.values() for row in partition.rows()]

    def counts(self) -> tuple[int, int, int]:
        """Rows in memory, rows on disk, partitions."""
        with self._guard:
            partitions = self._partitions.values()
            memory = sum(len(partition.memory) for partition in partitions)
            disk = sum(len(rows) for partition in partitions for rows in partition.parts.values())
            return memory, disk, len(partitions)


def parse_rows(body: bytes, arguments: dict[str, str]) -> list[TimedRow]:
    """The rows of a jsonline request; Refused if a line is not a JSON object with a time."""
    stream_fields = [name for name in arguments.get("_stream_fields", "").split(",") if name]
    rows = []
    for line in body.splitlines():
        if not line.strip():
            continue
        try:
            row = dict(flatten(json.loads(line)))
            given = row.pop("_time", "0")
            timestamp = time.time_ns() if given == "0" else parse_time(given)
        except (ValueError, AttributeError) as error:
            raise Refused(f"cannot parse JSON line {line!r}: {error}") from error
        tags = ",".join(f"{n}={json.dumps(row[n])}" for n in sorted(stream_fields) if n in row)
        row["_stream"] = "{" + tags + "}"
        row["_stream_id"] = "0" * 16 + hashlib.md5(tags.encode()).hexdigest()
        row.setdefault("_msg", "missing _msg field")
        rows.append((timestamp, row))
    return rows


def select(rows: list[TimedRow], query: str) -> list[Row]:
    """The answer to the two LogsQL queries that are understood; Refused for all others."""
    if query == "* | count() rows":
        return [{"rows": str(len(rows))}]
    if query != "*":
        raise Refused(f"the stand-in doesn't know the query {query!r}")
    first = ("_stream_id", "_stream", "_msg")
    answer = []
    for timestamp, row in rows:
        ordered = {"_time": format_time(timestamp)} | {name: row[name] for name in first}
        answer.append(ordered | {name: row[name] for name in sorted(row) if name not in first})
    return answer


def metrics(storage: Storage, flags: dict[str, str], given: set[str]) -> str:
    """The metrics that the tests and the hooks read, in the real server's form."""
    memory, disk, partitions = storage.counts()
    lines = [
        f'vm_app_version{{version="{VERSION}", short_version="{VERSION}"}} 1',
        f'vl_storage_rows{{type="storage/inmemory"}} {memory}',
        f'vl_storage_rows{{type="storage/small"}} {disk}',
        'vl_storage_rows{type="storage/big"} 0',
        f"vl_partitions {partitions}",
    ]
    for name, value in sorted(flags.items()):
        is_set = str(name in given).lower()
        lines.append(f'flag{{name="{name}", value={json.dumps(value)}, is_set="{is_set}"}} 1')
    return "\n".join(lines) + "\n"


class Server(ThreadingHTTPServer):
    # Not daemons: closing the server waits for the requests under way, so that what is
    # acknowledged is in memory before the last flush.
    daemon_threads = False
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], storage: Storage, flags: dict[str, str], given: set[str]
    ) -> None:
        super().__init__(address, Handler)
        self.storage, self.flags, self.given = storage, flags, given


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 7  # seconds; the real server's -http.maxGracefulShutdownDuration

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def log_message(self, format: str, *args: object) -> None:
        """The real server doesn't log requests."""

    def _handle(self) -> None:
        try:
            status, answer = 200, self._answer()
        except Refused as error:
            status, answer = 400, f"{error}\n"
        except LookupError:
            status, answer = 404, "unsupported path requested\n"
        data = answer.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _answer(self) -> str:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        arguments = url.query
        # Go parses a body of this type as a form; the real server then finds no rows in it.
        if self.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded"):
            arguments, body = f"{arguments}&{body.decode(errors='replace')}", b""
        values = {name: given[-1] for name, given in parse_qs(arguments).items()}
        storage = self.server.storage
        if url.path == "/health":
            return "OK"
        if url.path == "/metrics":
            return metrics(storage, self.server.flags, self.server.given)
        if url.path == "/internal/force_flush":
            storage.flush()
        elif url.path == "/internal/force_merge":
            storage.flush()
            storage.merge()
        elif url.path == "/insert/jsonline" and self.command == "POST":
            storage.add(parse_rows(body, values))
        elif url.path == "/select/logsql/query":
            found = select(storage.rows(), values.get("query", ""))
            return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in found)
        else:
            raise LookupError(url.path)
        return ""


def parse_flags(arguments: list[str]) -> tuple[dict[str, str], set[str]]:
    """All flags with their values, and the names of those given. Exits 2 for an unknown flag."""
    flags, given = dict(FLAGS), set()
    for argument in arguments:
        name, separator, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or name not in flags:
            print(f"flag provided but not defined: {argument}", file=sys.stderr)
            sys.exit(2)
        flags[name] = value if separator else "true"
        given.add(name)
    return flags, given


def main() -> int:
    flags, given = parse_flags(sys.argv[1:])
    if flags["version"] != "false":
        print(VERSION)
        return 0
    print(f"{VERSION}: a stand-in for tests, not VictoriaLogs", file=sys.stderr, flush=True)

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    storage = Storage(
        Path(flags["storageDataPath"]),
        parse_duration(flags["retentionPeriod"]),
        parse_duration(flags["futureRetention"]),
    )
    storage.open()
    host, _, port = flags["httpListenAddr"].rpartition(":")
    server = Server((host, int(port)), storage, flags, given)
    serving = threading.Thread(target=server.serve_forever, args=(0.05,))
    serving.start()
    print(f"started server at http://{flags['httpListenAddr']}/", file=sys.stderr, flush=True)
    interval = parse_duration(flags["inmemoryDataFlushInterval"]) / SECOND
    while not stop.wait(interval):
        storage.flush()
    server.shutdown()
    serving.join()
    server.server_close()
    storage.flush()
    print("stopped", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
