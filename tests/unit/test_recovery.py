"""What a killed run left is finished: VictoriaLogs and its data are as that run found them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.fakes import Clock, FakeClient, FakeHooks, FakeService, with_client
from tests.support import make_backup, make_data, make_partition, said, tree
from vl_borg_hooks.actions.run import explained
from vl_borg_hooks.errors import InvalidCopy, OperatorError
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.runs.records import Expected, Journal
from vl_borg_hooks.stop_window import window
from vl_borg_hooks.stop_window.recovery import recover
from vl_borg_hooks.stop_window.window import StartFailed
from vl_borg_hooks.system import files
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.victorialogs import lock
from vl_borg_hooks.victorialogs.layout import WORKING_DIRECTORY
from vl_borg_hooks.victorialogs.swap import INCOMING, Swap, present


class Killed:
    """What a run was killed in the middle of; VictoriaLogs is down."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.clock.install(monkeypatch)
        self.data = make_data(directory / "data", days=["20261121", "20261122"])
        (self.data / "delete_tasks.json").write_text("[]")
        self.before = tree(self.data)
        self.target = make_backup(directory, stop_timeout=0.5, start_timeout=5)
        self.target.records.create()
        self.service = FakeService(self.data)
        self.target.service = self.service
        self.hooks = FakeHooks()

    @property
    def working(self) -> Path:
        return self.data / WORKING_DIRECTORY

    def note(self, command: str, *, found_running: bool) -> None:
        self.target.records.note(Journal(command, found_running))

    def swap(self, *, found_running: bool, whole: bool = False, discard: bool = False) -> None:
        """Do what a restore had done until it was killed: the old set aside, half of the new.

        Or all of the new, if `whole`.
        """
        make_data(self.working / INCOMING, days=["20200101"])
        (self.working / "incoming" / "flock.lock").unlink()
        (self.working / "incoming" / "extra.json").write_text("new")
        names = present(self.target.host, str(self.data))
        expected = Expected({"20200101": 21}, 1_000_000)
        self.target.records.note(
            Journal("restore", found_running, names, INCOMING, expected, discard=discard)
        )
        Swap(self.target.host, str(self.data), names).do()
        if whole:
            return
        (self.data / "extra.json").rename(self.working / "incoming" / "extra.json")
        assert (self.data / "partitions/20200101").exists()
        assert not (self.data / "delete_tasks.json").exists()

    def recover(self, *, undo: bool = False) -> bool:
        return recover(self.hooks, self.target, undo=undo)

    @property
    def kept(self) -> list[Path]:
        return sorted((self.working / "kept").glob("*"))

    @property
    def served(self) -> dict[str, tuple[str, object]]:
        """The data, without our working directory."""
        found = tree(self.data)
        return {path: what for path, what in found.items() if not path.startswith(".vl-borg-hooks")}


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Killed]:
    made = Killed(tmp_path, monkeypatch)
    yield made
    made.service.die()


def test_nothing_to_recover_touches_nothing(killed: Killed) -> None:
    assert not killed.recover()
    assert killed.hooks.calls == []
    assert killed.service.asked == []
    assert tree(killed.data) == killed.before


def test_what_a_killed_backup_stopped_is_started(killed: Killed) -> None:
    killed.note("before-create", found_running=True)
    with said() as lines:
        assert killed.recover()
    assert killed.service.running
    assert killed.service.asked == ["start"]
    assert killed.target.records.journal() is None
    assert tree(killed.data) == killed.before
    assert any("a before-create was cut short" in line for line in lines)
    assert any("VictoriaLogs is running again, as it was found" in line for line in lines)
    # Nothing is left for the next one to do.
    assert not killed.recover()


def test_only_a_run_that_was_killed_was_cut_short(killed: Killed) -> None:
    """A restore that fails brings VictoriaLogs back itself."""
    killed.note("restore", found_running=True)
    with said() as lines:
        assert recover(killed.hooks, killed.target, undo=True)
    assert lines[0] == "default: a restore has failed: bringing VictoriaLogs back"
    assert not any("cut short" in line or "killed" in line for line in lines)


