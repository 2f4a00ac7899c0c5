"""VictoriaLogs over HTTP: is it healthy, and how many rows does it serve."""

from __future__ import annotations

import base64
import json
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException

from vl_borg_hooks.errors import OperatorError

REQUEST_SECONDS = 10
# What is guarded by a key of its own: the beginning of its path, and its option under `auth_keys:`.
_KEYS = {
    "/metrics": "metrics",
    "/internal/force_flush": "force_flush",
    "/internal/partition/": "partition_manage",
}
_METRIC_LINE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Unanswered(OperatorError):
    """What is there gives no answer, or can't serve (HTTP 5xx), as a proxy whose server is down."""


class Refused(OperatorError):
    """The answer is an HTTP `status` that is no success, and not the server's own failure."""

    def __init__(self, what: str, status: int, *, hint: str) -> None:
        super().__init__(what, hint=hint)
        self.status = status


class NotVictoriaLogs(OperatorError):
    """What answers is not VictoriaLogs, or one that has no data of its own."""


@dataclass(frozen=True)
class Metrics:
    """What `/metrics` answered: values by name and labels, as `vl_indexdb_parts{}`."""

    values: Mapping[str, str]

    def number(self, name: str, labels: str = "") -> int:
        """Return the value of the metric `name` with exactly these `labels`; raises OperatorError."""
        try:
            return int(float(self.values[f"{name}{{{labels}}}"]))
        except (KeyError, ValueError, OverflowError):
            raise OperatorError(f"/metrics of VictoriaLogs has no {name} with {labels!r}") from None


