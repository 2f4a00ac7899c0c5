"""The order of a backup, and that half of one is withdrawn."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.parts.fakes import FakeHooks, FakeService, a_manifest, installed
from tests.support import make_data, said
from vl_borg_hooks.actions import backup as action
from vl_borg_hooks.actions.backup import back_up
from vl_borg_hooks.config import LoadedConfig
from vl_borg_hooks.errors import Busy, InvalidCopy, OperatorError
from vl_borg_hooks.plugin.checks import Check
from vl_borg_hooks.runs import borgmatic
from vl_borg_hooks.runs.holder import Holder
from vl_borg_hooks.runs.records import Journal, RunRecords
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.staging.last_published import Notes
from vl_borg_hooks.staging.walk import hashed, walk

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
    # What monitoring takes for success must be one.
    assert caught.value.exit_status == 1
    assert str(caught.value) == (
        f"b: the staging copy {place.staging['b'].path} is still being archived by {ANOTHERS}; "
        "VictoriaLogs is stopped; wait until it has ended; if nothing archives it: "
        "vl-borg-hooks after-create --force"
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


def skipping(place: Place, monkeypatch: pytest.MonkeyPatch, version: str = "") -> None:
    """Have the config say `when_busy: skip`, and a borgmatic with that version run us."""
    config = place.loaded.config.model_copy(update={"when_busy": "skip"})
    place.loaded = replace(place.loaded, config=config)
    if version:
        command = (sys.executable, "-c", f"print({version!r})")
        found = borgmatic.Borgmatic(psutil.Process(), command, ())
        monkeypatch.setattr(borgmatic, "running", lambda: found)


@pytest.mark.parametrize("version", ["", "2.1.9", "2.1.10", "1.8.14"])
def test_who_wants_it_soft_has_a_run_skipped(
    place: Place, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    skipping(place, monkeypatch, version)
    place.records["b"].take_lease(ANOTHERS)
    with pytest.raises(Busy) as caught:
        place.back_up()
    assert caught.value.exit_status == 75
    assert place.published == BOTH_OLD


def test_no_run_is_skipped_by_the_borgmatic_that_would_archive_all_the_same(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    skipping(place, monkeypatch, "2.1.8")
    place.records["b"].take_lease(ANOTHERS)
    with pytest.raises(Busy) as caught:
        place.back_up()
    assert caught.value.exit_status == 1
    assert str(caught.value).endswith(
        "; not skipped, as borgmatic 2.1.8 would archive all the same"
    )


def test_a_borg_that_hangs_is_no_reason_to_skip_one_run_after_the_other(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    skipping(place, monkeypatch)
    place.records["b"].take_lease(replace(ANOTHERS, taken=ANOTHERS.taken - 25 * 3600))
    with pytest.raises(Busy) as caught:
        place.back_up()
    assert caught.value.exit_status == 1
    assert str(caught.value).endswith("; no run is skipped after 24 hours")


def test_a_lease_that_nobody_can_be_seen_behind_is_not_ours(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.records["a"].take_lease(Holder.unknown())
    monkeypatch.setattr(action, "calling_process", Holder.unknown)
    with pytest.raises(Busy, match="archived by whoever called before-create "):
        place.back_up("a")


class SameRun:
    """One borgmatic, OURS, that calls us for one config file after the other."""

    def __init__(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place, self.monkeypatch = place, monkeypatch
        found = borgmatic.Borgmatic(psutil.Process(OURS.pid), (), ())
        monkeypatch.setattr(borgmatic, "running", lambda: found)
        place.hooks.doing["publish a"] = lambda: self.publish("a")
        place.hooks.doing["publish b"] = lambda: self.publish("b")

    def publish(self, name: str) -> None:
        """Publish a copy with content, as our own step does."""
        staging, records = self.place.staging[name], self.place.records[name]
        if not (staging.data / "partitions").exists():
            make_data(staging.data)
        notes = Notes()
        totals = staging.write_inventory(
            notes.taking(hashed(staging.data, walk(staging.data, linked=False), []))
        )
        staging.use_new_inventory()
        staging.publish(a_manifest().model_copy(update={"inventory_sha256": totals.sha256}))
        notes.keep(records.directory, totals.sha256, time.time())

    def release(self) -> None:
        for records in self.place.records.values():
            records.release_lease()

    def made(self, *names: str) -> set[str]:
        """Call us for the next config file; return of which instances a copy was made."""
        self.place.hooks.calls.clear()
        self.place.back_up(*names)
        made = {name for hook, name in self.place.hooks.calls if hook == "make_copy"}
        # Nobody else is told of a backup that was not made.
        assert {name for _, name in self.place.hooks.calls} == made
        return made


@pytest.fixture
def same_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> SameRun:
    return SameRun(place, monkeypatch)


def test_the_next_config_file_of_the_same_borgmatic_archives_the_same_copies(
    place: Place, same_run: SameRun
) -> None:
    assert same_run.made() == {"a", "b"}
    same_run.release()
    with said() as lines:
        assert same_run.made() == set()
    created = a_manifest().created
    assert lines == [
        f"{name}: published already for this run of borgmatic, at {created}: VictoriaLogs is not "
        "stopped again"
        for name in "ab"
    ]
    assert place.leases == {"a": OURS, "b": OURS}
    assert place.published == {"a": "new", "b": "new"}


def test_the_lease_may_still_be_held_as_borgmatic_1_has_all_hooks_first(
    place: Place, same_run: SameRun
) -> None:
    assert same_run.made() == {"a", "b"}
    assert same_run.made() == set()
    assert place.leases == {"a": OURS, "b": OURS}


def test_of_config_files_with_different_instances_each_is_copied_once(
    place: Place, same_run: SameRun
) -> None:
    assert same_run.made("a") == {"a"}
    assert same_run.made() == {"b"}
    assert place.leases == {"a": OURS, "b": OURS}
    assert same_run.made("b", "a") == set()


def test_a_copy_that_is_archived_once_more_stays_published_if_the_other_fails(
    place: Place, same_run: SameRun
) -> None:
    assert same_run.made("a") == {"a"}
    same_run.release()
    place.hooks.failing("make_copy b", OperatorError("it failed"))
    with pytest.raises(OperatorError, match="it failed"):
        place.back_up()
    assert place.published == {"a": "new"}
    # borgmatic does not archive this config file.
    assert place.leases == {}


def test_the_next_borgmatic_has_copies_of_its_own(place: Place, same_run: SameRun) -> None:
    assert same_run.made() == {"a", "b"}
    same_run.release()
    another = replace(OURS, created=OURS.created + 1)
    same_run.monkeypatch.setattr(action, "calling_process", lambda: another)
    assert same_run.made() == {"a", "b"}


def test_a_script_that_calls_us_twice_has_two_copies_made(place: Place, same_run: SameRun) -> None:
    same_run.monkeypatch.setattr(borgmatic, "running", lambda: None)
    assert same_run.made() == {"a", "b"}
    assert same_run.made() == {"a", "b"}


def unpublish(place: Place) -> None:
    place.staging["a"].unpublish()


def publish_anew(place: Place) -> None:
    manifest = place.staging["a"].manifest()
    place.staging["a"].publish(manifest.model_copy(update={"created": "2026-11-23T00:00:00+00:00"}))


def damage(place: Place) -> None:
    (damaged, *_) = place.staging["a"].data.rglob("values.bin0")
    damaged.write_bytes(b"x" * damaged.stat().st_size)


def add_a_file(place: Place) -> None:
    (place.staging["a"].data / "partitions/20261121/datadb/stray").touch()


def leave_a_journal(place: Place) -> None:
    place.records["a"].note(Journal("restore", found_running=False))


def forget(place: Place) -> None:
    (place.records["a"].directory / "published.json").write_text("{}")


def configure(place: Place) -> None:
    a, b = place.loaded.config.instances
    instances = [a.model_copy(update={"final_pass": "stopped"}), b]
    config = place.loaded.config.model_copy(update={"instances": instances})
    place.loaded = replace(place.loaded, config=config)


@pytest.mark.parametrize(
    "change",
    [unpublish, publish_anew, damage, add_a_file, leave_a_journal, forget, configure],
)
def test_a_copy_that_is_not_as_it_was_published_is_made_again(
    place: Place, same_run: SameRun, change: Callable[[Place], None]
) -> None:
    assert same_run.made() == {"a", "b"}
    same_run.release()
    change(place)
    assert "a" in same_run.made()
    assert place.leases == {"a": OURS, "b": OURS}


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
