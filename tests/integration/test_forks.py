"""Nothing is forked while another thread is alive: the child could wait for a lock for ever.

Python warns of that from 3.12 on. Here each fork of a run is looked at, with any Python.
"""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.locking_site import LockingSite
from tests.support import command_line

# Loaded by Python itself: notes the other threads at each fork, and at each start with a function
# that runs in the child.
WATCH = """\
import os, subprocess, threading
fork, popen = os.fork, subprocess.Popen.__init__
def note():
    others = [each.name for each in threading.enumerate() if each != threading.current_thread()]
    # What Python itself counts: a thread can be there after it was joined.
    if not others and len(os.listdir("/proc/self/task")) > 1:
        others = ["one that has ended"]
    with open(os.environ["FORKS"], "a") as file:
        print(*others, sep=", ", file=file)
def noted_fork():
    note()
    return fork()
def noted_popen(self, *args, **kwargs):
    if kwargs.get("preexec_fn"):
        note()
    popen(self, *args, **kwargs)
os.fork, subprocess.Popen.__init__ = noted_fork, noted_popen
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LockingSite]:
    site = LockingSite(tmp_path)
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    with site.server:
        site.server.start()
        yield site


def forks(site: LockingSite, *arguments: str, stderr: int = subprocess.PIPE) -> list[str]:
    """The other threads at each fork of a run that succeeds, as one line for each fork."""
    noted = site.root / "forks"
    noted.unlink(missing_ok=True)
    done = subprocess.run(
        command_line("--config", site.config, *arguments),
        env={**os.environ, "PYTHONPATH": str(site.root / "watch"), "FORKS": str(noted)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return noted.read_text().splitlines()


def test_no_thread_is_alive_when_a_backup_or_a_restore_forks(site: LockingSite) -> None:
    assert set(forks(site, "before-create")) == {""}
    # The second one looks at the copy, in threads.
    second = forks(site, "before-create")
    assert len(second) > 5
    assert set(second) == {""}
    assert set(forks(site, "restore", "--from", str(site.staging.path), "--yes")) == {""}


def test_nor_with_a_bar_on_a_terminal(site: LockingSite) -> None:
    ours, theirs = pty.openpty()
    try:
        assert set(forks(site, "before-create", stderr=theirs)) == {""}
    finally:
        os.close(ours)
        os.close(theirs)
