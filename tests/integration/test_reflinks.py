"""On a filesystem with reflinks, the copy shares bytes with the data, and no file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.fakes import FakeHooks
from tests.parts.filesystem import filesystem
from tests.support import make_backup, make_data, make_part, tree
from vl_borg_hooks.plugin.context import Backup
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.staging.verify import verify
from vl_borg_hooks.steps import passes, publish, space
from vl_borg_hooks.victorialogs.swap import Swap

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a filesystem needs root")

TABLE = "partitions/20261122/datadb"
LARGE = f"{TABLE}/18A0000000000000/values.bin0"
LARGE_BYTES = 32 << 20


@pytest.fixture(params=["xfs", "btrfs"])
def backup(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backup]:
    with filesystem(request.param, tmp_path) as root:
        data = make_data(root / "data")
        backup = make_backup(root, data_path=str(data))
        backup.staging.create()
        backup.records.create()
        yield backup


@pytest.fixture(params=[ServiceState.STOPPED, ServiceState.RUNNING])
def state(request: pytest.FixtureRequest, backup: Backup) -> ServiceState:
    assert isinstance(request.param, ServiceState)
    backup.found = request.param
    return request.param


def make_copy(backup: Backup) -> None:
    """Make a copy as a backup does, without its stop window if it runs, and publish it."""
    run = passes.Passes(backup)
    if backup.found is ServiceState.STOPPED:
        copied = run.copy_stopped(FakeHooks())
    else:
        run.look_at_copy()
        run._prepare_freezing()
        assert run.warm_up().bytes < LARGE_BYTES
        final = run.copy_in_window() or run._final_pass()
        Swap(backup.host, backup.data_directory).discard_leftovers()
        copied = run.copied(None, final, "frozen")
    publish.publish_copy(backup, copied)
    backup.last_manifest = backup.staging.manifest()


def shared(path: Path) -> list[str]:
    """How the kernel says that each extent of a file is stored."""
    subprocess.run(["sync", "-f", str(path)], check=True)
    said = subprocess.run(
        ["filefrag", "-v", str(path)], check=True, capture_output=True, text=True
    ).stdout
    return [line for line in said.splitlines() if "shared" in line]


def large(path: Path, size: int = LARGE_BYTES) -> None:
    """Write a part's file that is too large to be kept in the metadata of the filesystem."""
    part = path.parent
    metadata = json.loads((part / "metadata.json").read_text())
    metadata["CompressedSizeBytes"] += size - path.stat().st_size
    (part / "metadata.json").write_text(json.dumps(metadata))
    path.write_bytes(os.urandom(size))


def test_the_copy_shares_bytes_and_no_file_with_the_data(
    backup: Backup, state: ServiceState
) -> None:
    data, staging = Path(backup.data_directory), backup.staging.data
    large(data / LARGE)
    make_copy(backup)
    assert shared(staging / LARGE)
    new = data / TABLE / "18C0000000000001"
    make_part(new, rows=50, day=20261122)
    large(new / "values.bin0")
    listed = ["18A0000000000000", "18A0000000000001", new.name]
    (data / TABLE / ".new").write_text(json.dumps(listed))
    (data / TABLE / ".new").rename(data / TABLE / "parts.json")
    make_copy(backup)
    assert shared(staging / TABLE / new.name / "values.bin0")
    expected = tree(data)
    del expected["flock.lock"]
    assert tree(staging) == expected
    assert verify(backup.staging).is_sound
    files = [path for path in staging.rglob("*") if path.is_file()]
    assert {path.stat().st_nlink for path in files} == {1}


def test_what_happens_to_the_data_does_not_touch_the_copy(
    backup: Backup, state: ServiceState
) -> None:
    data, staging = Path(backup.data_directory), backup.staging.data
    make_copy(backup)
    before = {path: path.stat().st_ctime_ns for path in staging.rglob("*")}
    for path in data.rglob("*"):
        path.chmod(0o700)
    shutil.rmtree(data / "partitions")
    assert {path: path.stat().st_ctime_ns for path in staging.rglob("*")} == before
    assert verify(backup.staging).is_sound


def test_two_subvolumes_of_one_btrfs_share_bytes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filesystem("btrfs", tmp_path) as root:
        for name in ("data", "staging"):
            subprocess.run(
                ["btrfs", "subvolume", "create", str(root / name)], check=True, capture_output=True
            )
        make_data(root / "data")
        large(root / "data" / LARGE, 4 * LARGE_BYTES)
        backup = make_backup(
            root, data_path=str(root / "data"), staging_path=str(root / "staging/default")
        )
        # Room for the reserve, and not for a second copy beside it.
        subprocess.run(["sync", "-f", str(root)], check=True)
        status = os.statvfs(root)
        free = status.f_bavail * status.f_frsize
        monkeypatch.setattr(space, "RESERVE_BYTES", free - 2 * LARGE_BYTES)
        assert [check.what for check in space.backup_checks(backup) if not check.ok] == []
        backup.found = ServiceState.STOPPED
        backup.staging.create()
        backup.records.create()
        make_copy(backup)
        assert shared(backup.staging.data / LARGE)
