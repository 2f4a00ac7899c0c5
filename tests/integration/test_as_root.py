"""What only root can cause: a full disk, a device file, files of another user."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import pytest

from tests.parts.disk import SmallDisk
from tests.support import make_copy, write_inventory
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.runs.records import RunRecords
from vl_borg_hooks.staging.verify import verify

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_no_half_manifest_is_seen_when_the_disk_is_full(tmp_path: Path) -> None:
    with SmallDisk(tmp_path / "disk", 1 << 20) as disk:
        copy = make_copy(disk.path / "copy")
        before = copy.manifest_path.read_bytes()
        manifest = copy.manifest().model_copy(update={"instance": "x" * 8192})
        fill = disk.path / "fill"
        with contextlib.suppress(OSError), open(fill, "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        with pytest.raises(OperatorError, match=r"could not write .*manifest.json: No space left"):
            copy.publish(manifest)
        assert copy.manifest_path.read_bytes() == before
        assert not list(copy.path.glob(".manifest*"))
        copy.unpublish()
        with pytest.raises(OperatorError):
            copy.publish(manifest)
        assert not copy.manifest_path.exists()
        for number in range(1000):
            (copy.data / f"{number:0200}").touch()
        with pytest.raises(OperatorError, match=r"could not write .*inventory.jsonl.new: No space"):
            write_inventory(copy)
        fill.unlink()
        copy.publish(manifest)
        assert copy.manifest() == manifest


def test_a_device_is_named_with_its_path(tmp_path: Path) -> None:
    copy = make_copy(tmp_path / "copy")
    device = copy.data / "partitions/20261121/datadb/18A0000000000000/device"
    os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    assert f"{device}: is not a file or directory" in verify(copy).problems


def test_a_state_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", 12345, -1)
    with pytest.raises(OperatorError, match="can be written by others"):
        RunRecords(tmp_path / "state", "default").create()
