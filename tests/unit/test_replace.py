"""The exchange of a restore: if it fails, the data of before is served, with as few stops as can be."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.fakes import Clock, FakeClient, FakeHooks, FakeService, no_guard, with_client
from tests.support import make_copy, make_data, make_partition, make_restore, said, tree
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.steps.replace import Exchange, exchange
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.victorialogs.swap import INCOMING, kept_data


class Failing(LocalHost):
    """Fails to rename what has a path that ends with one of `fails`, each once."""

    def __init__(self, *fails: str) -> None:
        self.fails = list(fails)

    def watch(self, process: int) -> None:
        return None

    def rename(self, source: str, destination: str) -> None:
        for end in self.fails:
            if source.endswith(end):
                self.fails.remove(end)
                raise OperatorError(f"could not rename {source}: Input/output error")
        super().rename(source, destination)


class Place:
    """A server with a day of its own, and a copy of two other days beside its data."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Clock().install(monkeypatch)
        self.data = make_data(directory / "data", days=["20260101"])
        self.before = tree(self.data)
        copy = make_copy(directory / "extracted")
        self.restore = make_restore(directory, copy, copy.manifest())
        self.restore.records.create()
        self.service = FakeService(self.data)
        self.restore.service = self.service
        self.hooks = FakeHooks()
        no_guard(monkeypatch, self.hooks.calls)
        shutil.copytree(copy.data, self.data / ".vl-borg-hooks" / INCOMING)
        # Which days each start has found.
        self.started_on: list[list[str]] = []
        self.hooks.doing["start_service"] = lambda: self.started_on.append(self.days)

    @property
    def days(self) -> list[str]:
        partitions = self.data / "partitions"
        return sorted(path.name for path in partitions.iterdir()) if partitions.exists() else []

    def exchange(self, *, found: ServiceState) -> None:
        if found is ServiceState.RUNNING:
            self.service.live()
        self.restore.found = found
        exchange(
            self.hooks,
            Exchange(
                target=self.restore,
                source=INCOMING,
                expected=self.restore.expected,
                prove=lambda: self.hooks.prove_restore(self.restore),
                start_if_stopped=True,
                discard=True,
            ),
        )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = Place(tmp_path, monkeypatch)
    yield made
    made.service.die()


@pytest.mark.parametrize("found", ServiceState)
def test_a_swap_that_fails_half_way_is_undone_before_a_server_can_start_on_it(
    place: Place, found: ServiceState
) -> None:
    place.restore.host = Failing("incoming/partitions")
    with pytest.raises(OperatorError, match="Input/output error") as caught:
        place.exchange(found=found)
    assert all(days == ["20260101"] for days in place.started_on)
    assert tree(place.data) == place.before
    running = found is ServiceState.RUNNING
    assert place.service.asked.count("stop") == int(running)
    assert place.service.running is running
    assert "on the data that was there before" in caught.value.victorialogs
    assert place.restore.records.journal() is None


def test_what_is_served_until_a_second_undo_is_kept_under_its_own_name(place: Place) -> None:
    place.restore.host = Failing("incoming/partitions", "replaced/partitions")

    def serve() -> None:
        make_partition(place.data / "partitions/20261130")

    place.hooks.doing["after_start"] = serve
    with said() as lines, pytest.raises(OperatorError, match="incoming/partitions"):
        place.exchange(found=ServiceState.RUNNING)
    assert place.days == ["20260101"]
    (kept,) = kept_data(place.restore.host, str(place.data))
    assert (Path(kept.path) / "partitions/20261130").is_dir()
    assert kept.what == "data that was served during a restore"
    assert kept.since
    assert any("could not be brought back yet" in line for line in lines)
    assert any("was served in between" in line and f"kept in {kept.path}" in line for line in lines)


def test_a_stopped_server_is_not_replaced_if_url_is_anothers(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_client(monkeypatch, FakeClient({}))
    with pytest.raises(OperatorError, match="answers while VictoriaLogs is stopped"):
        place.exchange(found=ServiceState.STOPPED)
    assert tree(place.data) == place.before or place.days == ["20260101"]
    assert place.service.asked == []
    assert "prove_restore" not in place.hooks.names


@pytest.mark.parametrize("found", ServiceState)
def test_a_restore_proves_itself_on_no_other_server(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: ServiceState
) -> None:
    """One that did not answer before the start."""
    client = FakeClient({"storageDataPath": str(make_data(tmp_path / "other"))})
    client.serves = False
    with_client(monkeypatch, client)
    with pytest.raises(OperatorError, match="is not the one on"):
        place.exchange(found=found)
    assert "prove_restore" not in place.hooks.names
    assert place.days == ["20260101"]
    assert place.service.running is (found is ServiceState.RUNNING)
