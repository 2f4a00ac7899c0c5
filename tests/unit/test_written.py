"""The proof that what was acknowledged is on the disk: what it takes for one, and what not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support import make_backup, make_data, said
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Backup
from vl_borg_hooks.snapshots import written
from vl_borg_hooks.snapshots.ours import Ours
from vl_borg_hooks.snapshots.written import NotWritten, Written
from vl_borg_hooks.victorialogs import changes
from vl_borg_hooks.victorialogs.http import Client, Metrics
from vl_borg_hooks.victorialogs.snapshots import Snapshot

DAYS = ["20260101", "20260102"]


class Server(Client):
    """A server with metrics that are a second old, and a clock that only sleeping moves."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1")
        self.now = 100.0
        self.started = 1
        # What is in memory at each answer that is not from the cache; the last one stays.
        self.rows: list[int] = [9, 0]
        self.index_parts: list[int] = [2]
        self.streams = 5
        # In two days that `make_data` has made, 21 in each.
        self.rows_on_disk = 40
        self.asked: list[str] = []
        self._cached: Metrics | None = None
        self._cached_at = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def flush(self) -> None:
        self.asked.append("flush")

    def attached_days(self) -> set[str]:
        return set(DAYS)

    def metrics(self) -> Metrics:
        if self._cached is None or self.now - self._cached_at > 1:
            self._cached_at = self.now
            self._cached = Metrics(
                {
                    'vl_storage_rows{type="storage/inmemory"}': str(_next(self.rows)),
                    'vl_storage_rows{type="storage/small"}': str(self.rows_on_disk),
                    'vl_storage_rows{type="storage/big"}': "2",
                    "vl_indexdb_parts{}": str(_next(self.index_parts)),
                    "vl_streams_created_total{}": str(self.streams),
                    "vm_app_start_timestamp{}": str(self.started),
                }
            )
            self.asked.append("metrics")
        return self._cached


def _next(values: list[int]) -> int:
    return values.pop(0) if len(values) > 1 else values[0]


class Snapshots(Ours):
    """Snapshots that are only counted."""

    def __init__(self, backup: Backup, server: Server) -> None:
        super().__init__(backup, server)
        self._server = server

    def begin(self, days: Sequence[str]) -> dict[str, Snapshot]:
        self._server.asked.append(f"snapshots of {len(days)} days")
        return {day: Snapshot(day, "x", "x") for day in days}

    def delete_all(self) -> None:
        self._server.asked.append("delete")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(written, "time", server)
    return server


@pytest.fixture
def backup(tmp_path: Path) -> Backup:
    make_data(tmp_path / "data", days=DAYS)
    return make_backup(tmp_path)


@pytest.fixture
def proof(backup: Backup, server: Server) -> Written:
    return Written(backup, server, Snapshots(backup, server), _reading(backup), None)


def _reading(backup: Backup) -> Callable[[], changes.Listing]:
    return lambda: changes.read(backup.host, backup.data_directory)


def test_what_is_seen_is_newer_than_the_flush(backup: Backup, server: Server) -> None:
    # The answer of before the flush says that nothing is in memory: the server gives it for a second.
    server.rows = [0, 500, 0]
    proof = Written(backup, server, Snapshots(backup, server), _reading(backup), None)
    proof.wait_for_rows()
    assert server.asked == [
        *("metrics", "flush", "metrics", "delete"),
        *("flush", "snapshots of 2 days", "snapshots of 2 days", "metrics"),
    ]


def test_a_server_with_rows_in_memory_is_made_to_write_them_first(
    proof: Written, server: Server
) -> None:
    proof.wait_for_rows()
    # What comes after the second flush is in a buffer when the metrics are asked for.
    looked = ["flush", "snapshots of 2 days", "metrics"]
    assert server.asked == ["metrics", "flush", *looked]


def test_one_moment_with_nothing_in_memory_is_enough(proof: Written, server: Server) -> None:
    server.rows = [3, 2, 0, 7]
    proof.wait_for_rows()
    assert server.now - 100 == pytest.approx(3 * written.CACHED_SECONDS)


