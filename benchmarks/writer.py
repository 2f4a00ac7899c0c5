"""A client that writes a row every few milliseconds, and so measures how long it has no answer.

A separate process, so that the measured programs do not disturb it. As a program:
`python benchmarks/writer.py URL RESULT`, until SIGTERM; writes a JSON list of [seconds, answered].
"""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import final
from urllib.parse import urlsplit

INTERVAL_SECONDS = 0.005
REQUEST_SECONDS = 60
# How long it writes before and after what is measured: a window is between two answers of a server
# that is steadily written to, and the second comes some time after it is healthy.
MARGIN_SECONDS = 0.3


@dataclass(frozen=True)
class Window:
    """What the client saw: seconds without an answer, and how many requests were refused."""

    seconds: float
    refused: int


@final
class Writer:
    """Runs the client at `url` during the context; afterwards `window` is what it saw."""

    def __init__(self, url: str, result: Path) -> None:
        self._url, self._result = url, result
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Writer:
        self._result.unlink(missing_ok=True)
        argv = [sys.executable, __file__, self._url, str(self._result)]
        self._child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._child.stdout is not None
        if not self._child.stdout.readline():
            raise RuntimeError("the client's first row was not taken")
        time.sleep(MARGIN_SECONDS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._child is not None
        time.sleep(MARGIN_SECONDS)
        self._child.terminate()
        self._child.communicate()

    @property
    def window(self) -> Window:
        """From the last answer before the first refusal to the first answer after the last one."""
        answers: list[tuple[float, bool]] = json.loads(self._result.read_text())
        refused = [moment for moment, answered in answers if not answered]
        if not refused:
            raise RuntimeError("the client was never refused: VictoriaLogs was not stopped")
        before = [moment for moment, answered in answers if answered and moment < refused[0]]
        after = [moment for moment, answered in answers if answered and moment > refused[-1]]
        if not before or not after:
            raise RuntimeError("the client was refused at its beginning or its end")
        return Window(after[0] - before[-1], len(refused))


def main(url: str, result: str) -> None:
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    address = urlsplit(url).netloc
    path = "/insert/jsonline?_stream_fields=host"
    headers = {"Content-Type": "application/stream+json"}
    row = json.dumps({"_time": "0", "_msg": "a row of the client", "host": "client"}).encode()
    answers: list[tuple[float, bool]] = []
    connection = http.client.HTTPConnection(address, timeout=REQUEST_SECONDS)
    while not stopping:
        try:
            connection.request("POST", path, row, headers)
            response = connection.getresponse()
            response.read()
            answered = response.status == 200
        except (OSError, http.client.HTTPException):
            answered = False
            with contextlib.suppress(OSError):
                connection.close()
        if answered and not answers:
            print("writing", flush=True)
        answers.append((time.monotonic(), answered))
        # It is the measure itself: one request every INTERVAL_SECONDS.
        time.sleep(INTERVAL_SECONDS)
    Path(result).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
