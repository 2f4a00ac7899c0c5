"""`status` tells of each instance what is known now, and is stopped by nothing that is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from tests.parts.fakes import FakeHooks, FakeService, a_manifest, installed
from tests.support import make_partition
from vl_borg_hooks.actions.status import Overview, status
from vl_borg_hooks.config import LoadedConfig
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.runs.holder import Holder
from vl_borg_hooks.runs.records import Journal, RunRecords
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.transfer.progress import human_bytes


class Place:
    """One instance, and what its runs have left."""

    def __init__(self, hooks: FakeHooks, loaded: LoadedConfig) -> None:
        self.loaded = loaded
        (service,) = hooks.services.values()
        assert isinstance(service, FakeService)
        self.service = service
        (self.instance,) = loaded.config.instances
        self.staging = StagingCopy(Path(self.instance.staging_path))
        self.records = RunRecords(loaded.config.state_directory, self.instance.name)

    def overview(self) -> Overview:
        (found,) = status(self.loaded, self.loaded.config.instances)
        return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = Place(*installed(monkeypatch, tmp_path))
    yield made
    made.service.die()


def test_before_the_first_run_nothing_is_known_and_nothing_is_made(place: Place) -> None:
    found = place.overview()
    assert found == Overview(
        instance="default",
        service="the fake service",
        victorialogs="stopped",
        manifest=None,
        lease="",
        run="",
        unfinished=False,
    )
    assert found.lines() == [
        "default: VictoriaLogs stopped (the fake service)",
        "  staging copy: not published",
    ]
    assert not place.records.directory.exists()
    assert not place.staging.path.exists()


def test_a_server_that_runs_and_a_copy_that_is_archived_are_told(place: Place) -> None:
    place.service.live()
    place.staging.create()
    place.staging.publish(
        a_manifest().model_copy(update={"rows": 42, "bytes": 1500, "downtime_seconds": 0.251})
    )
    place.records.create()
    holder = Holder.of(os.getpid(), "borgmatic")
    place.records.take_lease(holder)
    found = place.overview()
    assert found.manifest == place.staging.manifest()
    victorialogs, copy, lease = found.lines()
    assert victorialogs == "default: VictoriaLogs running (the fake service)"
    assert copy == (
        "  staging copy: published 2026-11-22T00:00:00+00:00, 42 rows, 1.5 kB; "
        "VictoriaLogs away for 0.25 s, final pass stopped"
    )
    assert lease == f"  archived by {holder}, for 0 s now"


def test_of_a_copy_that_was_made_with_victorialogs_stopped_no_downtime_is_told(
    place: Place,
) -> None:
    place.staging.create()
    place.staging.publish(a_manifest().model_copy(update={"downtime_seconds": None}))
    assert "; VictoriaLogs not stopped for it, final pass" in place.overview().lines()[1]


def test_a_lease_of_a_process_that_has_ended_is_none(place: Place) -> None:
    place.records.create()
    place.records.take_lease(Holder(1, 1.0, "borgmatic", "2026-11-22T00:00:00+00:00"))
    assert place.overview().lease == ""


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_a_manifest_that_cannot_be_read_publishes_nothing(place: Place, content: bytes) -> None:
    place.staging.create()
    place.staging.manifest_path.write_bytes(content)
    assert place.overview().manifest is None


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 100_000])
def test_a_lease_that_makes_no_sense_is_one_line(place: Place, content: bytes) -> None:
    place.records.create()
    (place.records.directory / "lease.json").write_bytes(content)
    with pytest.raises(OperatorError) as caught:
        place.overview()
    assert str(caught.value).startswith(f"default: {place.records.directory}/lease.json: is not")
    assert "then: vl-borg-hooks after-create --force" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_a_journal_that_makes_no_sense_is_one_of_a_run_that_was_killed(
    place: Place, content: bytes
) -> None:
    place.records.create()
    (place.records.directory / "journal.json").write_bytes(content)
    assert place.overview().unfinished


def test_a_state_directory_that_is_not_ours_to_read_is_one_line(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As for anybody else than root. Root reads it all the same.
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "lstat", refuse)
    with pytest.raises(
        OperatorError, match=r"^default: .*\.json: can't be read: Permission denied"
    ):
        place.overview()


def test_a_service_manager_that_cannot_tell_is_told_of_in_its_place(place: Place) -> None:
    place.service.says = OperatorError("systemctl timed out", hint="look at systemd")
    found = place.overview()
    assert found.victorialogs == "unknown: systemctl timed out; look at systemd"
    assert found.service == "the fake service"


def test_a_run_that_was_killed_is_unfinished(place: Place) -> None:
    place.records.create()
    place.records.note(Journal("before-create", found_running=True))
    found = place.overview()
    assert found.unfinished
    assert found.lines()[-1] == "  a run was killed: vl-borg-hooks recover finishes it"


def test_replaced_data_is_told_with_its_age_its_size_and_what_to_do(place: Place) -> None:
    moment = datetime.now(timezone.utc) - timedelta(hours=3)
    name = moment.strftime("%Y%m%dT%H%M%S.%fZ")
    kept = Path(place.instance.data_path, ".vl-borg-hooks/kept", name)
    make_partition(kept / "partitions/20261122")
    found = place.overview()
    (replaced,) = found.replaced
    assert (replaced.path, replaced.since) == (str(kept), moment)
    assert replaced.bytes > 10_000
    assert found.lines()[-1] == (
        f"  replaced data, 3 h 0 min ago, {human_bytes(replaced.bytes)}, is kept in {kept}; to return "
        "to it: vl-borg-hooks restore --rollback; to remove it: vl-borg-hooks restore "
        "--discard-replaced"
    )


def test_a_run_in_its_stop_window_is_on_and_was_not_killed(place: Place) -> None:
    with place.records.run_lock("before-create"):
        place.records.note(Journal("before-create", found_running=True))
        found = place.overview()
    assert found.run.startswith(f"before-create (pid {os.getpid()}, since ")
    assert not found.unfinished
    assert found.lines()[-1] == f"  a run is in progress: {found.run}"


def test_each_instance_that_is_asked_for_is_told_of_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, loaded = installed(monkeypatch, tmp_path, names=["a", "b", "c"])
    found = status(loaded, loaded.instances(["c", "a"]))
    assert [overview.instance for overview in found] == ["c", "a"]
