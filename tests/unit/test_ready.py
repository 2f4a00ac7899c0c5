"""What has to be in place is asked of each host that has to have it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.parts.fakes import FakeClient, FakeHost, FakeService, held, with_client
from tests.support import FAKE_SSH, make_backup, make_copy, make_data, make_restore, said
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.checks import Check
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.snapshots import offer
from vl_borg_hooks.steps import ready
from vl_borg_hooks.system.hosts import Owner
from vl_borg_hooks.transfer import rsync
from vl_borg_hooks.victorialogs import flags
from vl_borg_hooks.victorialogs.flags import KeptDays
from vl_borg_hooks.victorialogs.http import NotVictoriaLogs


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["rsync on this machine"]),
        ({"data_path": "u@h:/data"}, ["rsync on this machine", "rsync on u@h"]),
    ],
)
def test_each_different_host_is_asked_for_its_rsync_once(
    tmp_path: Path, options: Mapping[str, object], expected: list[str]
) -> None:
    program = tmp_path / "ssh"
    program.write_text(FAKE_SSH)
    program.chmod(0o755)
    backup = make_backup(tmp_path, ssh_command=[str(program)], **options)
    checks = [found for found in ready.backup_checks(backup) if found.name.startswith("rsync")]
    assert [found.name for found in checks] == expected
    assert all(found.ok for found in checks)


class Place:
    """A restore of a copy of two days, 21 rows each, and the checks for it."""

    def __init__(self, directory: Path, **options: object) -> None:
        data = make_data(directory / "data", days=["20260101"])
        copy = make_copy(directory / "extracted")
        self.restore = make_restore(directory, copy, copy.manifest(), **options)
        self.service = FakeService(data)
        self.restore.service = self.service
        self.host = FakeHost(owners={"/partitions": OWNER})
        self.restore.host = self.host

    def check(self, name: str) -> Check:
        (found,) = [found for found in ready.restore_checks(self.restore) if found.name == name]
        return found

    def checks(self) -> list[str]:
        return [found.name for found in ready.restore_checks(self.restore)]


OWNER = Owner(998, 997)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(rsync, "check_version", lambda host: None)
    made = Place(tmp_path)
    yield made
    made.service.die()


@pytest.mark.parametrize("running", [True, False])
def test_a_restore_finds_out_whether_victorialogs_runs(place: Place, *, running: bool) -> None:
    if running:
        place.service.live()
    found = place.check("VictoriaLogs")
    assert found.ok
    expected = ServiceState.RUNNING if running else ServiceState.STOPPED
    assert place.restore.found is expected
    assert found.what == f"VictoriaLogs is {expected.value}"


def test_a_restore_stops_no_server_that_its_service_manager_could_not_start_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place.check("service manager").ok

    def fail() -> None:
        raise OperatorError("the command rc-service was not found")

    monkeypatch.setattr(place.service, "check", fail)
    assert place.check("service manager").what == "the command rc-service was not found"


def test_a_restore_of_lost_data_needs_no_lock_file(place: Place) -> None:
    shutil.rmtree(place.restore.data_directory)
    place.service.says = ServiceState.RUNNING
    assert place.check("VictoriaLogs").ok
    assert place.restore.found is ServiceState.RUNNING


def test_data_that_another_server_has_is_not_replaced(place: Place) -> None:
    with held(Path(place.restore.data_directory)):
        found = place.check("VictoriaLogs")
        names = place.checks()
    assert not found.ok
    assert found.what.startswith("the fake service is stopped, but a process holds the lock of ")
    # Of whom would it be asked?
    assert "limits" not in names


@pytest.mark.parametrize("known", range(5))
def test_restored_files_belong_to_the_first_owner_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: int
) -> None:
    """The config's, that of the data, of the service, of the directory, of what was backed up."""
    config, data, service, directory, copied = (Owner(number, number) for number in range(1, 6))
    place = Place(tmp_path, **({"restore": {"owner": "vl:vl"}} if known == 0 else {}))
    place.host.users = {"vl:vl": config}
    place.host.owners = {
        **({"/data/partitions": data} if known <= 1 else {}),
        **({"/data": directory} if known <= 3 else {}),
    }
    monkeypatch.setattr(FakeService, "owner", lambda _: service if known <= 2 else None)
    place.restore.manifest = place.restore.manifest.model_copy(update={"owner": (5, 5)})
    found = place.check("owner")
    assert found.ok
    assert place.restore.owner == (config, data, service, directory, copied)[known]
    assert found.what.endswith(f"will belong to {place.restore.owner}")


