"""The snapshots of a run: each is deleted whatever happens, and none of anybody else."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import LockingServer, make_backup, make_data
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Backup
from vl_borg_hooks.runs.records import Making, SnapshotRecord
from vl_borg_hooks.snapshots import ours
from vl_borg_hooks.snapshots.ours import Ours, clean_up
from vl_borg_hooks.victorialogs.http import Client, Refused, Unanswered

DAY, OTHER_DAY = "20261121", "20261122"


class Server(Client):
    """A server that makes snapshots as directories in `data`, and calls its data path /storage."""

    def __init__(self, data: Path) -> None:
        super().__init__("http://127.0.0.1:1")
        self.data = data
        self.number = 0xABC
        self.failure: OperatorError | None = None
        # Raised after a snapshot was made, as if we had been killed there.
        self.cut = False
        self.deletes = True
        self.is_asked_to_delete = 0

    def directory(self, path: str) -> Path:
        return self.data / path.removeprefix("/storage/")

    def snapshots(self) -> list[str]:
        if isinstance(self.failure, Unanswered):
            raise self.failure
        found = self.data.glob("partitions/*/snapshots/*")
        return [f"/storage/{path.relative_to(self.data)}" for path in found]

    def create_snapshot(self, day: str, seconds: float = 0) -> list[str]:
        if self.failure:
            raise self.failure
        self.number += 1
        name = f"{time.strftime('%Y%m%d%H%M%S', time.gmtime())}-{self.number:016X}"
        path = f"/storage/partitions/{day}/snapshots/{name}"
        self.directory(path).mkdir(parents=True)
        if self.cut:
            raise KeyboardInterrupt
        return [path]

    def delete_snapshot(self, path: str) -> None:
        self.is_asked_to_delete += 1
        if self.failure:
            raise self.failure
        if not self.deletes or not self.directory(path).is_dir():
            raise Refused(f"no {path}", 400, hint="", answer="")
        shutil.rmtree(self.directory(path))


@pytest.fixture
def backup(tmp_path: Path) -> Backup:
    make_data(tmp_path / "data")
    backup = make_backup(tmp_path)
    backup.records.create()
    return backup


@pytest.fixture
def server(backup: Backup) -> Server:
    server = Server(Path(backup.data_directory))
    backup.__dict__["client"] = server
    return server


@pytest.fixture
def running(backup: Backup) -> Iterator[LockingServer]:
    """Its lock is held."""
    with LockingServer(Path(backup.data_directory)) as locking:
        locking.start()
        yield locking


def there(server: Server) -> set[str]:
    return set(Server.snapshots(server)) if server.failure is None else set()


def killed(backup: Backup, server: Server, *days: str) -> None:
    """Be killed when the server has answered the request for the last of `days`."""
    made = Ours(backup, server)
    made.begin(days[:-1])
    server.cut = True
    with pytest.raises(KeyboardInterrupt):
        made.begin(days[-1:])
    server.cut = False


@pytest.mark.usefixtures("running")
def test_what_a_killed_run_has_made_is_deleted(backup: Backup, server: Server) -> None:
    theirs = set(server.create_snapshot(DAY))
    killed(backup, server, OTHER_DAY, DAY)
    assert len(there(server)) == 3
    clean_up(backup)
    assert there(server) == theirs
    assert not backup.records.has_snapshots


@pytest.mark.usefixtures("running")
def test_the_first_of_a_run_is_found_without_a_number(backup: Backup, server: Server) -> None:
    killed(backup, server, DAY)
    clean_up(backup)
    assert there(server) == set()


@pytest.mark.usefixtures("running")
def test_one_of_two_that_may_be_ours_is_left(backup: Backup, server: Server) -> None:
    killed(backup, server, DAY)
    server.create_snapshot(DAY)
    clean_up(backup)
    assert len(there(server)) == 2
    assert not backup.records.has_snapshots


@pytest.mark.usefixtures("running")
def test_the_number_tells_ours_from_later_ones(backup: Backup, server: Server) -> None:
    killed(backup, server, OTHER_DAY, DAY)
    theirs = set(server.create_snapshot(DAY))
    clean_up(backup)
    assert there(server) == theirs


@pytest.mark.usefixtures("running")
def test_if_the_server_has_deleted_ours_a_later_one_is_not_taken_for_it(
    backup: Backup, server: Server
) -> None:
    killed(backup, server, OTHER_DAY, DAY)
    for path in there(server):
        if DAY in path:
            shutil.rmtree(server.directory(path))
    theirs = set(server.create_snapshot(DAY))
    clean_up(backup)
    assert there(server) == theirs


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("after", [0, 0xABC])
def test_one_that_was_made_long_after_the_request_is_not_ours(
    backup: Backup, server: Server, after: int
) -> None:
    since = time.time() - ours.BEGIN_SECONDS - 2
    backup.records.note_snapshots(SnapshotRecord([], [Making(DAY, since, [], after)]))
    theirs = set(server.create_snapshot(DAY))
    clean_up(backup)
    assert there(server) == theirs


@pytest.mark.usefixtures("running")
def test_a_server_that_hangs_keeps_what_it_may_be_making(backup: Backup, server: Server) -> None:
    """It would panic if that was removed under it."""
    killed(backup, server, OTHER_DAY, DAY)
    before = there(server)
    server.failure = Unanswered("timed out")
    clean_up(backup)
    server.failure = None
    assert there(server) == before
    assert backup.records.has_snapshots
    clean_up(backup)
    assert there(server) == set()
    assert not backup.records.has_snapshots


@pytest.mark.usefixtures("running")
def test_a_server_that_hangs_is_waited_for_once(backup: Backup, server: Server) -> None:
    made = Ours(backup, server)
    made.begin([DAY, OTHER_DAY])
    server.failure = Unanswered("timed out")
    made.delete_all()
    assert server.is_asked_to_delete == 1
    server.failure = None
    made.delete_all()
    assert there(server) == set()
    assert not backup.records.has_snapshots


@pytest.mark.usefixtures("running")
def test_before_v1_44_we_remove_what_is_whole(
    backup: Backup, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.deletes = False
    killed(backup, server, OTHER_DAY, DAY)
    clean_up(backup)
    # The server may still be making the other one.
    assert [DAY in path for path in there(server)] == [True]
    monkeypatch.setattr(ours, "WHOLE_SECONDS", -1)
    clean_up(backup)
    assert there(server) == set()
    assert not backup.records.has_snapshots


def test_if_no_server_runs_they_are_removed(backup: Backup, server: Server) -> None:
    killed(backup, server, OTHER_DAY, DAY)
    server.failure = OperatorError("Connection refused")
    clean_up(backup)
    server.failure = None
    assert there(server) == set()
    assert not backup.records.has_snapshots


@pytest.mark.usefixtures("running")
def test_one_that_is_not_in_the_data_path_is_deleted_by_its_server(
    backup: Backup, server: Server, tmp_path: Path
) -> None:
    server.data = make_data(tmp_path / "other")
    made = Ours(backup, server)
    with pytest.raises(OperatorError, match="is not there; correct data_path or url"):
        made.begin([DAY])
    made.delete_all()
    assert there(server) == set()
    assert not backup.records.has_snapshots


@pytest.mark.usefixtures("running")
def test_a_refused_request_has_made_none(backup: Backup, server: Server) -> None:
    made = Ours(backup, server)
    server.failure = Refused("401", 401, hint="", answer="")
    with pytest.raises(Refused):
        made.begin([DAY])
    made.delete_all()
    assert not backup.records.has_snapshots