def test_what_a_killed_backup_has_not_stopped_yet_goes_on(killed: Killed) -> None:
    killed.service.live()
    killed.note("before-create", found_running=True)
    assert killed.recover()
    assert killed.service.running
    assert "stop" not in killed.service.asked


@pytest.mark.parametrize("command", ["before-create", "restore"])
def test_what_was_found_stopped_is_stopped_again(killed: Killed, command: str) -> None:
    # Of a restore that was killed after its proof the data stays, and the server goes.
    killed.service.live()
    killed.note(command, found_running=False)
    with said() as lines:
        assert killed.recover()
    assert killed.service.asked == ["stop"]
    assert not killed.service.running
    assert killed.target.records.journal() is None
    assert any("VictoriaLogs is stopped again, as it was found" in line for line in lines)


@pytest.mark.parametrize("command", ["before-create", "restore"])
def test_what_was_found_stopped_and_is_stays_so(killed: Killed, command: str) -> None:
    killed.note(command, found_running=False)
    assert killed.recover()
    assert killed.service.asked == []


@pytest.mark.parametrize("found_running", [True, False])
@pytest.mark.parametrize("serves_the_new", [True, False])
def test_a_restore_that_was_killed_in_its_swap_is_undone(
    killed: Killed, *, found_running: bool, serves_the_new: bool
) -> None:
    killed.swap(found_running=found_running)
    if serves_the_new:
        killed.service.live()
    assert killed.recover()
    assert tree(killed.data) == killed.before
    assert killed.service.running is found_running
    assert killed.target.records.journal() is None
    asked = (["stop"] if serves_the_new else []) + (["start"] if found_running else [])
    assert killed.service.asked == asked


@pytest.mark.parametrize("found_running", [True, False])
def test_a_restore_that_is_served_is_finished_and_keeps_what_it_replaced(
    killed: Killed, *, found_running: bool
) -> None:
    killed.swap(found_running=found_running, whole=True)
    killed.service.live()
    make_partition(killed.data / "partitions/20261123")
    new = killed.served
    with said() as lines:
        assert killed.recover()
    assert killed.served == new
    assert killed.service.running is found_running
    assert killed.service.asked == (["start"] if found_running else ["stop"])
    (kept,) = killed.kept
    assert {**tree(kept), "flock.lock": ("file", b"")} == killed.before
    assert any(f"the data that was replaced is kept in {kept}" in line for line in lines)
    assert killed.target.records.journal() is None
    # Nothing is left for the next one to do, and nothing of what is kept is lost by it.
    assert not killed.recover()
    assert killed.kept == [kept]


def test_a_finished_restore_removes_what_it_replaced_if_the_operator_has_said_so(
    killed: Killed,
) -> None:
    killed.swap(found_running=True, whole=True, discard=True)
    killed.service.live()
    assert killed.recover()
    assert (killed.data / "partitions/20200101").exists()
    assert not killed.working.exists()


def test_a_run_that_undoes_its_own_restore_does_not_finish_it(killed: Killed) -> None:
    killed.swap(found_running=True, whole=True)
    killed.service.live()
    assert killed.recover(undo=True)
    assert tree(killed.data) == killed.before
    assert killed.service.asked == ["stop", "start"]


@pytest.mark.parametrize("why", ["not started", "not healthy", "rows are missing", "half"])
def test_a_restore_that_is_not_served_whole_is_undone(killed: Killed, why: str) -> None:
    killed.swap(found_running=True, whole=why != "half")
    if why != "not started":
        killed.service.live()
    if why == "not healthy":
        healthy = iter([OperatorError("no")] * 10_000)
        killed.hooks.doing["is_healthy"] = lambda: fail_until_stopped(killed, next(healthy))
    if why == "rows are missing":
        (killed.data / "partitions/20200101/datadb/parts.json").write_text("[]")
    assert killed.recover()
    assert tree(killed.data) == killed.before
    assert killed.service.running


