"""What has to be in place is asked of each host that has to have it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support import FAKE_SSH, make_backup
from vl_borg_hooks.steps import ready


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["rsync on this machine"]),
        ({"data_path": "u@h:/data"}, ["rsync on this machine", "rsync on u@h"]),
    ],
)
def test_each_different_host_is_asked_for_its_rsync_once(
    tmp_path: Path, options: Mapping[str, object], expected: list[str]
) -> None:
    program = tmp_path / "ssh"
    program.write_text(FAKE_SSH)
    program.chmod(0o755)
    backup = make_backup(tmp_path, ssh_command=[str(program)], **options)
    checks = [found for found in ready.backup_checks(backup) if found.name.startswith("rsync")]
    assert [found.name for found in checks] == expected
    assert all(found.ok for found in checks)