def test_files_that_nobody_is_known_to_own_belong_to_who_runs_this(place: Place) -> None:
    place.host.owners = {}
    place.restore.manifest = place.restore.manifest.model_copy(update={"owner": None})
    found = place.check("owner")
    assert (found.ok, place.restore.owner) == (True, None)
    assert found.what.endswith("the user that runs this")


def test_an_owner_that_the_host_does_not_know_is_refused(tmp_path: Path) -> None:
    found = Place(tmp_path, restore={"owner": "nobody:nowhere"}).check("owner")
    assert not found.ok
    assert found.what == "this machine does not know nobody:nowhere, which restore: owner: names"


def test_who_is_not_root_can_restore_only_files_of_its_own(place: Place) -> None:
    place.host.user = 1000
    found = place.check("owner")
    assert not found.ok
    assert found.what == "the restored files must belong to user 998, but user 1000 runs this"
    place.host.user = OWNER.user
    assert place.check("owner").ok
    # Who owns it can't give it away, and has not to.
    assert place.restore.owner is None


@pytest.fixture
def today(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retention of N days keeps what is not older than 20261122 minus N - 1."""
    days = {"1d": "20261122", "2d": "20261121", "7d": "20261116", "0d": "20261123"}
    monkeypatch.setattr(
        flags,
        "kept_days",
        lambda value, _: KeptDays(days[value], "20261124") if value in days else None,
    )


@pytest.mark.usefixtures("today")
@pytest.mark.parametrize("retention", ["2d", "7d"])
def test_a_copy_within_the_retention_is_kept_whole(
    place: Place, monkeypatch: pytest.MonkeyPatch, retention: str
) -> None:
    place.service.live()
    with_client(monkeypatch, FakeClient({"retentionPeriod": retention}))
    found = place.check("limits")
    assert found.ok
    assert found.what == "VictoriaLogs keeps all that is in the copy"


@pytest.mark.usefixtures("today")
def test_rows_that_victorialogs_will_delete_are_told_before(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.service.live()
    with_client(monkeypatch, FakeClient({"retentionPeriod": "1d"}))
    with said() as lines:
        found = place.check("limits")
    assert found.ok
    assert found.what == (
        "1 of 2 partitions (21 rows) are past -retentionPeriod or -futureRetention: VictoriaLogs "
        "will delete them"
    )
    assert any(found.what in line for line in lines)


@pytest.mark.usefixtures("today")
def test_a_copy_that_victorialogs_would_delete_at_once_is_not_restored(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.service.live()
    with_client(monkeypatch, FakeClient({"retentionPeriod": "0d"}))
    found = place.check("limits")
    assert not found.ok
    assert "2 of 2 partitions (42 rows) are not from 20261123 to 20261124" in found.what
    assert "longer -retentionPeriod" in found.hint


@pytest.mark.usefixtures("today")
@pytest.mark.parametrize("limit", ["1KB", "1000TB", "0", ""])
def test_a_copy_that_is_larger_than_victorialogs_may_be_is_told_of_before(
    place: Place, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    place.service.live()
    sizes = {"retentionPeriod": "7d", "retention.maxDiskSpaceUsageBytes": limit}
    with_client(monkeypatch, FakeClient(sizes))
    found = place.check("limits")
    assert found.ok
    told = "but VictoriaLogs keeps 1.0 kB (-retention.maxDiskSpaceUsageBytes" in found.what
    assert told is (limit == "1KB")


@pytest.mark.usefixtures("today")
@pytest.mark.parametrize(("percent", "told"), [("100", False), ("1", False), ("0", False)])
def test_the_share_of_the_disk_is_of_its_size_and_not_of_what_others_use(
    place: Place, monkeypatch: pytest.MonkeyPatch, percent: str, *, told: bool
) -> None:
    # One hundredth of this machine's disk is more than the copy has, however full it is.
    place.service.live()
    sizes = {"retentionPeriod": "7d", "retention.maxDiskUsagePercent": percent}
    with_client(monkeypatch, FakeClient(sizes))
    assert ("but VictoriaLogs keeps" in place.check("limits").what) is told


@pytest.mark.parametrize("why", ["stopped", "no url", "no answer"])
def test_a_server_that_cannot_tell_its_limits_is_asked_after_the_start(
    place: Place, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    clients = {"stopped": FakeClient({"retentionPeriod": "0d"}), "no answer": FakeClient(None)}
    with_client(monkeypatch, clients.get(why))
    if why != "stopped":
        place.service.live()
    found = place.check("limits")
    assert found.ok
    assert found.what == "what VictoriaLogs keeps is not known before it was started"


def test_a_healthy_server_that_does_not_tell_its_retention_ends_the_restore(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.service.live()
    with_client(monkeypatch, FakeClient({"retentionPeriod": "a while"}))
    found = place.check("limits")
    assert not found.ok
    assert found.what.endswith("/metrics says -retentionPeriod=a while, which can't be understood")


def test_data_of_an_earlier_restore_that_is_kept_ends_the_restore(place: Place) -> None:
    assert place.check("replaced data").ok
    kept = Path(place.restore.working_directory, "kept", "20261122T101112.000001Z")
    (kept / "partitions").mkdir(parents=True)
    found = place.check("replaced data")
    assert not found.ok
    assert found.what == f"replaced data of an earlier restore is still kept in {kept}"
    assert "--rollback" in found.hint
    assert "--discard-replaced" in found.hint


def test_a_victorialogs_that_is_ill_is_a_reason_to_restore(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.service.live()
    with_client(monkeypatch, FakeClient(None))
    with said() as lines:
        found = place.check("health")
    assert found.ok
    assert "VictoriaLogs runs, but http://127.0.0.1:1/health did not answer" in found.what
    assert any(found.what in line and "stop VictoriaLogs and add --start" in line for line in lines)


@pytest.mark.parametrize("error", [OperatorError, NotVictoriaLogs])
def test_what_answers_and_is_not_victorialogs_ends_the_restore(
    place: Place, monkeypatch: pytest.MonkeyPatch, error: type[OperatorError]
) -> None:
    place.service.live()
    client = FakeClient({})
    with_client(monkeypatch, client)

    def refuse() -> None:
        raise error("/health answered with 404")

    monkeypatch.setattr(client, "require_healthy", refuse)
    found = place.check("health")
    assert (found.ok, found.what) == (False, "VictoriaLogs runs, but /health answered with 404")
    assert found.hint.startswith("correct url")


def test_without_a_service_manager_the_lock_says_whether_victorialogs_runs(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    options = {"service": {}, "consistency": "snapshot", "url": "http://127.0.0.1:1"}
    backup = make_backup(tmp_path, **options)
    assert backup.service.state() is ServiceState.STOPPED
    with held(data):
        assert backup.service.state() is ServiceState.RUNNING
    with pytest.raises(OperatorError, match="because the config has no service: for it"):
        backup.service.stop()


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> list[OperatorError]:
    """What is wrong with the snapshots that the server offers; nothing if it is empty."""
    problems: list[OperatorError] = []

    def require(target: object, client: object) -> None:
        if problems:
            raise problems[0]

    monkeypatch.setattr(offer, "require_offered", require)
    monkeypatch.setattr(offer, "require_hard_links", lambda target: None)
    return problems


@pytest.mark.parametrize(
    ("wanted", "is_offered", "becomes", "why"),
    [
        ("stop", True, "stop", "consistency: stop in the config"),
        ("stop", False, "stop", "consistency: stop in the config"),
        ("auto", True, "snapshot", "VictoriaLogs offers snapshots"),
        ("auto", False, "stop", "it offers no snapshots"),
        ("snapshot", True, "snapshot", "consistency: snapshot in the config"),
    ],
)
def test_how_the_copy_becomes_consistent_is_chosen_and_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    offered: list[OperatorError],
    wanted: str,
    is_offered: bool,
    becomes: str,
    why: str,
) -> None:
    with_client(monkeypatch, FakeClient({}))
    backup = make_backup(tmp_path, consistency=wanted, url="http://127.0.0.1:1")
    if not is_offered:
        offered.append(OperatorError("it offers no snapshots"))
    ready.choose(backup)
    assert (backup.consistency, backup.consistency_why) == (becomes, why)


def test_snapshots_that_the_config_wants_and_the_server_lacks_are_a_failed_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offered: list[OperatorError]
) -> None:
    with_client(monkeypatch, FakeClient({}))
    offered.append(OperatorError("it offers no snapshots"))
    backup = make_backup(tmp_path, consistency="snapshot", url="http://127.0.0.1:1")
    with pytest.raises(OperatorError, match="it offers no snapshots"):
        ready.choose(backup)
    assert backup.consistency == "stop"
