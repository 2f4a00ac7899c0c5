"""The step that copies from snapshots: when it leaves the copy to a stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parts.fakes import FakeClient, with_client
from tests.support import make_backup, make_data
from vl_borg_hooks.plugin.context import Backup
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.snapshots.written import NotWritten
from vl_borg_hooks.steps import snapshot


def busy(directory: Path, monkeypatch: pytest.MonkeyPatch, consistency: str) -> Backup:
    """A backup of a server that can't be shown to have written all."""
    make_data(directory / "data")
    client = FakeClient({})
    client.days = {"20261121", "20261122"}
    with_client(monkeypatch, client)

    def never(*_: object) -> None:
        raise NotWritten("there was no moment")

    monkeypatch.setattr(snapshot, "Written", never)
    backup = make_backup(directory, consistency=consistency, url="http://127.0.0.1:1")
    backup.found, backup.consistency = ServiceState.RUNNING, "snapshot"
    return backup


def test_auto_leaves_what_can_not_be_proved_to_a_stop_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = busy(tmp_path, monkeypatch, "auto")
    assert snapshot.make_copy(backup) is None
    assert (backup.consistency, backup.consistency_why) == ("stop", "there was no moment")


def test_who_wants_snapshots_only_has_no_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = busy(tmp_path, monkeypatch, "snapshot")
    with pytest.raises(NotWritten, match="there was no moment"):
        snapshot.make_copy(backup)


def test_a_stopped_server_is_copied_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = busy(tmp_path, monkeypatch, "snapshot")
    backup.found = ServiceState.STOPPED
    assert snapshot.make_copy(backup) is None
