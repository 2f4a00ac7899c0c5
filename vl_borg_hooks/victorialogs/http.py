"""VictoriaLogs over HTTP: is it healthy, and how many rows does it serve."""

from __future__ import annotations

import json
import re
import socket
import ssl
import urllib.parse
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system import addresses, tls
from vl_borg_hooks.system.hosts import Host
from vl_borg_hooks.system.local import LocalHost

REQUEST_SECONDS = 10
# What is guarded by a key of its own: the beginning of its path, and its option under `auth_keys:`.
_KEYS = {
    "/metrics": "metrics",
    "/internal/force_flush": "force_flush",
    "/internal/partition/": "partition_manage",
}
# What VictoriaLogs says in an answer with status 400.
_NOT_ATTACHED = "because it is missing"
_NO_PREFIX = "missing -http.pathPrefix"
_METRIC_LINE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Unanswered(OperatorError):
    """What is there gives no answer, or can't serve (HTTP 5xx), as a proxy whose server is down."""


class Refused(OperatorError):
    """The answer is an HTTP `status` that is no success, and not the server's own failure.

    `answer` is the text that came with it.
    """

    def __init__(self, what: str, status: int, *, hint: str, answer: str) -> None:
        super().__init__(what, hint=hint)
        self.status = status
        self.answer = answer


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


@dataclass(frozen=True)
class Flush:
    """A flush of the server's buffers `at` time.monotonic(), and what was known of it before that.

    That is its metrics, its attached days, and its process on its host, None if that is not known.
    """

    at: float
    before: Metrics
    days: Collection[str]
    process: int | None


class Client:
    """A VictoriaLogs server at `url`, such as `http://127.0.0.1:9428`, as seen from `host`.

    `authorization` is the content of that header; `keys` are the keys by their option under
    `auth_keys:`; `ca_file` has the certificates that are trusted, if not those that this machine
    trusts. Raises OperatorError if that file can't be used.
    """

    def __init__(
        self,
        url: str,
        *,
        authorization: str = "",
        keys: Mapping[str, str] | None = None,
        ca_file: str = "",
        host: Host | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._address = addresses.parse(self.url)
        self._tls = tls.context(ca_file) if self._address.is_tls else None
        self._host = host or LocalHost()
        self._keys = keys or {}
        self._headers = {
            "Host": self._address.authority,
            "Connection": "close",
            "User-Agent": "vl-borg-hooks",
        }
        if authorization:
            self._headers["Authorization"] = authorization

    def is_healthy(self, seconds: float = REQUEST_SECONDS) -> bool:
        """Say whether `GET /health` answers OK within `seconds`.

        A refused connection costs almost nothing: a server that starts needs the processor.
        """
        try:
            return self._request("/health", seconds=seconds).strip() == "OK"
        except OperatorError:
            return False

    def require_healthy(self) -> None:
        """Raise OperatorError, which says why, unless `GET /health` answers OK.

        It is Unanswered if that may be a VictoriaLogs that is ill.
        """
        answer = self._request("/health").strip()
        if answer != "OK":
            raise NotVictoriaLogs(
                f"{self._named('/health')} answered with {answer[:40]!r} and not with OK"
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

        v1.31 takes the day as `name`, and refuses one that is not attached; v1.44 and newer take
        `partition_prefix`. The server deletes what it made if we have gone before it answers. Raises
        OperatorError, also after `seconds`.
        """
        path = "/internal/partition/snapshot/create"
        form = {"name": day, "partition_prefix": day}
        try:
            return self._list(path, form, seconds=seconds)
        except Refused as refused:
            if _NOT_ATTACHED in refused.answer:
                return []
            raise

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
                f"{self._named('/metrics')} has no vl_storage_rows: it is not VictoriaLogs, "
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
        """Return the list of texts that `path` answers with; raises OperatorError.

        A text alone is a list of one: v1.31 makes one snapshot and answers with its path.
        """
        answer = self._request(path, post=form or {}, seconds=seconds)
        try:
            names = json.loads(answer)
        except (ValueError, RecursionError):
            names = None
        if isinstance(names, str):
            names = [names]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise OperatorError(f"{self._named(path)} did not answer with a list")
        return names

    def _labels(self, metric: str) -> dict[str, str]:
        for line in _METRIC_LINE.finditer(self._request("/metrics")):
            if line["name"] == metric:
                return dict(_LABEL.findall(line["labels"] or ""))
        return {}

    def _request(
        self, path: str, *, post: Mapping[str, str] | None = None, seconds: float = REQUEST_SECONDS
    ) -> str:
        """Return the body of `GET path`, or of a POST of the form `post`.

        /internal/ takes no GET from v1.53 on. A key goes in the form of a POST, so that no log has
        it. A redirection is not followed: it could take our password elsewhere. Raises OperatorError
        if there is no good answer.
        """
        option = next((key for start, key in _KEYS.items() if path.startswith(start)), "")
        if key := self._keys.get(option):
            post = {**(post or {}), "authKey": key}
        form, headers = None, self._headers
        if post is not None:
            form = urllib.parse.urlencode(post).encode()
            headers = {**headers, "Content-Type": "application/x-www-form-urlencoded"}
        connection = HTTPConnection("")
        try:
            connection.sock = self._connect(seconds)
            method = "GET" if form is None else "POST"
            connection.request(method, self._address.prefix + path, form, headers)
            response = connection.getresponse()
            body = response.read().decode("utf-8", "backslashreplace")
        except ssl.SSLCertVerificationError as error:
            raise OperatorError(
                f"the certificate at {self.url} is not trusted: {error.verify_message}",
                hint=tls.what_to_do(error),
            ) from None
        except (OSError, HTTPException, ValueError) as error:
            is_nobody = isinstance(
                error, (ConnectionRefusedError, FileNotFoundError, socket.gaierror)
            )
            # So ssh does for an address where nobody listens, or that it may not reach.
            is_end = isinstance(error, (ConnectionResetError, BrokenPipeError))
            reason = "the connection was closed" if is_end else error
            raise (OperatorError if is_nobody else Unanswered)(
                f"{self._named(path)} did not answer: {reason}"
            ) from None
        finally:
            connection.close()
        if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
            what = (
                f"{self._named(path)} answered with HTTP Error {response.status}: {response.reason}"
            )
            if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise Unanswered(what)
            hint = self._what_to_do(option, response, body)
            raise Refused(what, response.status, hint=hint, answer=body)
        return body

    def _connect(self, seconds: float) -> socket.socket:
        """Return a connection to the server; raises OSError or OperatorError."""
        connection = self._host.connection(self._address, seconds)
        if self._tls is None:
            return connection
        try:
            return self._tls.wrap_socket(connection, server_hostname=self._address.host)
        except BaseException:
            connection.close()
            raise

    def _named(self, path: str) -> str:
        """Return the URL of `path`; of a unix socket, that has a colon between the two paths."""
        is_bare_socket = self._address.path and not self._address.prefix
        return f"{self.url}{':' if is_bare_socket else ''}{path}"

    def _what_to_do(self, option: str, response: HTTPResponse, body: str) -> str:
        """Return what to do about an answer that is a refusal, empty if it does not tell."""
        location = response.getheader("Location")
        if location:
            return f"correct url: it is redirected to {location}"
        if response.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return f"see {f'auth_keys: {option}: in the config, or ' if option else ''}http_auth:"
        return "have url end with VictoriaLogs' -http.pathPrefix" if _NO_PREFIX in body else ""
