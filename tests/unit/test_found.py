"""In which state VictoriaLogs is: service manager and lock must agree, and an error says which."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.fakes import Clock, FakeService
from tests.support import make_backup
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Backup
from vl_borg_hooks.runs.records import Journal
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.stop_window.found import describe_state, find_state


@dataclasses.dataclass
class Place:
    backup: Backup
    service: FakeService
    clock: Clock


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    clock = Clock()
    clock.install(monkeypatch)
    data = tmp_path / "data"
    data.mkdir()
    backup = make_backup(tmp_path)
    service = FakeService(data)
    backup.service = service
    yield Place(backup, service, clock)
    service.die()


def test_service_and_lock_agree_that_it_runs(place: Place) -> None:
    place.service.live()
    assert find_state(place.backup) is ServiceState.RUNNING


@pytest.mark.parametrize("has_lock_file", [True, False])
def test_service_and_lock_agree_that_it_is_stopped(place: Place, *, has_lock_file: bool) -> None:
    if has_lock_file:
        Path(place.backup.data_directory, "flock.lock").touch()
    assert find_state(place.backup) is ServiceState.STOPPED


def test_a_service_that_runs_on_other_data_is_refused(place: Place) -> None:
    place.service.says = ServiceState.RUNNING
    with pytest.raises(OperatorError) as caught:
        find_state(place.backup)
    assert caught.value.what == (
        "the fake service runs, but no process holds the lock of "
        f"{place.backup.data_directory} on this machine"
    )
    assert "-storageDataPath" in caught.value.hint


def test_a_service_that_was_only_just_started_is_given_time_to_take_its_lock(
    place: Place,
) -> None:
    place.service.says = ServiceState.RUNNING
    place.clock.after(1, place.service.live)
    assert find_state(place.backup) is ServiceState.RUNNING


def test_a_server_that_the_service_knows_nothing_of_is_refused(place: Place) -> None:
    place.service.live()
    place.service.says = ServiceState.STOPPED
    before = place.clock.now
    with pytest.raises(OperatorError) as caught:
        find_state(place.backup)
    assert caught.value.what.startswith("the fake service is stopped, but a process holds the lock")
    assert "service:" in caught.value.hint
    assert place.clock.now == before


def test_a_service_manager_that_cannot_tell_is_no_state(place: Place) -> None:
    place.service.says = OperatorError("no such unit")
    with pytest.raises(OperatorError, match="no such unit"):
        find_state(place.backup)


@pytest.mark.parametrize(
    ("running", "found", "is_open", "starts_after_stop", "expected"),
    [
        (True, ServiceState.RUNNING, False, False, "VictoriaLogs is running"),
        (True, ServiceState.STOPPED, False, False, "VictoriaLogs is running"),
        # A stop that was asked for and has not been seen to take effect.
        (
            *(True, ServiceState.RUNNING, True, False),
            "VictoriaLogs is running, but was asked to stop: check that it keeps running",
        ),
        (True, ServiceState.RUNNING, True, True, "VictoriaLogs is running"),
        (False, ServiceState.RUNNING, False, False, "VICTORIALOGS IS DOWN"),
        (False, ServiceState.RUNNING, True, False, "VICTORIALOGS IS DOWN"),
        (False, None, False, False, "VictoriaLogs is stopped"),
        (False, ServiceState.STOPPED, False, False, "VictoriaLogs is stopped as it was found"),
    ],
)
def test_an_error_says_whether_it_runs_and_whether_that_will_last(
    place: Place,
    *,
    running: bool,
    found: ServiceState | None,
    is_open: bool,
    starts_after_stop: bool,
    expected: str,
) -> None:
    if running:
        place.service.live()
    place.backup.found = found
    place.backup.stop.is_open = is_open
    place.service.starts_after_stop = starts_after_stop
    # It is the lock that is asked.
    place.service.says = OperatorError("can't tell")
    assert describe_state(place.backup) == expected


def test_an_error_says_that_the_state_is_unknown_if_the_lock_cannot_be_asked_for(
    place: Place,
) -> None:
    lock_file = Path(place.backup.data_directory, "flock.lock")
    lock_file.symlink_to("elsewhere")
    assert describe_state(place.backup) == "the state of VictoriaLogs is unknown"
    place.backup.found = ServiceState.RUNNING
    assert describe_state(place.backup) == "the state of VictoriaLogs is unknown, IT MAY BE DOWN"


def test_what_a_killed_run_has_left_down_is_down_before_anything_is_found_out(place: Place) -> None:
    place.backup.records.create()
    place.backup.records.note(Journal("before-create", found_running=True))
    assert describe_state(place.backup) == "VICTORIALOGS IS DOWN"


def test_an_error_says_that_the_state_is_unknown_whatever_keeps_it_from_being_known(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise RuntimeError("a bug")

    monkeypatch.setattr("vl_borg_hooks.victorialogs.lock.is_held", fail)
    assert describe_state(place.backup) == "the state of VictoriaLogs is unknown"
