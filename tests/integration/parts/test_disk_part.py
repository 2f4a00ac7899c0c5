"""The small disk."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.parts.disk import SmallDisk


def test_it_is_full_when_it_should_be_and_gone_afterwards(tmp_path: Path) -> None:
    if reason := SmallDisk.why_not():
        pytest.skip(reason)
    with SmallDisk(tmp_path / "disk", 1 << 20) as disk:
        (disk.path / "fits").write_bytes(bytes(1 << 19))
        with pytest.raises(OSError, match="No space") as failure:
            (disk.path / "too much").write_bytes(bytes(1 << 20))
        assert failure.value.errno == errno.ENOSPC
    assert not (tmp_path / "disk" / "fits").exists()
