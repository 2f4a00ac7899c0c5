"""`recover` gives each instance its turn, and a guard goes on for as long as something is owed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.parts.fakes import Clock, FakeHooks, FakeService, installed
from tests.support import said, tree
from vl_borg_hooks.actions import recover as action
from vl_borg_hooks.actions.recover import recover_all
from vl_borg_hooks.actions.run import Setting
from vl_borg_hooks.cli import main
from vl_borg_hooks.config import Instance, LoadedConfig
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.runs.holder import Holder
from vl_borg_hooks.runs.records import Journal, RunRecords
from vl_borg_hooks.stop_window import guard


class Place:
    """Two instances, and what killed runs have left of them."""

    def __init__(
        self,
        directory: Path,
        monkeypatch: pytest.MonkeyPatch,
        hooks: FakeHooks,
        loaded: LoadedConfig,
    ) -> None:
        self.clock = Clock()
        self.clock.install(monkeypatch)
        monkeypatch.setattr(action, "time", self.clock)
        self.directory, self.hooks, self.loaded = directory, hooks, loaded
        self.services: dict[str, FakeService] = {}
        self.records: dict[str, RunRecords] = {}
        for name, service in hooks.services.items():
            assert isinstance(service, FakeService)
            self.services[name] = service
            self.records[name] = RunRecords(loaded.config.state_directory, name)

    def killed(self, name: str, *, found_running: bool = True) -> None:
        self.records[name].create()
        self.records[name].note(Journal("before-create", found_running))

    def recover(self, *, wait: bool = False, dry_run: bool = False) -> bool:
        return recover_all(self.loaded, self.loaded.config.instances, wait=wait, dry_run=dry_run)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = Place(
        tmp_path,
        monkeypatch,
        *installed(monkeypatch, tmp_path, names=["a", "b"], start_timeout=3, stop_timeout=1),
    )
    yield made
    for service in made.services.values():
        service.die()


def test_an_instance_that_fails_does_not_keep_the_next_one_down(place: Place) -> None:
    place.killed("a")
    place.killed("b")
    place.services["a"].refusals = ["exit status 2"] * 100
    with said() as lines:
        assert not place.recover()
    assert place.services["b"].running
    assert place.records["b"].journal() is None
    (failure,) = [line for line in lines if "VICTORIALOGS IS DOWN" in line]
    assert failure.startswith("a: ")
    assert place.records["a"].has_journal


def test_each_failure_is_a_line_and_the_exit_status_is_1(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, service in place.services.items():
        place.killed(name)
        service.refusals = ["exit status 2"] * 100
    arguments = ["--config", str(place.loaded.path), "--verbosity", "-1", "recover"]
    with said() as lines:
        assert main(arguments) == 1
    down = [line for line in lines if "VICTORIALOGS IS DOWN" in line]
    assert [line.split(":")[0] for line in down] == ["a", "b"]
    assert "Traceback" not in capsys.readouterr().err


def test_a_service_manager_that_cannot_be_made_does_not_keep_the_next_one_down(
    place: Place,
) -> None:
    place.killed("b")
    del place.hooks.services["a"]
    with said() as lines:
        assert not place.recover()
    assert place.services["b"].running
    assert any(line.startswith("a: ") for line in lines)


def test_a_dry_run_starts_nothing_and_changes_nothing_and_says_what_it_would_do(
    place: Place,
) -> None:
    place.killed("a")
    before = tree(place.directory)
    with said() as lines:
        assert place.recover(dry_run=True)
    assert tree(place.directory) == before
    assert place.services["a"].asked == []
    would, nothing = lines
    assert would.startswith(
        "a: a before-create was cut short: would start VictoriaLogs if it is not"
    )
    assert would.endswith("; now VICTORIALOGS IS DOWN")
    assert nothing == "b: nothing to recover"


def test_a_dry_run_says_what_keeps_it_from_knowing(place: Place) -> None:
    place.killed("a")
    (place.records["a"].directory / "journal.json").write_text("{}")
    with said() as lines:
        assert not place.recover(dry_run=True)
    assert "is not a journal" in lines[0]


def test_without_waiting_a_run_that_is_on_is_left_alone(place: Place) -> None:
    place.killed("a")
    with place.records["a"].run_lock("before-create"), said() as lines:
        assert place.recover()
    assert place.services["a"].asked == []
    assert any("a: another run holds this instance" in line for line in lines)


def test_a_guard_tries_until_nothing_is_owed_with_a_growing_pause(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.killed("a")
    service = place.services["a"]
    pauses: list[float] = []
    pause = action._pause

    def pausing(setting: Setting, owed: Sequence[Instance], seconds: float) -> None:
        # The run lock is free: a new run takes it, and recovers itself.
        with place.records["a"].run_lock("before-create", wait=0):
            began = place.clock.now
        pause(setting, owed, seconds)
        if owed:
            assert place.clock.now - began >= seconds
            pauses.append(seconds)

    monkeypatch.setattr(action, "_pause", pausing)
    # Longer than start_timeout: several tries fail.
    service.refusals = ["exit status 2"] * 20
    with said() as lines:
        assert place.recover(wait=True)
    assert service.running
    assert place.records["a"].journal() is None
    assert pauses[:4] == [1, 2, 4, 8]
    assert max(pauses) <= action.LONGEST_PAUSE_SECONDS
    # Once, however often it fails in the same way.
    assert len([line for line in lines if "VICTORIALOGS IS DOWN" in line]) == 1


def test_a_guard_ends_if_another_run_has_recovered(place: Place) -> None:
    place.killed("a")
    place.services["a"].refusals = ["exit status 2"] * 1000

    def new_run() -> None:
        with place.records["a"].run_lock("before-create", wait=0):
            place.services["a"].live()
            place.records["a"].clear_journal()

    # In its third pause.
    place.clock.after(13, new_run)
    assert place.recover(wait=True)
    assert len(place.services["a"].refusals) > 900
    # At once, and not at the end of that pause.
    assert place.clock.now <= 1013 + 1


def test_a_guard_goes_on_if_the_service_manager_cannot_be_reached(place: Place) -> None:
    place.killed("a", found_running=False)
    service = place.services["a"]
    service.live()
    service.starts_after_stop = True
    service.stop_fails = "a could not be reached over ssh"
    service.says = OperatorError(service.stop_fails)

    def reached() -> None:
        service.stop_fails, service.says = "", None

    place.clock.after(100, reached)
    assert place.recover(wait=True)
    assert not service.running
    assert place.clock.now > 1100


def test_what_a_guard_cannot_bring_back_in_its_watch_is_owed(place: Place) -> None:
    # The stop that the killed run had asked for takes effect after the guard has looked.
    place.killed("a")
    service = place.services["a"]
    service.live()

    def late_stop() -> None:
        service.die()
        service.refusals = ["exit status 2"] * 10

    place.clock.after(2, late_stop)
    assert place.recover(wait=True)
    assert service.running
    assert service.refusals == []
    assert place.records["a"].journal() is None


def test_the_lease_of_who_has_ended_is_dropped_and_that_is_said(place: Place) -> None:
    ended = Holder(1, 1.0, "borgmatic", "2026-11-22T00:00:00+00:00")
    ours = Holder.of(os.getpid(), "borgmatic")
    for name, holder in (("a", ended), ("b", ours)):
        place.records[name].create()
        place.records[name].take_lease(holder)
    with said() as lines:
        assert place.recover()
    assert f"a: dropped the lease of {ended}, which has ended" in lines
    assert not any(line.startswith("b: dropped") for line in lines)
    assert place.records["a"].lease() is None
    assert place.records["b"].lease() == ours


def test_a_lease_that_makes_no_sense_keeps_nothing_down_and_is_left_to_the_operator(
    place: Place,
) -> None:
    place.killed("a")
    lease = place.records["a"].directory / "lease.json"
    lease.write_text("{}")
    service = place.services["a"]
    # The stop that the killed run had asked for takes effect late.
    service.live()
    place.clock.after(2, service.die)
    with said() as lines:
        assert place.recover()
    assert service.running
    assert lease.exists()
    assert any("lease.json: is not a lease; make sure" in line for line in lines)


def test_a_failure_that_leaves_nothing_owed_ends_the_guard(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    leftovers = place.services["a"]._lock.parent / ".vl-borg-hooks" / "replaced" / "partitions"
    leftovers.mkdir(parents=True)
    assert not place.recover(wait=True)
    assert place.clock.now == 1000


def test_a_guard_reports_only_if_it_has_all_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready: list[bool] = []
    monkeypatch.setattr(guard, "is_guard", lambda: True)
    monkeypatch.setattr(guard, "on_guard", lambda: ready.append(True))
    auth = {"username": "me", "password_environment": "VL_TEST_PASSWORD"}
    _, loaded = installed(monkeypatch, tmp_path, url="http://127.0.0.1:1", http_auth=auth)
    with pytest.raises(OperatorError, match="VL_TEST_PASSWORD"):
        recover_all(loaded, loaded.config.instances, wait=True, dry_run=False)
    assert ready == []
    monkeypatch.setenv("VL_TEST_PASSWORD", "secret")
    assert recover_all(loaded, loaded.config.instances, wait=True, dry_run=False)
    assert ready == [True]
