"""Who holds the lock is found out on filesystems and in containers that hide a part of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import FAKE_SSH, LockingServer
from vl_borg_hooks.system import flocks
from vl_borg_hooks.system.hosts import Host
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.system.ssh import SshHost
from vl_borg_hooks.victorialogs import lock

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(
        os.readlink("/proc/self/ns/pid") != flocks.INITIAL_PID_NAMESPACE,
        reason="needs the initial PID namespace",
    ),
]

ASK = """\
import sys
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.victorialogs import lock
print(lock.holder(LocalHost(), sys.argv[1]))
"""


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Path]:
    """An overlay whose layers are on two filesystems: stat(2) gives its files another device."""
    lower, other, merged = (tmp_path / name for name in ("lower", "other", "merged"))
    for directory in (lower, other, merged):
        directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(other)], check=True)
    (other / "upper").mkdir()
    (other / "work").mkdir()
    layers = f"lowerdir={lower},upperdir={other}/upper,workdir={other}/work"
    try:
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, str(merged)], check=True)
        try:
            yield merged
        finally:
            subprocess.run(["umount", str(merged)], check=True)
    finally:
        subprocess.run(["umount", str(other)], check=True)


@pytest.mark.parametrize("where", ["this machine", "another"])
def test_the_holder_is_found_where_stat_gives_another_device(
    overlay: Path, tmp_path: Path, where: str
) -> None:
    program = tmp_path / "ssh"
    program.write_text(FAKE_SSH)
    program.chmod(0o755)
    host: Host = LocalHost() if where == "this machine" else SshHost("u@h", (str(program),))
    data = overlay / "data"
    data.mkdir()
    with LockingServer(data) as server:
        server.start()
        assert lock.holder(host, str(data)) == server.pid
        server.stop()
        assert lock.holder(host, str(data)) is None


@pytest.mark.parametrize("held", [True, False])
def test_a_lock_that_is_held_outside_of_our_container_is_held(
    tmp_path: Path, *, held: bool
) -> None:
    """There the kernel does not list it."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "flock.lock").touch()
    container = ["unshare", "--pid", "--fork", "--mount-proc"]
    with LockingServer(data) as server:
        if held:
            server.start()
        asked = subprocess.run(
            [*container, sys.executable, "-c", ASK, str(data)],
            capture_output=True,
            text=True,
            check=True,
        )
    assert asked.stdout.strip() == (str(flocks.UNKNOWN) if held else "None")
