"""How the real VictoriaLogs is reached: TLS, path prefix, password, keys, proxies, over ssh."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.parts import certificates
from tests.parts.guarded import SECRETS, Guarded, guarded
from tests.parts.ports import free_port
from tests.parts.proxy import Proxy
from tests.parts.sshd import Sshd
from tests.parts.victoria_logs import VictoriaLogsProcess
from tests.parts.waiting import wait_until
from tests.setup.victoria_logs import Found
from tests.support import make_backup
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system.ssh import SshHost
from vl_borg_hooks.victorialogs import snapshots
from vl_borg_hooks.victorialogs.http import Client, Refused

pytestmark = pytest.mark.real_victorialogs
ROWS = [
    {"host": "a", "_msg": "one", "_time": "2026-01-02T00:00:00Z"},
    {"host": "a", "_msg": "two", "_time": "2026-01-03T00:00:00Z"},
]


@contextlib.contextmanager
def running(
    found: Found, directory: Path, flags: list[str], guard: Guarded | None = None
) -> Iterator[VictoriaLogsProcess]:
    port = guard.port if guard else free_port()
    server = VictoriaLogsProcess(found.path, directory / "data", port, flags)
    if guard:
        server.server = guard.server
    with server:
        server.server.ingest(ROWS)
        yield server


def all_works(client: Client) -> None:
    """Ask for all that a client can be asked for."""
    client.require_healthy()
    assert client.is_healthy()
    client.flush()
    assert client.version().startswith("v")
    assert client.flag("retentionPeriod") == "100y"
    assert client.stored_rows() == 2
    assert client.metrics().number("vl_partitions") == 2
    assert client.attached_days() == {"20260102", "20260103"}
    (path,) = client.create_snapshot("20260102", 10)
    assert snapshots.at(path).day == "20260102"
    assert Path(path).is_dir()
    assert client.snapshots() == [path]
    client.delete_snapshot(path)
    assert client.snapshots() == []
    assert not Path(path).exists()
    assert client.create_snapshot("20250101", 10) == []
    client.detach("20260103")
    assert client.attached_days() == {"20260102"}


def test_all_requests_work_with_a_prefix_an_own_ca_a_password_and_all_keys(
    victoria_logs: Found, tmp_path: Path
) -> None:
    guard = guarded(tmp_path / "secrets", free_port())
    with running(victoria_logs, tmp_path, guard.flags, guard):
        client = make_backup(tmp_path, **guard.options).client
        assert client
        all_works(client)


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ("auth_keys", "partition/list answered with HTTP Error 401: Unauthorized; see auth_keys: "),
        ("tls", "is not trusted: unable to get local issuer certificate; name the certificate of "),
        ("prefix", "answered with HTTP Error 400: Bad Request; have url end with VictoriaLogs' -h"),
    ],
)
def test_what_is_missing_in_the_config_is_named(
    victoria_logs: Found, tmp_path: Path, without: str, said: str
) -> None:
    guard = guarded(tmp_path / "secrets", free_port())
    options = {name: value for name, value in guard.options.items() if name != without}
    if without == "prefix":
        options["url"] = f"https://127.0.0.1:{guard.port}"
    with running(victoria_logs, tmp_path, guard.flags, guard):
        client = make_backup(tmp_path, **options).client
        assert client
        with pytest.raises(OperatorError) as caught:
            client.attached_days()
        assert said in str(caught.value)
        assert not [secret for secret in guard.told if secret in str(caught.value)]
        assert client.is_healthy() is (without == "auth_keys")


def test_a_certificate_is_checked_and_may_be_the_servers_own(
    victoria_logs: Found, tmp_path: Path
) -> None:
    alone = certificates.self_signed(tmp_path / "alone")
    other = certificates.signed(tmp_path / "other")
    with running_tls(victoria_logs, tmp_path, alone) as port:
        url = f"https://127.0.0.1:{port}"
        all_works(Client(url, ca_file=str(alone.file)))
        for client in (Client(url), Client(url, ca_file=str(other.ca_file))):
            with pytest.raises(OperatorError, match=r"self-signed certificate") as caught:
                client.require_healthy()
            assert caught.value.hint.endswith("in the config: tls: ca_file:")
            assert not client.is_healthy()


def test_a_certificate_of_another_name_is_refused_even_if_its_ca_is_trusted(
    victoria_logs: Found, tmp_path: Path
) -> None:
    certificate = certificates.signed(tmp_path / "c", "subjectAltName=DNS:logs.example.com")
    with running_tls(victoria_logs, tmp_path, certificate) as port:
        client = Client(f"https://127.0.0.1:{port}", ca_file=str(certificate.ca_file))
        with pytest.raises(OperatorError, match="not trusted: IP address mismatch") as caught:
            client.require_healthy()
    assert caught.value.hint == "have url name the server as its certificate does"


@contextlib.contextmanager
def running_tls(
    found: Found, directory: Path, certificate: certificates.Certificate
) -> Iterator[int]:
    """A server on two ports; yield the one with TLS. On the other, the tests fill it."""
    port = free_port()
    flags = ["-tls=false", f"-httpListenAddr=127.0.0.1:{port}", "-tls=true"]
    files = [f"-tlsCertFile={certificate.file}", f"-tlsKeyFile={certificate.key_file}"]
    # One for each listener.
    with running(found, directory, [*flags, *files, *files]):
        yield port


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "could not read {path}: No such file or directory; see tls: ca_file:"),
        ("", "{path} has no certificate as PEM text in it; see tls: ca_file:"),
        ("not a certificate", "{path} has no certificate as PEM text in it; see tls: ca_file:"),
        ("fifo", "{path} is not a regular file; see tls: ca_file:"),
    ],
)
def test_a_ca_file_that_is_none_is_told_before_anything_is_asked(
    tmp_path: Path, content: str | None, said: str
) -> None:
    path = tmp_path / "ca.pem"
    if content == "fifo":
        os.mkfifo(path)
    elif content is not None:
        path.write_text(content)
    backup = make_backup(tmp_path, url="https://127.0.0.1:1", tls={"ca_file": str(path)})
    with pytest.raises(OperatorError) as caught:
        backup.client  # noqa: B018
    assert str(caught.value).startswith(said.format(path=path))


@pytest.mark.parametrize("on_socket", [True, False])
def test_a_proxy_with_a_bearer_token_is_passed_on_a_port_and_on_a_unix_socket(
    victoria_logs: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, on_socket: bool
) -> None:
    monkeypatch.setenv("VL_TEST_TOKEN", "abc.DEF-123")
    token = {"bearer_token_environment": "VL_TEST_TOKEN"}
    path = tmp_path / "x.sock" if on_socket else None
    with (
        running(victoria_logs, tmp_path, []) as server,
        Proxy(server.port, path=path, prefix="/logs", token="abc.DEF-123") as proxy,
    ):
        client = make_backup(tmp_path, url=proxy.url, http_auth=token).client
        assert client
        all_works(client)
        refused = make_backup(tmp_path, url=proxy.url).client
        assert refused
        with pytest.raises(Refused, match="401") as caught:
            refused.require_healthy()
        assert caught.value.hint == "see http_auth:"
        # While the proxy is there and VictoriaLogs is not.
        server.stop()
        assert not client.is_healthy()


@pytest.fixture
def host(sshd: Sshd) -> SshHost:
    return SshHost(sshd.destination, tuple(sshd.ssh_command))


def test_a_server_is_reached_through_the_connection_that_is_kept_open(
    victoria_logs: Found, tmp_path: Path, host: SshHost
) -> None:
    guard = guarded(tmp_path / "secrets", free_port())
    client = Client(
        guard.url,
        authorization=guard.authorization,
        keys=SECRETS,
        ca_file=str(guard.certificate.ca_file),
        host=host,
    )
    with running(victoria_logs, tmp_path, guard.flags, guard) as server:
        with pytest.raises(OperatorError, match=r"no connection to .* is kept open"):
            client.require_healthy()
        assert not client.is_healthy()
        with host.connected():
            all_works(client)
            server.stop()
            assert not client.is_healthy(0.2)
            server.start()
            assert client.is_healthy()
        assert not client.is_healthy()


def test_a_connection_that_was_lost_is_made_again(
    victoria_logs: Found, tmp_path: Path, host: SshHost, sshd: Sshd
) -> None:
    with running(victoria_logs, tmp_path, []) as server, host.connected():
        client = Client(server.server.url, host=host)
        assert client.is_healthy()
        for number in (signal.SIGKILL, signal.SIGTERM):
            (master,) = masters(host)
            master.send_signal(number)
            wait_until(lambda: masters(host) == [], 10, "it has ended")
            client.require_healthy()
            assert host.run(["echo", "x"]).stdout == "x\n"
        (master,) = masters(host)
        master.kill()
        wait_until(lambda: masters(host) == [], 10, "it has ended")
        sshd.close()
        with pytest.raises(OperatorError, match="could not be reached over ssh"):
            client.require_healthy()
        assert not client.is_healthy()
    assert masters(host) == []


def masters(host: SshHost) -> list[psutil.Process]:
    """The ssh processes that keep a connection to `host` open."""
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "-M" in child.cmdline()
    ]


def test_a_proxy_on_a_unix_socket_of_another_machine_is_reached_over_ssh(
    victoria_logs: Found, tmp_path: Path, host: SshHost
) -> None:
    with (
        running(victoria_logs, tmp_path, []) as server,
        Proxy(server.port, path=tmp_path / "x.sock", prefix="/logs") as proxy,
        host.connected(),
    ):
        all_works(Client(proxy.url, host=host))
    assert {request.host for request in proxy.asked} == {"localhost"}


def test_if_nobody_listens_on_another_machine_that_is_an_error_and_not_a_wait(
    tmp_path: Path, host: SshHost
) -> None:
    client = Client(f"http://127.0.0.1:{free_port()}", host=host)
    with host.connected():
        assert not client.is_healthy()
        with pytest.raises(
            OperatorError, match="/health did not answer: the connection was closed"
        ):
            client.require_healthy()