def fail_until_stopped(killed: Killed, error: OperatorError) -> None:
    if "stop" not in killed.service.asked:
        raise error


def test_rows_that_came_before_an_undo_are_kept_and_told_of(killed: Killed) -> None:
    killed.swap(found_running=True, whole=True)
    make_partition(killed.data / "partitions/20261123")
    with said() as lines:
        assert killed.recover(undo=True)
    assert killed.served == killed.before
    (kept,) = killed.kept
    assert (kept / "partitions/20261123").is_dir()
    assert any(f"which has taken new rows, is kept in {kept}" in line for line in lines)


def test_what_can_not_be_counted_any_more_is_kept_after_an_undo(killed: Killed) -> None:
    killed.swap(found_running=True, whole=True)
    (killed.data / "partitions/20200101/datadb/parts.json").write_text("[")
    assert killed.recover(undo=True)
    assert killed.served == killed.before
    assert len(killed.kept) == 1


def test_what_was_replaced_is_kept_by_a_run_that_was_killed_just_before(killed: Killed) -> None:
    """After the proof, and before the replaced data was put away."""
    killed.swap(found_running=True, whole=True)
    journal = killed.target.records.journal()
    assert journal
    killed.target.records.note(dataclasses.replace(journal, replaced=None))
    assert killed.recover()
    assert (killed.data / "partitions/20200101").exists()
    (kept,) = killed.kept
    assert {**tree(kept), "flock.lock": ("file", b"")} == killed.before


def test_an_undo_that_fails_says_that_victorialogs_is_down_and_where_the_data_is(
    killed: Killed,
) -> None:
    killed.swap(found_running=True, whole=True)

    class Host(LocalHost):
        def rename(self, source: str, destination: str) -> None:
            raise OperatorError(f"could not rename {source}: Input/output error")

    killed.target.host = Host()
    with pytest.raises(OperatorError) as caught:
        killed.recover(undo=True)
    assert "Input/output error; VICTORIALOGS IS DOWN, and must not be started on this data" in str(
        caught.value
    )
    assert f"what was there before is in {killed.working}/replaced" in str(caught.value)
    assert caught.value.hint == "correct that, then run: vl-borg-hooks recover"
    killed.target.host = LocalHost()
    assert killed.recover()
    assert tree(killed.data) == killed.before


def test_no_server_can_start_while_data_is_brought_back(killed: Killed) -> None:
    killed.swap(found_running=True)
    locked: list[bool] = []

    class Host(LocalHost):
        def rename(self, source: str, destination: str) -> None:
            locked.append(lock.is_held(self, str(killed.data)))
            super().rename(source, destination)

    killed.target.host = Host()
    assert killed.recover()
    assert locked
    assert all(locked)


def test_data_is_brought_back_only_if_the_server_stops(killed: Killed) -> None:
    killed.swap(found_running=True)
    killed.service.live()
    killed.service.on_stop = lambda: None
    before = tree(killed.data)
    with pytest.raises(OperatorError, match=r"did not stop within 0\.5 seconds"):
        killed.recover()
    assert tree(killed.data) == before
    journal = killed.target.records.journal()
    assert journal
    assert sorted(journal.replaced or ()) == ["delete_tasks.json", "partitions"]


def test_data_that_was_brought_back_is_not_undone_again_if_the_start_fails(killed: Killed) -> None:
    killed.swap(found_running=True)
    killed.service.refusals = ["exit status 2"] * 100
    with pytest.raises(StartFailed):
        killed.recover()
    journal = killed.target.records.journal()
    assert journal
    assert (journal.found_running, journal.replaced) == (True, None)
    # What the server makes from here on is no restore's.
    (killed.data / "made_by_the_server.json").write_text("[1]")
    killed.service.refusals = []
    assert killed.recover()
    assert killed.service.running
    assert (killed.data / "made_by_the_server.json").read_text() == "[1]"
    assert not killed.working.exists()


def test_a_status_command_that_cannot_tell_keeps_nothing_down(killed: Killed) -> None:
    killed.swap(found_running=True)
    killed.service.says = OperatorError("exit status 4")
    assert killed.recover()
    assert killed.service.running
    assert tree(killed.data) == killed.before
    assert killed.target.records.journal() is None


