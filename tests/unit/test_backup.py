"""The order of a backup, and that half of one is withdrawn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.fakes import FakeHooks, FakeService, a_manifest, installed
from tests.support import said
from vl_borg_hooks.actions import backup as action
from vl_borg_hooks.actions.backup import back_up
from vl_borg_hooks.config import LoadedConfig
from vl_borg_hooks.errors import Busy, InvalidCopy, OperatorError
from vl_borg_hooks.plugin.checks import Check
from vl_borg_hooks.runs.records import Holder, Journal, RunRecords
from vl_borg_hooks.staging.copy import StagingCopy

OURS = Holder.of(os.getppid(), "borgmatic")
ANOTHERS = Holder.of(os.getpid(), "borgmatic")
OLD = a_manifest().model_copy(update={"rows": 7})


class Place:
    """Instances `a` and `b`, whose copies of the last run are published; the caller is OURS."""

    def __init__(self, hooks: FakeHooks, loaded: LoadedConfig) -> None:
        self.hooks, self.loaded = hooks, loaded
        state = loaded.config.state_directory
        self.records = {name: RunRecords(state, name) for name in hooks.services}
        self.staging: dict[str, StagingCopy] = {}
        for instance in loaded.config.instances:
            self.records[instance.name].create()
            self.staging[instance.name] = copy = StagingCopy(Path(instance.staging_path))
            copy.create()
            copy.publish(OLD)

    def back_up(self, *names: str, dry_run: bool = False) -> None:
        back_up(self.loaded, self.loaded.instances(names), dry_run=dry_run)

    @property
    def published(self) -> dict[str, str]:
        """Which copies Borg would archive: the one of the last run, or a new one."""
        return {
            name: "old" if copy.manifest() == OLD else "new"
            for name, copy in self.staging.items()
            if copy.manifest_path.exists()
        }

    @property
    def leases(self) -> dict[str, Holder]:
        found = {name: records.lease_holder() for name, records in self.records.items()}
        return {name: holder for name, holder in found.items() if holder}


BOTH_OLD = {"a": "old", "b": "old"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(action, "calling_process", lambda: OURS)
    hooks, loaded = installed(monkeypatch, tmp_path, names=["a", "b"])
    yield Place(hooks, loaded)
    for service in hooks.services.values():
        assert isinstance(service, FakeService)
        service.die()


def test_all_is_checked_before_the_first_copy_is_touched(place: Place) -> None:
    seen: dict[str, dict[str, str]] = {}
    for call in ("backup_checks b", "make_copy a", "make_copy b", "after_backup a"):
        place.hooks.doing[call] = lambda call=call: seen.update({call: place.published})  # type: ignore[misc]
    place.back_up()
    assert [f"{hook} {name}" for hook, name in place.hooks.calls] == [
        *("before_backup a", "before_backup b"),
        *("backup_checks a", "backup_checks b"),
        *("make_copy a", "publish a", "make_copy b", "publish b"),
        *("after_backup a", "after_backup b"),
    ]
    assert seen == {
        "backup_checks b": BOTH_OLD,
        # Unpublished before the first byte of it changes.
        "make_copy a": {"b": "old"},
        "make_copy b": {"a": "new"},
        "after_backup a": {"a": "new", "b": "new"},
    }
    assert place.hooks.told == {"a": None, "b": None}


def test_the_copies_are_leased_to_who_archives_them(place: Place) -> None:
    seen: list[dict[str, Holder]] = []
    place.hooks.doing["publish b"] = lambda: seen.append(place.leases)
    place.hooks.doing["after_backup a"] = lambda: seen.append(place.leases)
    place.back_up()
    assert seen == [{}, {"a": OURS, "b": OURS}]
    assert place.leases == {"a": OURS, "b": OURS}


def test_an_instance_that_was_not_asked_for_is_left_as_it_is(place: Place) -> None:
    place.back_up("b")
    assert {name for _, name in place.hooks.calls} == {"b"}
    assert place.published == {"a": "old", "b": "new"}
    assert place.leases == {"b": OURS}


def test_a_dry_run_makes_the_checks_and_nothing_else(place: Place) -> None:
    place.back_up(dry_run=True)
    assert place.hooks.calls == [("backup_checks", "a"), ("backup_checks", "b")]
    assert place.published == BOTH_OLD
    assert place.leases == {}
    place.hooks.checks["a"] = [Check("room", False, "no room")]
    with pytest.raises(OperatorError, match="a: no room"):
        place.back_up(dry_run=True)


def test_a_check_that_fails_leaves_every_copy_as_it_is(place: Place) -> None:
    place.hooks.checks["b"] = [Check("room", False, "no room", "make some")]
    with pytest.raises(OperatorError) as caught:
        place.back_up()
    assert str(caught.value) == "b: no room; VictoriaLogs is stopped; make some"
    assert place.published == BOTH_OLD
    assert "make_copy" not in place.hooks.names
    assert place.hooks.told == {"a": caught.value, "b": caught.value}


def test_only_who_prepared_learns_of_a_preparation_that_fails(place: Place) -> None:
    place.hooks.failing("before_backup a", RuntimeError("the moon is full"))
    with pytest.raises(OperatorError, match="a: unexpected RuntimeError: the moon is full"):
        place.back_up()
    assert place.hooks.calls == [("before_backup", "a"), ("after_backup", "a")]
    assert place.published == BOTH_OLD


@pytest.mark.parametrize("call", ["make_copy a", "publish a", "make_copy b", "publish b"])
@pytest.mark.parametrize("error", [OperatorError("it failed"), KeyboardInterrupt()])
def test_half_of_the_instances_is_no_backup(place: Place, call: str, error: BaseException) -> None:
    place.hooks.failing(call, error)
    with pytest.raises(type(error)) as caught:
        place.back_up()
    assert caught.value is error
    assert place.published == {}
    assert place.leases == {}
    assert place.hooks.told == {"a": error, "b": error}
    assert place.hooks.names.count("after_backup") == 2


def test_an_after_backup_that_fails_withdraws_all(place: Place) -> None:
    place.hooks.failing("after_backup b", RuntimeError("no chat"))
    with pytest.raises(OperatorError, match="b: unexpected RuntimeError: no chat"):
        place.back_up()
    assert place.published == {}
    assert place.leases == {}
    # Nobody is told twice.
    assert place.hooks.names.count("after_backup") == 2


def test_an_after_backup_that_fails_does_not_hide_the_failure_of_the_backup(
    place: Place,
) -> None:
    place.hooks.failing("make_copy", OperatorError("rsync failed"))
    place.hooks.failing("after_backup a", RuntimeError("no chat"))
    with said() as lines, pytest.raises(OperatorError, match="rsync failed"):
        place.back_up()
    assert any("after_backup failed too: no chat" in line for line in lines)
    # Nor does it keep the others from learning of it.
    assert set(place.hooks.told) == {"a", "b"}


def test_a_copy_that_another_borgmatic_archives_is_left_alone(place: Place) -> None:
    place.records["b"].take_lease(ANOTHERS)
    with pytest.raises(Busy) as caught:
        place.back_up()
    assert caught.value.exit_status == 75
    assert str(caught.value).startswith(
        f"b: the staging copy {place.staging['b'].path} is still being archived by {ANOTHERS}"
    )
    assert place.hooks.calls == []
    assert place.published == BOTH_OLD
    assert place.leases == {"b": ANOTHERS}


@pytest.mark.parametrize("holder", [OURS, Holder(1, 1.0, "borgmatic", "2026-11-22T00:00:00+00:00")])
def test_a_lease_of_our_own_or_of_a_process_that_has_ended_is_no_hindrance(
    place: Place, holder: Holder
) -> None:
    place.records["a"].take_lease(holder)
    place.back_up("a")
    assert place.published["a"] == "new"


def test_a_lease_that_makes_no_sense_keeps_all_as_they_are_and_is_told_of_its_instance(
    place: Place,
) -> None:
    lease = place.records["a"].directory / "lease.json"
    lease.write_text("{}")
    with pytest.raises(InvalidCopy) as caught:
        place.back_up()
    assert str(caught.value).startswith(f"a: {lease}: is not a lease; ")
    assert place.hooks.calls == []
    assert place.published == BOTH_OLD


def test_another_run_on_one_instance_keeps_all_as_they_are(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = RunRecords.run_lock
    monkeypatch.setattr(
        RunRecords, "run_lock", lambda records, command, **_: lock(records, command, wait=0)
    )
    with place.records["b"].run_lock("restore"), pytest.raises(Busy) as caught:
        place.back_up()
    assert str(caught.value).startswith("b: another run holds this instance: restore (pid ")
    assert place.hooks.calls == []
    assert place.published == BOTH_OLD


def test_what_a_killed_run_left_is_finished_before_the_checks(place: Place) -> None:
    place.records["b"].note(Journal("before-create", found_running=True))
    place.back_up("b")
    assert place.hooks.names == [
        "before_backup",
        "start_service",
        "is_healthy",
        "backup_checks",
        "make_copy",
        "publish",
        "after_backup",
    ]
    assert place.records["b"].journal() is None