def test_a_server_that_always_has_rows_in_memory_is_given_up(
    proof: Written, server: Server
) -> None:
    server.rows = [1]
    with pytest.raises(NotWritten, match="there was no moment at which VictoriaLogs had all rows"):
        proof.wait_for_rows()
    assert written.LONGEST_SECONDS < server.now - 100 < written.LONGEST_SECONDS + 3
    assert server.asked[-1] == "delete"


def test_a_server_that_was_restarted_may_have_lost_rows(proof: Written, server: Server) -> None:
    server.started = 2
    with pytest.raises(OperatorError, match="VictoriaLogs was restarted during the backup"):
        proof.wait_for_rows()


def test_each_day_has_its_turn_though_only_one_changes(
    backup: Backup, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows of a day that has not changed on the disk yet may be in memory as well.
    monkeypatch.setattr(changes, "recent", lambda *_: ["20260102"])
    proof = Written(backup, server, Snapshots(backup, server), _reading(backup), None)
    server.rows = [1, 1, 1, 0]
    proof.wait_for_rows()
    pushed = [words for words in server.asked if words.startswith("snapshots")]
    assert pushed == [*["snapshots of 1 days"] * 5, *["snapshots of 2 days"] * 2]


def test_the_index_is_whole_if_its_parts_are_those_on_the_disk(
    proof: Written, server: Server
) -> None:
    server.index_parts = [4, 3, 2]
    listing = proof.wait_for_index()
    assert server.now - 100 == pytest.approx(3 * written.CACHED_SECONDS)
    assert listing.partitions == set(DAYS)


def test_the_index_must_not_change_while_it_is_counted(backup: Backup, server: Server) -> None:
    listings = iter(range(100))
    whole = changes.read(backup.host, backup.data_directory)

    def read() -> changes.Listing:
        # Of the readings of the first try, the last is after the count: a merge has ended in between.
        if next(listings) != 3:
            return whole
        merged = {
            path: changes.Table(("merged",), 0) if path.endswith("indexdb") else table
            for path, table in whole.tables.items()
        }
        return changes.Listing(merged, frozenset())

    proof = Written(backup, server, Snapshots(backup, server), read, None)
    assert proof.wait_for_index() == whole
    assert server.now - 100 == pytest.approx(2 * written.CACHED_SECONDS)


def test_a_server_that_does_not_tell_is_refused_at_once(backup: Backup, server: Server) -> None:
    server.metrics = lambda: Metrics({})  # type: ignore[method-assign]
    with pytest.raises(OperatorError, match="has no vm_app_start_timestamp"):
        Written(backup, server, Snapshots(backup, server), _reading(backup), None)


def test_it_says_how_long_it_took(proof: Written) -> None:
    with said() as lines:
        proof.wait_for_rows()
    assert any("all rows of before are on VictoriaLogs' disk" in line for line in lines)


@pytest.mark.parametrize("what", ["nothing", "a stream", "a part in memory", "a day", "rows"])
def test_the_index_is_known_to_be_whole_at_the_same_moment_if_no_stream_is_new(
    proof: Written, backup: Backup, server: Server, what: str
) -> None:
    if what == "a stream":
        server.streams += 1
    if what == "a part in memory":
        server.index_parts = [3]
    if what == "a day":
        # With as many streams as one that was dropped meanwhile.
        shutil.move(
            f"{backup.data_directory}/partitions/{DAYS[0]}",
            f"{backup.data_directory}/partitions/20260103",
        )
    if what == "rows":
        # Written after these metrics were new: their streams may be newer too.
        server.rows_on_disk -= 1
    moment = proof.wait_for_rows()
    assert moment.has_index == (what == "nothing")
    assert set(moment.snapshots) == moment.listing.partitions


def test_the_index_is_flushed_once_more_before_it_is_waited_for(
    proof: Written, server: Server
) -> None:
    server.rows = [0]
    proof.wait_for_rows()
    server.asked.clear()
    proof.wait_for_index()
    assert server.asked == ["flush", "metrics"]
