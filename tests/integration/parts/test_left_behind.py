"""What the tests leave on the machine is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts.disk import SmallDisk
from tests.parts.left_behind import MARK, left_behind
from tests.parts.systemd import Systemd
from tests.parts.waiting import wait_until


def test_a_process_is_found_by_its_mark(tmp_path: Path) -> None:
    environment = {**os.environ, MARK: str(tmp_path)}
    with subprocess.Popen(["sleep", "61"], env=environment) as process:
        # The kernel shows a new program's environment a moment after its start.
        found = wait_until(lambda: left_behind(str(tmp_path), tmp_path), 10, "the process")
        assert found == [f"process {process.pid}: sleep 61"]
        process.kill()
    assert left_behind(str(tmp_path), tmp_path) == []


def test_a_mount_is_found_by_its_directory(tmp_path: Path) -> None:
    if reason := SmallDisk.why_not():
        pytest.skip(reason)
    with SmallDisk(tmp_path / "disk", 1 << 20) as disk:
        assert left_behind("no mark", tmp_path) == [f"mount {disk.path}"]
        assert left_behind("no mark", tmp_path / "other") == []


def test_a_loop_device_is_found_by_its_file(tmp_path: Path) -> None:
    if reason := SmallDisk.why_not():
        pytest.skip(reason)
    if not Path("/dev/loop-control").exists():
        pytest.skip("this machine has no loop devices")
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    attach = ["losetup", "--find", "--show", str(image)]
    device = subprocess.run(attach, capture_output=True, text=True, check=True).stdout.strip()
    try:
        name = Path(device).name
        assert left_behind("no mark", tmp_path) == [f"loop device {name} of {image}"]
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


TESTS = """\
import pathlib, time
from tests.parts.disk import SmallDisk

def test_that_is_ended(systemd, tmp_path):
    with SmallDisk(tmp_path / "disk", 1 << 20):
        pathlib.Path({started!r}).write_text(str(systemd.unit_directory.parent))
        time.sleep(600)
"""


@pytest.mark.timeout(120)
def test_a_run_of_tests_that_is_asked_to_end_leaves_nothing(tmp_path: Path) -> None:
    if reason := SmallDisk.why_not() or Systemd.why_not():
        pytest.skip(reason)
    started, file = tmp_path / "started", tmp_path / "test_ended.py"
    file.write_text(TESTS.format(started=str(started)))
    argv = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    argv += ["-q", f"--rootdir={tmp_path}", f"--basetemp={tmp_path / 'base'}", str(file)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(argv, cwd=root, stdout=subprocess.DEVNULL) as tests:
        try:
            wait_until(lambda: started.exists() and started.read_text(), 60, "the start")
            tests.terminate()
            assert tests.wait(60) == pytest.ExitCode.INTERRUPTED
        finally:
            tests.kill()
    assert left_behind(str(tmp_path / "base"), tmp_path) == []
    assert not Path(started.read_text()).exists()