class Client:
    """A VictoriaLogs server at `url`, such as `http://127.0.0.1:9428`.

    `credentials` are a name and a password for HTTP basic authentication; `keys` are the keys by
    their option under `auth_keys:`.
    """

    def __init__(
        self,
        url: str,
        credentials: tuple[str, str] | None = None,
        keys: Mapping[str, str] | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._keys = keys or {}
        self._headers: dict[str, str] = {}
        if credentials:
            token = base64.b64encode(":".join(credentials).encode()).decode("ascii")
            self._headers["Authorization"] = f"Basic {token}"

    def is_healthy(self, seconds: float = REQUEST_SECONDS) -> bool:
        """Say whether `GET /health` answers OK within `seconds`."""
        try:
            return (
                self._is_listening(seconds)
                and self._request("/health", seconds=seconds).strip() == "OK"
            )
        except OperatorError:
            return False

    def require_healthy(self) -> None:
        """Raise OperatorError, which says why, unless `GET /health` answers OK.

        It is Unanswered if that may be a VictoriaLogs that is ill.
        """
        answer = self._request("/health").strip()
        if answer != "OK":
            raise NotVictoriaLogs(
                f"{self.url}/health answered with {answer[:40]!r} and not with OK"
            )

    def flush(self) -> None:
        """Make the server gather the rows that it has just received; raises OperatorError.

        Then it has less to do when it stops: some 5 % less, measured with 2,000 and with 100,000
        rows in memory. It may require a key for this (-forceFlushAuthKey), and refuse.
        """
        self._request("/internal/force_flush", post={})

    def attached_days(self) -> set[str]:
        """Return the names of the partitions that the server has attached.

        Since v1.31. It may require a key for this (-partitionManageAuthKey), and refuse. Raises
        OperatorError.
        """
        return set(self._list("/internal/partition/list"))

    def detach(self, day: str) -> None:
        """Detach the partition `day`; raises OperatorError. Waits for the queries that use it."""
        self._request("/internal/partition/detach", post={"name": day})

    def snapshots(self) -> list[str]:
        """Return the paths of all snapshots of the partitions, as the server sees them.

        Since v1.31. It may require a key for this (-partitionManageAuthKey), and refuse. Raises
        OperatorError.
        """
        return self._list("/internal/partition/snapshot/list")

    def create_snapshot(self, day: str, seconds: float) -> list[str]:
        """Make a snapshot of the partition `day`; return its path, or no path if it is not attached.

        v1.31 takes the day as `name`, v1.44 and newer as `partition_prefix`. The server deletes what it
        made if we have gone before it answers. Raises OperatorError, also after `seconds`.
        """
        form = {"name": day, "partition_prefix": day}
        return self._list("/internal/partition/snapshot/create", form, seconds=seconds)

    def delete_snapshot(self, path: str) -> None:
        """Delete the snapshot that the server calls `path`, since v1.44; raises OperatorError."""
        self._request("/internal/partition/snapshot/delete", post={"path": path})

    def stored_rows(self) -> int:
        """Return the rows of all tenants that the server has in its storage.

        By `vl_storage_rows`, because a query sees only the rows of one tenant. Raises OperatorError.
        """
        metrics = self._request("/metrics")
        values = [
            float(line["value"])
            for line in _METRIC_LINE.finditer(metrics)
            if line["name"] == "vl_storage_rows"
        ]
        if not values:
            raise NotVictoriaLogs(
                f"{self.url}/metrics has no vl_storage_rows: it is not VictoriaLogs, "
                "or one without data of its own"
            )
        return int(sum(values))

    def version(self) -> str:
        """Return the server's version such as `v1.26.0`, empty if it does not report it."""
        return self._labels("vm_app_version").get("short_version", "")

    def flag(self, name: str) -> str:
        """Return the value of the server's command-line flag `name`, empty if it has none."""
        metrics = self._request("/metrics")
        for line in _METRIC_LINE.finditer(metrics):
            labels: dict[str, str] = dict(_LABEL.findall(line["labels"] or ""))
            if line["name"] == "flag" and labels.get("name") == name:
                return labels.get("value", "")
        return ""

    def metrics(self) -> Metrics:
        """Return the server's metrics, up to a second old; raises OperatorError."""
        return Metrics(
            {
                f"{line['name']}{{{line['labels'] or ''}}}": line["value"]
                for line in _METRIC_LINE.finditer(self._request("/metrics"))
            }
        )

    def _list(
        self, path: str, form: Mapping[str, str] | None = None, *, seconds: float = REQUEST_SECONDS
    ) -> list[str]:
        """Return the list of texts that `path` answers with; raises OperatorError."""
        answer = self._request(path, post=form or {}, seconds=seconds)
        try:
            names = json.loads(answer)
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise OperatorError(f"{self.url}{path} did not answer with a list")
        return names

    def _labels(self, metric: str) -> dict[str, str]:
        for line in _METRIC_LINE.finditer(self._request("/metrics")):
            if line["name"] == metric:
                return dict(_LABEL.findall(line["labels"] or ""))
        return {}

    def _is_listening(self, seconds: float) -> bool:
        """Say whether connections are accepted at all.

        A refused connection costs almost nothing, and a server that starts needs the processor.
        """
        url = urllib.parse.urlsplit(self.url)
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
            with socket.create_connection((url.hostname, port), seconds):
                return True
        except (OSError, ValueError):
            return False

    def _request(
        self, path: str, *, post: Mapping[str, str] | None = None, seconds: float = REQUEST_SECONDS
    ) -> str:
        """Return the body of `GET path`, or of a POST of the form `post`.

        /internal/ takes no GET from v1.53 on. A key goes in the form of a POST, so that no log has
        it. Raises OperatorError if there is no good answer.
        """
        option = next((key for start, key in _KEYS.items() if path.startswith(start)), "")
        if key := self._keys.get(option):
            post = {**(post or {}), "authKey": key}
        form = None if post is None else urllib.parse.urlencode(post).encode()
        try:
            # The config takes http: and https: only.
            request = urllib.request.Request(  # noqa: S310
                self.url + path, data=form, headers=self._headers
            )
            # No proxy from the environment between us and a server that we manage.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(request, timeout=seconds) as response:
                body: bytes = response.read()
        except urllib.error.HTTPError as error:
            needs_key = error.code == HTTPStatus.UNAUTHORIZED and option
            is_ill = error.code >= HTTPStatus.INTERNAL_SERVER_ERROR
            what = f"{self.url}{path} answered with {error}"
            if is_ill:
                raise Unanswered(what) from None
            hint = f"see auth_keys: {option}: in the config, or http_auth:" if needs_key else ""
            raise Refused(what, error.code, hint=hint) from None
        except (OSError, HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            is_nobody = isinstance(reason, (ConnectionRefusedError, socket.gaierror))
            raise (OperatorError if is_nobody else Unanswered)(
                f"{self.url}{path} did not answer: {reason}"
            ) from None
        return body.decode("utf-8", "backslashreplace")
