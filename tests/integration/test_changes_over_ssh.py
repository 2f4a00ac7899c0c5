"""Listing and freezing the data of another host, through a real sshd."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.parts.sshd import Sshd
from tests.support import make_data, make_partition
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.system.ssh import SshHost
from vl_borg_hooks.victorialogs import changes, freeze


@pytest.fixture
def there(sshd: Sshd) -> SshHost:
    return SshHost(sshd.destination, tuple(sshd.ssh_command))


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(make_data(tmp_path / "victoria logs"))


def test_what_is_listed_there_is_what_is_listed_here(there: SshHost, data: str) -> None:
    before, here = changes.read(there, data), changes.read(LocalHost(), data)
    assert len(before.tables) == 4
    parts = {path: table.parts for path, table in before.tables.items()}
    assert parts == {path: table.parts for path, table in here.tables.items()}
    assert before.others == here.others
    make_partition(Path(data, "partitions", "20261123"))
    shutil.rmtree(Path(data, "partitions", "20261121"))
    found = changes.delta(before, changes.read(there, data, before))
    assert found
    assert found == changes.delta(before, changes.read(LocalHost(), data, before))
    assert found.removed == ["partitions/20261121"]


def test_what_is_frozen_there_stays_whatever_becomes_of_the_data(there: SshHost, data: str) -> None:
    frozen = f"{data}/.vl-borg-hooks/frozen"
    assert freeze.is_possible(there, data, frozen)
    part = "partitions/20261121/datadb/18A0000000000000"
    content = Path(data, part, "values.bin0").read_bytes()
    freeze.freeze(there, data, frozen, [part])
    shutil.rmtree(Path(data, part))
    assert Path(frozen, part, "values.bin0").read_bytes() == content
