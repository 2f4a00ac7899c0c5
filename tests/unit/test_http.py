"""VictoriaLogs over HTTP: what it answers, and what is made of an answer that is none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.parts.old_servers import DAYS, Version, old_server
from tests.parts.ports import free_port
from tests.parts.proxy import Proxy
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.victorialogs.http import Client, Refused, Unanswered

METRICS = """\
# of two tenants
vl_storage_rows{type="inmemory"} 7
vl_storage_rows{type="storage/small"} 1.2e+3
vm_app_version{version="victoria-logs-v1.26.0-x", short_version="v1.26.0"} 1
flag{name="retentionPeriod", value="4 \\"weeks\\"", is_set="true"} 1
"""


@contextmanager
def serving(
    *, status: int = 200, body: str = "OK", location: str = ""
) -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a server that answers all alike, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self.answer(f"POST {form} ".replace("  ", " "))

        def answer(self, how: str = "") -> None:
            asked.append(f"{how}{self.path} {self.headers.get('Authorization', '')}".strip())
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_healthy_is_who_says_ok() -> None:
    with serving() as (url, _):
        assert Client(f"{url}/").is_healthy()
    with serving(body="starting") as (url, _):
        assert not Client(url).is_healthy()
    with serving(status=503) as (url, _):
        assert not Client(url).is_healthy()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "no.such.host.invalid"])
def test_nobody_who_listens_is_not_healthy_and_not_an_error(host: str) -> None:
    assert not Client(f"http://{host}:{free_port()}").is_healthy()


def test_credentials_go_with_every_request() -> None:
    with serving() as (url, asked):
        client = Client(url, authorization="Basic b3BlcmF0b3I6c2VjcmV0")
        assert client.is_healthy()
        client.flush()
    token = "Basic b3BlcmF0b3I6c2VjcmV0"
    assert asked == [f"/health {token}", f"POST /internal/force_flush {token}"]


def test_a_refusal_says_what_was_asked_for() -> None:
    refused = r"/internal/force_flush answered with HTTP Error 401"
    with serving(status=401) as (url, _), pytest.raises(OperatorError, match=refused):
        Client(url).flush()


def test_the_internal_api_is_asked_by_post_because_newer_servers_refuse_all_else() -> None:
    with serving(body='["20260101", "20260102"]') as (url, asked):
        client = Client(url)
        client.flush()
        assert client.attached_days() == {"20260101", "20260102"}
        client.detach("20260101")
    assert asked == [
        "POST /internal/force_flush",
        "POST /internal/partition/list",
        "POST name=20260101 /internal/partition/detach",
    ]


@pytest.mark.parametrize("body", ["unsupported path", '{"a": 1}', "[1]", "null"])
def test_what_is_no_list_of_days_is_an_error(body: str) -> None:
    with serving(body=body) as (url, _), pytest.raises(OperatorError, match="with a list"):
        Client(url).attached_days()


def test_who_is_not_healthy_says_why() -> None:
    with serving() as (url, _):
        Client(url).require_healthy()
    with serving(status=404) as (url, _), pytest.raises(OperatorError, match="/health answered"):
        Client(url).require_healthy()
    with serving(body="<html>") as (url, _), pytest.raises(OperatorError, match="'<html>' and not"):
        Client(url).require_healthy()
    with pytest.raises(OperatorError, match=r"/health did not answer: .*refused"):
        Client(f"http://127.0.0.1:{free_port()}").require_healthy()


def test_metrics_tell_rows_version_and_flags() -> None:
    with serving(body=METRICS) as (url, _):
        client = Client(url)
        assert client.stored_rows() == 1207
        assert client.version() == "v1.26.0"
        assert client.flag("retentionPeriod") == r"4 \"weeks\""
        assert client.flag("unknown") == ""


def test_who_has_no_rows_to_tell_of_is_no_victorialogs() -> None:
    with serving(body="up 1\n") as (url, _):
        with pytest.raises(OperatorError, match="it is not VictoriaLogs"):
            Client(url).stored_rows()
        assert Client(url).version() == ""


def test_a_key_goes_in_a_form_to_what_it_guards_and_to_nothing_else() -> None:
    keys = {"metrics": "m & m", "force_flush": "f"}
    with serving(body=METRICS) as (url, asked):
        client = Client(url, keys=keys)
        assert client.stored_rows() == 1207
        client.flush()
        client.is_healthy()
    assert asked == [
        "POST authKey=m+%26+m /metrics",
        "POST authKey=f /internal/force_flush",
        "/health",
    ]


@pytest.mark.parametrize(("status", "names"), [(401, "auth_keys: metrics:"), (503, "")])
def test_metrics_that_need_a_key_name_the_option_for_it(status: int, names: str) -> None:
    with serving(status=status) as (url, _), pytest.raises(OperatorError) as caught:
        Client(url).stored_rows()
    assert f"/metrics answered with HTTP Error {status}" in caught.value.what
    assert names in caught.value.hint
    assert bool(names) is bool(caught.value.hint)


@pytest.mark.parametrize(("status", "may_be_ill"), [(502, True), (503, True), (404, False)])
def test_what_may_be_a_server_that_is_ill_is_told_from_what_is_another(
    status: int, *, may_be_ill: bool
) -> None:
    with serving(status=status) as (url, _), pytest.raises(OperatorError) as caught:
        Client(url).require_healthy()
    assert isinstance(caught.value, Unanswered) is may_be_ill


def test_where_nobody_listens_is_no_server_that_is_ill_and_one_that_hangs_up_may_be() -> None:
    with pytest.raises(OperatorError) as caught:
        Client(f"http://127.0.0.1:{free_port()}").require_healthy()
    assert not isinstance(caught.value, Unanswered)
    with socket.create_server(("127.0.0.1", 0)) as server:
        hangs_up = threading.Thread(target=lambda: server.accept()[0].close())
        hangs_up.start()
        with pytest.raises(Unanswered):
            Client(f"http://127.0.0.1:{server.getsockname()[1]}").require_healthy()
        hangs_up.join()


def test_a_password_is_not_taken_to_where_a_server_redirects_us() -> None:
    with serving() as (elsewhere, asked), serving(status=301, location=elsewhere) as (url, _):
        client = Client(url, authorization="Bearer secret", keys={"metrics": "key"})
        with pytest.raises(OperatorError, match=f"correct url: it is redirected to {elsewhere}"):
            client.require_healthy()
        with pytest.raises(OperatorError, match="HTTP Error 301"):
            client.stored_rows()
        assert not client.is_healthy()
    assert asked == []


def test_the_prefix_that_is_missing_in_url_is_named() -> None:
    body = 'missing -http.pathPrefix="/logs" in the requested path "/health"'
    with (
        serving(status=400, body=body) as (url, _),
        pytest.raises(OperatorError, match=r"have url end with VictoriaLogs' -http\.pathPrefix"),
    ):
        Client(url).require_healthy()


def test_a_proxy_that_knows_us_not_makes_health_name_the_option_too() -> None:
    with serving(status=401) as (url, _), pytest.raises(OperatorError) as caught:
        Client(url).require_healthy()
    assert caught.value.hint == "see http_auth:"


@pytest.mark.parametrize("prefix", ["", "/logs"])
def test_a_server_on_a_unix_socket_is_asked_like_any_other(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "x.sock"
    url = f"unix:{path}{':' if prefix else ''}{prefix}"
    client = Client(url, authorization="Bearer abc")
    assert not client.is_healthy()
    with pytest.raises(OperatorError, match=f"{path}:{prefix}/health did not answer: .*No such"):
        client.require_healthy()
    with serving(body=METRICS) as (behind, asked):
        port = int(behind.rpartition(":")[2])
        with Proxy(port, path=path, prefix=prefix, token="abc") as proxy:
            assert proxy.url == url
            assert client.stored_rows() == 1207
            with pytest.raises(OperatorError, match=r"see auth_keys: metrics: .*or http_auth:"):
                Client(url).stored_rows()
    assert asked == ["/metrics"]
    assert {request.host for request in proxy.asked} == {"localhost"}
    # The socket file is still there, and nobody listens.
    with pytest.raises(OperatorError, match=r"did not answer: .*refused") as caught:
        client.require_healthy()
    assert not isinstance(caught.value, Unanswered)
    assert not client.is_healthy()


@pytest.mark.parametrize("version", ["v1.31", "v1.44", "v1.53"])
def test_snapshots_are_made_and_listed_on_all_servers_that_have_them(version: Version) -> None:
    with old_server(version, key="p & p") as old:
        client = Client(old.url, keys={"partition_manage": "p & p"})
        (path,) = client.create_snapshot(DAYS[0], 5)
        assert path.startswith(f"/data/partitions/{DAYS[0]}/snapshots/")
        assert client.snapshots() == [path] == old.snapshots
        # A day that is not attached, or not any more.
        assert client.create_snapshot("20250101", 5) == []
        assert client.snapshots() == [path]


@pytest.mark.parametrize("version", ["v1.44", "v1.53"])
def test_servers_that_delete_snapshots_are_asked_to(version: Version) -> None:
    with old_server(version) as old:
        client = Client(old.url)
        (path,) = client.create_snapshot(DAYS[0], 5)
        client.delete_snapshot(path)
        assert client.snapshots() == []
        with pytest.raises(OperatorError, match=r"/snapshot/delete answered with HTTP Error 400"):
            client.delete_snapshot(path)


def test_a_server_that_has_no_snapshots_or_deletes_none_refuses_with_a_status() -> None:
    with old_server("v1.30") as old, pytest.raises(Refused) as caught:
        Client(old.url).snapshots()
    assert caught.value.status == 400
    with old_server("v1.31") as old:
        client = Client(old.url)
        (path,) = client.create_snapshot(DAYS[0], 5)
        with pytest.raises(Refused) as caught:
            client.delete_snapshot(path)
        assert caught.value.status == 400


@pytest.mark.parametrize("keys", [{}, {"partition_manage": "another"}])
def test_snapshots_that_need_a_key_name_the_option_for_it(keys: dict[str, str]) -> None:
    with old_server("v1.44", key="secret") as old:
        client = Client(old.url, keys=keys)
        for ask in (
            client.snapshots,
            lambda: client.create_snapshot(DAYS[0], 5),
            lambda: client.delete_snapshot("/x"),
        ):
            with pytest.raises(OperatorError) as caught:
                ask()
            assert "auth_keys: partition_manage:" in caught.value.hint
            assert "another" not in str(caught.value)
