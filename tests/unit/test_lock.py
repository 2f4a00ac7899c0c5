"""The lock of a data directory: another holder is found, and the lock goes with its holder."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.parts.waiting import wait_until
from tests.support import FAKE_SSH, LockingServer, make_data
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system import flocks
from vl_borg_hooks.system.hosts import Host
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.system.ssh import SshHost
from vl_borg_hooks.victorialogs import lock


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


def test_a_free_lock_is_taken_and_given_back(host: Host, data: Path) -> None:
    assert not lock.is_held(host, str(data))
    with lock.hold(host, str(data)):
        assert lock.is_held(host, str(data))
        with pytest.raises(lock.LockHeld), lock.hold(host, str(data)):
            pass
    wait_until(lambda: not lock.is_held(host, str(data)), 30, "the lock to be free")


@pytest.mark.timeout(60)
def test_a_lock_that_a_server_holds_is_not_taken(host: Host, data: Path) -> None:
    with LockingServer(data) as server:
        server.start()
        assert lock.is_held(host, str(data))
        with pytest.raises(lock.LockHeld, match=f"{data}/flock.lock"), lock.hold(host, str(data)):
            pass
        started = time.monotonic()
        with pytest.raises(lock.LockHeld), lock.hold(host, str(data), wait=0.5):
            pass
        assert time.monotonic() - started >= 0.5


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_lock_is_taken_the_moment_that_its_holder_ends(
    host: Host, data: Path, number: signal.Signals
) -> None:
    with LockingServer(data) as server:
        server.start()
        killer = threading.Timer(0.3, os.kill, (server.pid, number))
        killer.start()
        with lock.hold(host, str(data), wait=30):
            assert lock.is_held(LocalHost(), str(data))
        killer.join()


@pytest.mark.timeout(60)
def test_no_server_can_start_while_we_hold_the_lock(host: Host, data: Path) -> None:
    with LockingServer(data) as server:
        with lock.hold(host, str(data)):
            started = subprocess.run(server.argv("run"), capture_output=True, check=False)
            assert started.returncode != 0
        wait_until(lambda: not lock.is_held(host, str(data)), 30, "the lock to be free")
        server.start()


def test_a_directory_without_the_file_is_held_by_nobody(host: Host, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert not lock.is_held(host, f"{tmp_path}/data")
    assert not lock.is_held(host, f"{tmp_path}/nothing")


def test_asking_makes_no_file(host: Host, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    lock.is_held(host, f"{tmp_path}/data")
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("held", [True, False])
def test_asking_does_not_take_the_lock(
    host: Host, data: Path, monkeypatch: pytest.MonkeyPatch, *, held: bool
) -> None:
    """A server that starts in that moment would find it taken, and panic."""
    if os.readlink("/proc/self/ns/pid") != flocks.INITIAL_PID_NAMESPACE:
        pytest.skip("in a container there is no other way")

    def take(*_: object, **__: object) -> None:
        pytest.fail("it was taken")

    with LockingServer(data) as server:
        if held:
            server.start()
        monkeypatch.setattr(type(host), "flock", take)
        assert lock.holder(host, str(data)) == (server.pid if held else None)


def test_a_missing_file_is_not_made_by_who_wants_the_lock(host: Host, tmp_path: Path) -> None:
    with pytest.raises(OperatorError), lock.hold(host, str(tmp_path)):
        pass
    assert not (tmp_path / "flock.lock").exists()


LISTED = """\
1: POSIX  ADVISORY  WRITE 11 fe:00:7 0 EOF
2: FLOCK  ADVISORY  WRITE 12 00:2a:7 0 EOF
3: FLOCK  ADVISORY  WRITE 13 fe:00:77 0 EOF
4: -> FLOCK  ADVISORY  WRITE 14 fe:00:5 0 EOF
5: FLOCK  ADVISORY  WRITE -1 fe:00:8 0 EOF
6: LEASE  ACTIVE    READ  15 fe:00:9 0 EOF
7: FLOCK  ADVISORY  READ  16 fe:00:10 0 EOF
"""


@pytest.mark.parametrize(
    ("device", "inode", "expected"),
    [
        # Of another kind, only waiting, on another device: not held.
        *(("254:0", inode, None) for inode in (7, 5, 9, 1)),
        ("0:42", 7, 12),
        ("254:0\n", 77, 13),
        # Held on another machine: by a process that can't be named.
        ("254:0", 8, flocks.UNKNOWN),
        # Held by several; a server can't take it either.
        ("254:0", 10, 16),
    ],
)
def test_who_holds_a_lock_is_in_the_kernels_list(
    device: str, inode: int, expected: int | None
) -> None:
    assert flocks.holder(LISTED, flocks.file_name(device, inode)) == expected


def test_a_missing_file_can_be_made_such_that_the_server_can_open_it(
    host: Host, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    if os.geteuid() == 0:
        os.chown(data, 12345, 54321)
    lock.ensure_file(host, str(data))
    lock.ensure_file(host, str(data))
    status = (data / "flock.lock").stat()
    assert (status.st_uid, status.st_gid) == (data.stat().st_uid, data.stat().st_gid)
    assert stat.S_IMODE(status.st_mode) & 0o444 == 0o444
    with lock.hold(host, str(data)):
        assert lock.is_held(host, str(data))


def test_a_lock_that_cannot_be_taken_at_all_is_no_held_lock(host: Host, tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as caught, lock.hold(host, f"{tmp_path}/no/such"):
        pass
    assert not isinstance(caught.value, lock.LockHeld)
    assert "\n" not in str(caught.value)


def test_a_link_in_the_place_of_the_lock_is_not_followed(host: Host, tmp_path: Path) -> None:
    (tmp_path / "outside").touch()
    (tmp_path / "flock.lock").symlink_to("outside")
    with pytest.raises(OperatorError), lock.hold(host, str(tmp_path)):
        pass
    with pytest.raises(OperatorError, match="is not a regular file"):
        lock.is_held(host, str(tmp_path))


def test_what_fails_under_the_lock_gets_out_and_frees_it(host: Host, data: Path) -> None:
    with pytest.raises(KeyError), lock.hold(host, str(data)):
        raise KeyError
    wait_until(lambda: not lock.is_held(host, str(data)), 30, "the lock to be free")


@pytest.mark.timeout(60)
def test_a_lock_over_ssh_that_was_lost_meanwhile_is_an_error(data: Path, tmp_path: Path) -> None:
    program = tmp_path / "ssh"
    program.write_text(FAKE_SSH.replace("exec", f"echo $$ > {tmp_path}/pid\nexec"))
    program.chmod(0o755)
    host = SshHost("user@host", (str(program),))

    def hold_and_lose() -> None:
        with lock.hold(host, str(data)):
            # `sh -c` has become flock itself, whose lock goes with the connection.
            holder = psutil.Process(int((tmp_path / "pid").read_text()))
            holder.kill()
            holder.wait(10)

    with pytest.raises(OperatorError, match=r"was lost$"):
        hold_and_lose()
