"""The sshd that the tests run."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.sshd import Sshd


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    if reason := Sshd.why_not():
        pytest.skip(reason)
    environment = {"PATH": "/a place/first:/usr/bin:/bin", "GREETING": "good day"}
    with Sshd(tmp_path_factory.mktemp("sshd"), environment) as running:
        yield running


def test_a_command_runs_with_its_status_and_output(sshd: Sshd) -> None:
    done = sshd.run("echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_the_environment_is_the_sessions(sshd: Sshd) -> None:
    assert sshd.run('echo "$GREETING:$PATH"').stdout == "good day:/a place/first:/usr/bin:/bin\n"


def test_another_key_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    key = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    command = [str(key) if word == str(sshd.key) else word for word in sshd.ssh_command]
    done = subprocess.run(
        [*command, sshd.destination, "true"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 255
    assert "Permission denied" in done.stderr


def test_another_host_key_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    with Sshd(tmp_path / "other") as other:
        command = [*other.ssh_command, "-p", str(sshd.port), sshd.destination, "true"]
        # The first -p counts for ssh, so drop the other server's.
        del command[command.index("-p") : command.index("-p") + 2]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr


def test_rsync_copies_through_it(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    source = f"{sshd.destination}:{tmp_path / 'file'}"
    shell = " ".join(sshd.ssh_command)
    subprocess.run(["rsync", "-a", "-e", shell, source, str(tmp_path / "copy")], check=True)
    assert (tmp_path / "copy").read_text() == "text"
