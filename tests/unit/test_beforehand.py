"""Before a stop: what would keep VictoriaLogs from starting, and whether `url` is its own."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.fakes import (
    Clock,
    FakeClient,
    FakeHooks,
    FakeHost,
    FakeService,
    no_guard,
    with_client,
)
from tests.support import make_backup, make_data, make_partition, said
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Backup
from vl_borg_hooks.stop_window.beforehand import require_startable, require_url
from vl_borg_hooks.stop_window.window import bring_back, stop_window
from vl_borg_hooks.victorialogs.http import NotVictoriaLogs

DAYS = {"20261121", "20261122"}


@dataclasses.dataclass
class Place:
    backup: Backup
    data: Path
    service: FakeService
    clock: Clock
    client: FakeClient

    @property
    def partitions(self) -> Path:
        return self.data / "partitions"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    clock = Clock()
    clock.install(monkeypatch)
    data = make_data(tmp_path / "data")
    backup = make_backup(tmp_path, url="http://127.0.0.1:1")
    service = FakeService(data, running=True)
    backup.service = service
    client = FakeClient({"storageDataPath": str(data)})
    with_client(monkeypatch, client)
    yield Place(backup, data, service, clock, client)
    service.die()


@pytest.mark.parametrize("days", [None, DAYS])
def test_data_that_is_as_it_should_be_takes_one_look(place: Place, days: set[str] | None) -> None:
    place.client.days = days
    before = place.clock.now
    require_startable(place.backup)
    assert place.clock.now == before
    assert place.backup.detached == []


def test_what_is_in_the_way_is_said_after_more_looks(place: Place) -> None:
    names = ["a", "b", "c", "d", "e"]
    for name in names:
        (place.partitions / name).touch()
    before = place.clock.now
    with pytest.raises(OperatorError) as caught:
        require_startable(place.backup)
    assert place.clock.now - before == 2
    assert caught.value.what.endswith(
        f"in {place.data}, partitions/a: is not a directory, partitions/b: is not a directory, "
        "partitions/c: is not a directory (and 2 more)"
    )
    assert "outside of the data path" in caught.value.hint


def test_a_moment_of_a_change_is_nothing(place: Place) -> None:
    """A day that is being removed or made, a merge between two looks at one table."""
    place.client.days = {*DAYS, "20261120"}
    index = place.partitions / "20261121" / "indexdb"
    index.rename(place.data / "away")
    make_partition(place.partitions / "20261123")

    def end() -> None:
        (place.data / "away").rename(index)
        place.client.days = {*DAYS, "20261123"}

    place.clock.after(1, end)
    require_startable(place.backup)
    assert place.backup.detached == []


@pytest.mark.parametrize("policy", ["refuse", "detach"])
def test_detached_days_are_refused_or_remembered(place: Place, policy: str) -> None:
    place.client.days = {"20261122"}
    # There is nothing in it to attach.
    (place.partitions / "20261110").mkdir()
    instance = place.backup.instance.model_copy(update={"detached_days": policy})
    place.backup.instance = instance
    if policy == "detach":
        require_startable(place.backup)
        assert place.backup.detached == ["20261121"]
        return
    with pytest.raises(OperatorError, match="that are detached: 20261121") as caught:
        require_startable(place.backup)
    assert "or set detached_days: detach" in caught.value.hint


def test_days_that_are_not_there_are_another_servers(place: Place) -> None:
    place.client.days = {*DAYS, "20261101"}
    with pytest.raises(OperatorError, match=r"not in .*/partitions: 20261101") as caught:
        require_startable(place.backup)
    assert caught.value.hint == "correct url: it is another server's"


@pytest.mark.parametrize(
    ("version", "refused"), [("v1.51.1", False), ("v1.49.0", True), ("", True)]
)
def test_only_versions_that_are_known_to_skip_hidden_names_may_find_one(
    place: Place, monkeypatch: pytest.MonkeyPatch, version: str, *, refused: bool
) -> None:
    with_client(monkeypatch, FakeClient({}, version))
    (place.partitions / ".DS_Store").touch()
    if not refused:
        require_startable(place.backup)
        return
    with pytest.raises(OperatorError, match="DS_Store: is not a directory"):
        require_startable(place.backup)


@pytest.mark.parametrize("relative", [True, False])
def test_a_server_that_holds_the_lock_and_names_the_data_is_not_refused(
    place: Place, *, relative: bool
) -> None:
    path = os.path.relpath(place.data) if relative else str(place.data)
    place.client.flags = {"storageDataPath": path}
    require_url(place.backup)


def test_a_server_with_the_same_path_in_a_container_is_found_out_in_the_window(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_url(place.backup)
    place.backup.records.create()
    no_guard(monkeypatch, [])
    place.client.serves = True
    with (
        pytest.raises(OperatorError, match="it answers while VictoriaLogs is stopped"),
        stop_window(FakeHooks(), place.backup),
    ):
        pytest.fail("the block was entered")


def test_a_server_on_other_data_is_another(place: Place, tmp_path: Path) -> None:
    other = make_data(tmp_path / "other")
    place.client.flags = {"storageDataPath": str(other)}
    with pytest.raises(OperatorError) as caught:
        require_url(place.backup)
    assert caught.value.what.endswith(
        f"is not the one on {place.data}: its -storageDataPath is {other}"
    )
    assert caught.value.hint.startswith("correct url")


def test_a_path_of_another_world_proves_nothing(place: Place, tmp_path: Path) -> None:
    """Of a container: what is there on this machine is something else."""
    other = make_data(tmp_path / "other")

    class Outside(FakeHost):
        def identity(self, path: str) -> tuple[int, int] | None:
            return (7, 7) if path.endswith("/root/") else super().identity(path)

    place.backup.host = Outside()
    place.client.flags = {"storageDataPath": str(other)}
    require_url(place.backup)


@pytest.mark.parametrize("flags", [{}, {"storageDataPath": "/no/such/path"}])
def test_what_is_not_known_is_no_reason_to_refuse(place: Place, flags: dict[str, str]) -> None:
    place.client.flags = flags
    require_url(place.backup)


def test_metrics_that_need_a_key_are_no_reason_to_refuse(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise OperatorError("/metrics answered with 401")

    monkeypatch.setattr(place.client, "stored_rows", refuse)
    require_url(place.backup)


def test_who_is_not_victorialogs_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise NotVictoriaLogs("/metrics has no vl_storage_rows")

    monkeypatch.setattr(place.client, "stored_rows", refuse)
    with pytest.raises(OperatorError, match="has no vl_storage_rows"):
        require_url(place.backup)


def test_who_is_not_healthy_is_not_stopped(place: Place) -> None:
    place.client.flags = None
    with pytest.raises(OperatorError, match=r"VictoriaLogs runs, but .*/health did not answer"):
        require_url(place.backup)


def test_a_server_whose_data_is_lost_is_not_asked(place: Place) -> None:
    """Its lock file is lost too; there is something to restore."""
    shutil.rmtree(place.data)
    place.client.flags = None
    require_url(place.backup)


def test_days_are_detached_again_once_it_serves(place: Place) -> None:
    place.client.days = DAYS
    place.backup.detached = ["20261122"]
    bring_back(FakeHooks(), place.backup)
    assert place.client.detached == ["20261122"]


def test_a_day_that_is_still_detached_is_left_alone(place: Place) -> None:
    """VictoriaLogs was never stopped, or has not attached it: to detach it again is an error."""
    place.client.days = {"20261121"}
    place.backup.detached = ["20261122"]
    with said() as lines:
        bring_back(FakeHooks(), place.backup)
    assert place.client.detached == []
    assert lines == []


def test_days_that_may_be_served_again_are_told(place: Place) -> None:
    place.backup.detached = ["20261121", "20261122"]
    with said() as lines:
        bring_back(FakeHooks(), place.backup)
    assert any("20261121, 20261122: may be served again" in line for line in lines)