def test_a_start_that_fails_is_still_owed(killed: Killed) -> None:
    killed.note("before-create", found_running=True)
    killed.service.refusals = ["exit status 2"] * 100
    with pytest.raises(StartFailed, match="VICTORIALOGS IS DOWN"):
        killed.recover()
    assert killed.target.records.journal() == Journal("before-create", found_running=True)


def test_leftovers_of_a_backup_without_a_journal_are_removed(killed: Killed) -> None:
    frozen = killed.working / "frozen" / "partitions"
    frozen.mkdir(parents=True)
    (frozen / "file").touch()
    assert not killed.recover()
    assert tree(killed.data) == killed.before
    assert killed.service.asked == []


def test_data_set_aside_without_a_journal_is_left_to_the_operator(killed: Killed) -> None:
    killed.swap(found_running=True)
    killed.target.records.clear_journal()
    before = tree(killed.data)
    with pytest.raises(OperatorError) as caught:
        killed.recover()
    replaced = killed.working / "replaced"
    assert caught.value.what.startswith(
        f"{replaced} holds delete_tasks.json, partitions, set aside"
    )
    assert f"move it back to {killed.data}" in caught.value.hint
    assert tree(killed.data) == before
    assert killed.service.asked == []


def test_a_journal_that_makes_no_sense_is_left_to_the_operator(killed: Killed) -> None:
    (killed.target.records.directory / "journal.json").write_text("{}")
    with pytest.raises(InvalidCopy, match="is not a journal"):
        killed.recover()
    assert killed.service.asked == []


def test_an_undo_that_fails_says_that_it_is_down_and_must_not_be_started_now(
    killed: Killed,
) -> None:
    killed.swap(found_running=True)

    class Host(LocalHost):
        broken = True

        def rename(self, source: str, destination: str) -> None:
            if self.broken and source.endswith("replaced/partitions"):
                raise OperatorError("could not rename partitions: Input/output error")
            super().rename(source, destination)

    host = killed.target.host = Host()
    with pytest.raises(OperatorError) as caught, explained(killed.target):
        killed.recover()
    said = str(caught.value)
    assert "could not rename partitions: Input/output error" in said
    assert "VICTORIALOGS IS DOWN, and must not be started on this data" in said
    assert "then run: vl-borg-hooks recover" in said
    # It would start on half of the data.
    assert killed.service.asked == []
    host.broken = False
    assert killed.recover()
    assert killed.service.running
    assert tree(killed.data) == killed.before


def test_data_that_was_brought_back_is_served_even_if_the_state_has_no_room_for_that_note(
    killed: Killed, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed.swap(found_running=True)

    def full(path: Path, content: bytes) -> None:
        raise OperatorError(f"could not write {path}: No space left on device")

    monkeypatch.setattr(files, "write_atomically", full)
    assert killed.recover()
    assert killed.service.running
    assert tree(killed.data) == killed.before
    assert killed.target.records.journal() is None


def test_a_recovery_that_fails_before_its_start_says_that_it_is_down(
    killed: Killed, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed.swap(found_running=True)

    def fail(target: Target) -> None:
        raise OperatorError("systemctl timed out")

    monkeypatch.setattr(window, "stop_again", fail)
    with pytest.raises(OperatorError) as caught, explained(killed.target):
        killed.recover()
    assert str(caught.value) == (
        "default: systemctl timed out; VICTORIALOGS IS DOWN; run: vl-borg-hooks recover"
    )


def test_the_rows_of_another_server_finish_no_restore(
    killed: Killed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    killed.swap(found_running=True, whole=True, discard=True)
    killed.service.live()
    other = make_data(tmp_path / "other")
    flags = {"storageDataPath": str(other), "retentionPeriod": "100y"}
    with_client(monkeypatch, FakeClient(flags, rows=1_000))
    assert killed.recover()
    assert tree(killed.data) == killed.before
