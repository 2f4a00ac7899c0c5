"""The stop window: in which order, and that VictoriaLogs comes back whatever happens in it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
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
from tests.support import make_backup, said
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Backup
from vl_borg_hooks.runs.records import Journal
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.steps import service
from vl_borg_hooks.stop_window import guard
from vl_borg_hooks.stop_window.window import (
    StartFailed,
    bring_back,
    locked,
    stop_again,
    stop_may_come,
    stop_window,
    watch,
)
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.system.signals import Interrupted
from vl_borg_hooks.victorialogs import lock

STOP_TIMEOUT, START_TIMEOUT = 0.5, 5.5


class World:
    """A backup of a VictoriaLogs that runs, with all that a stop window needs."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.clock.install(monkeypatch)
        data = directory / "data"
        data.mkdir()
        timeouts = {"stop_timeout": STOP_TIMEOUT, "start_timeout": START_TIMEOUT}
        self.backup: Backup = make_backup(directory, **timeouts)
        self.backup.records.create()
        self.service = FakeService(data, running=True)
        self.backup.service = self.service
        self.hooks = FakeHooks()
        no_guard(monkeypatch, self.hooks.calls)

    @property
    def journal(self) -> Journal | None:
        return self.backup.records.journal()

    @property
    def is_locked(self) -> bool:
        return lock.is_held(self.backup.host, self.backup.data_directory)

    def window(self, *, settle: bool = True) -> contextlib.AbstractContextManager[None]:
        return stop_window(self.hooks, self.backup, settle=settle)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, monkeypatch)
    yield made
    made.service.die()


def test_a_server_that_was_found_stopped_is_only_locked(world: World) -> None:
    world.service.die()
    world.backup.found = ServiceState.STOPPED
    with world.window():
        assert world.is_locked
        assert world.journal is None
    assert not world.is_locked
    assert world.hooks.calls == []
    assert not world.service.running


def test_the_guard_waits_before_the_stop_and_the_journal_is_written(world: World) -> None:
    seen: dict[str, tuple[Journal | None, bool]] = {}

    def note(when: str) -> None:
        seen[when] = world.journal, world.service.running

    for hook in ("before_stop", "stop_service", "start_service", "after_start"):
        world.hooks.doing[hook] = lambda hook=hook: note(hook)  # type: ignore[misc]
    with world.window():
        note("block")
        assert world.is_locked
        world.hooks.calls.append(("block", "default"))
    order = "before_stop guard stop_service block start_service is_healthy after_start"
    assert world.hooks.names == order.split()
    owed = Journal("before-create", found_running=True)
    assert seen == {
        "before_stop": (None, True),
        "stop_service": (owed, True),
        "block": (owed, False),
        "start_service": (owed, False),
        "after_start": (None, True),
    }


def test_the_lock_is_free_when_the_start_is_asked_for(world: World) -> None:
    free: list[bool] = []
    world.hooks.doing["start_service"] = lambda: free.append(not world.is_locked)
    with world.window():
        pass
    assert free == [True]


def test_the_downtime_is_from_the_stop_command_to_healthy_again(world: World) -> None:
    world.hooks.doing["before_stop"] = lambda: world.clock.sleep(100)
    world.hooks.doing["stop_service"] = lambda: world.clock.sleep(3)
    world.hooks.doing["start_service"] = lambda: world.clock.sleep(2)
    world.hooks.doing["after_start"] = lambda: world.clock.sleep(100)
    with world.window():
        world.clock.sleep(4)
    assert world.backup.downtime == pytest.approx(9)


def test_without_a_guard_there_is_no_stop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(target: object) -> None:
        raise OperatorError("the guard did not start")

    monkeypatch.setattr(guard, "arm", refuse)
    with pytest.raises(OperatorError, match="the guard did not start"), world.window():
        pytest.fail("the block was entered")
    assert world.service.asked == []
    assert world.hooks.names == ["before_stop", "after_start"]
    assert world.journal is None


def test_what_cannot_be_noted_in_the_journal_is_not_begun(world: World) -> None:
    world.backup.records.directory.joinpath("journal.json").mkdir()
    with pytest.raises(OperatorError), world.window():
        pytest.fail("the block was entered")
    assert world.service.asked == []


@pytest.mark.parametrize("answers", [True, False])
def test_a_server_that_cannot_flush_is_stopped_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch, *, answers: bool
) -> None:
    client = FakeClient({} if answers else None)
    client.serves = False
    with_client(monkeypatch, client)
    with world.window():
        assert not world.service.running
    assert world.service.running


@pytest.mark.parametrize(
    "error", [OperatorError("rsync failed"), RuntimeError("a bug"), KeyboardInterrupt()]
)
def test_victorialogs_comes_back_after_a_failure_in_the_block(
    world: World, error: BaseException
) -> None:
    before = world.clock.now
    with pytest.raises(type(error)) as caught, world.window():
        raise error
    assert caught.value is error
    assert world.service.running
    assert world.hooks.names[-1] == "after_start"
    assert world.journal is None
    # It has stopped and has been started after that: there is nothing to watch for.
    assert world.clock.now - before < 1


def test_victorialogs_is_watched_after_a_stop_command_that_fails(world: World) -> None:
    world.service.stop_fails = "no such unit"
    # The command was half done: it takes effect while we watch.
    world.clock.after(3, world.service.die)
    with pytest.raises(OperatorError, match="no such unit"), world.window():
        pytest.fail("the block was entered")
    assert world.service.running
    assert world.service.asked == ["stop", "start", "start"]


@pytest.mark.parametrize("starts_after_stop", [True, False])
def test_the_journal_is_kept_for_the_guard_only_if_the_stop_may_still_come(
    world: World, *, starts_after_stop: bool
) -> None:
    world.service.stop_fails = "no such unit"
    world.service.starts_after_stop = starts_after_stop
    with pytest.raises(OperatorError), world.window():
        pass
    assert (world.journal is None) is starts_after_stop
    assert world.backup.stop_may_still_come is not starts_after_stop


def test_a_server_that_was_asked_to_stop_before_is_only_waited_for(world: World) -> None:
    """A second SIGTERM would kill it."""
    world.service.on_stop = lambda: None
    with pytest.raises(StartFailed), world.window():
        pytest.fail("the block was entered")
    assert world.service.asked.count("stop") == 1
    # The next run.
    again = make_backup(Path(world.backup.config_path).parent, stop_timeout=5)
    again.service = world.service
    world.clock.after(3, world.service.die)
    with said() as lines, stop_window(world.hooks, again):
        assert world.is_locked
    assert any("was asked to stop before" in line for line in lines)
    assert world.service.asked.count("stop") == 1
    assert world.service.running


def test_a_server_that_does_not_stop_as_it_was_asked_is_asked_again(world: World) -> None:
    """Such as by a stop command that failed: nobody else will make that stop."""
    world.backup.records.note_asked_to_stop(os.getpid(), 3)
    before = world.clock.now
    with said() as lines, world.window():
        waited = world.clock.now - before
    # It is waited for only as long as it may take, and that is no downtime.
    assert 2 < waited < 3.1
    assert world.backup.downtime is not None
    assert world.backup.downtime < 1
    assert any("it is asked to stop again" in line for line in lines)
    assert world.service.asked == ["stop", "start"]


def test_a_wait_for_an_earlier_stop_has_an_end_though_the_clock_was_set_back(world: World) -> None:
    world.backup.records.note_asked_to_stop(os.getpid(), 1e6)
    before = world.clock.now
    with world.window():
        pass
    assert world.clock.now - before < 6
    assert world.service.asked == ["stop", "start"]


@pytest.mark.parametrize("url", [True, False])
def test_after_a_stop_command_that_failed_the_next_run_asks_immediately_if_it_serves(
    world: World, monkeypatch: pytest.MonkeyPatch, *, url: bool
) -> None:
    """Without a url nothing shows that the command has not sent its SIGTERM before it failed."""
    with_client(monkeypatch, FakeClient({}) if url else None)
    world.service.stop_fails = "no such container"
    with pytest.raises(OperatorError, match="no such container"), world.window():
        pytest.fail("the block was entered")
    assert (world.backup.records.asked_to_stop(os.getpid()) == 0) is url


@pytest.mark.parametrize("why", ["another server", "long ago", "systemd"])
def test_a_server_that_is_not_stopping_is_asked_to(
    world: World, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    world.backup.records.note_asked_to_stop(
        1 if why == "another server" else os.getpid(), -1 if why == "long ago" else 60
    )
    world.service.starts_after_stop = why == "systemd"
    with world.window():
        pass
    assert world.service.asked == ["stop", "start"]


def test_a_url_that_answers_while_it_is_stopped_is_anothers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = FakeClient({})
    client.serves = True
    with_client(monkeypatch, client)
    with (
        pytest.raises(OperatorError, match="it answers while VictoriaLogs is stopped") as caught,
        world.window(),
    ):
        pytest.fail("the block was entered")
    assert caught.value.hint == "correct url"
    assert world.service.running
    assert world.journal is None
    # From there on it is not asked any more.
    assert service.is_healthy(world.backup)
    client.serves = False
    assert service.is_healthy(world.backup)


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("answers", [True, False, None])
def test_healthy_is_who_holds_the_lock_and_answers(
    world: World, monkeypatch: pytest.MonkeyPatch, *, holds: bool, answers: bool | None
) -> None:
    client = None if answers is None else FakeClient({})
    if client:
        client.serves = answers
    with_client(monkeypatch, client)
    if not holds:
        world.service.die()
    assert service.is_healthy(world.backup) is (holds and answers is not False)


@pytest.mark.parametrize(
    ("status", "said_of_it"), [(255, "exit status 255"), (-9, "killed by signal 9")]
)
def test_the_kernel_is_asked_how_it_ended_if_it_can_tell(
    world: World, monkeypatch: pytest.MonkeyPatch, status: int, said_of_it: str
) -> None:
    """Then nobody has to be asked in the window."""
    monkeypatch.setattr(LocalHost, "watch", lambda *_: lambda: status)

    def ask() -> None:
        pytest.fail("the service manager was asked")

    monkeypatch.setattr(world.service, "ask_how_it_ended", ask)
    with world.window():
        pass
    assert world.backup.stop.unclean == said_of_it


def test_how_it_ended_is_told_and_kept_if_that_was_not_clean(world: World) -> None:
    world.backup.host = FakeHost()
    world.service.end = "exit status 137"
    with said() as lines, world.window():
        pass
    assert any("did not stop cleanly (exit status 137): rows" in line for line in lines)
    assert world.backup.stop.unclean == "exit status 137"
    assert world.service.running


def test_the_service_manager_is_asked_before_the_start_if_the_kernel_does_not_tell(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux 6.13 and 6.14 never do; no kernel does if the parent does not ask how its child ended."""
    monkeypatch.setattr(LocalHost, "watch", lambda *_: lambda: None)

    def ask() -> Callable[[], str]:
        assert not world.service.running
        world.hooks.calls.append(("asked", "default"))
        return lambda: "exit status 7"

    monkeypatch.setattr(world.service, "ask_how_it_ended", ask)
    with world.window():
        world.hooks.calls.append(("block", "default"))
    order = ["block", "asked", "start_service"]
    assert [name for name in world.hooks.names if name in order] == order
    assert world.backup.stop.unclean == "exit status 7"


def test_the_kernel_may_tell_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [None, 9]
    monkeypatch.setattr(LocalHost, "watch", lambda *_: lambda: answers.pop(0))
    with world.window():
        pass
    assert world.backup.stop.unclean == "exit status 9"


def test_how_it_ended_need_not_be_known(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise OperatorError("no answer")

    world.backup.host = FakeHost()
    for answer in (lambda: fail, fail, lambda: None):
        monkeypatch.setattr(world.service, "ask_how_it_ended", answer)
        with said() as lines, world.window():
            pass
        assert not any("cleanly" in line for line in lines)
        assert world.service.running


def test_what_could_not_start_again_is_not_stopped(world: World) -> None:
    Path(world.backup.data_directory, "partitions").mkdir()
    Path(world.backup.data_directory, "partitions", "stray").touch()
    with pytest.raises(OperatorError, match="it could not start again"), world.window():
        pytest.fail("the block was entered")
    assert world.service.asked == []
    assert world.hooks.names == []


def test_a_restore_stops_what_could_not_start_again_on_the_data_that_it_replaces(
    world: World,
) -> None:
    Path(world.backup.data_directory, "partitions").mkdir()
    Path(world.backup.data_directory, "partitions", "stray").touch()
    world.backup.replaces_data = True
    with world.window():
        pass
    assert world.service.asked == ["stop", "start"]


def test_without_its_lock_file_the_service_manager_says_when_it_has_stopped(world: World) -> None:
    """As when the data is lost. Asked before we hold the lock: it may take us for VictoriaLogs."""
    world.service.die()
    world.service.says = ServiceState.RUNNING
    world.backup.replaces_data = True

    def end() -> None:
        assert not world.is_locked
        world.service.says = None

    world.service.on_stop = lambda: world.clock.after(0.3, end)
    with world.window():
        # Whatever it says now is not asked for.
        world.service.says = ServiceState.RUNNING
    assert world.service.asked == ["stop", "start"]


def test_a_server_that_stops_too_late_is_started_after_its_stop(world: World) -> None:
    world.service.on_stop = lambda: world.clock.after(STOP_TIMEOUT + 2, world.service.die)
    with (
        pytest.raises(OperatorError, match=r"not stop within 0\.5 seconds") as caught,
        world.window(),
    ):
        pytest.fail("the block was entered")
    assert not isinstance(caught.value, StartFailed)
    # Not one start before it had stopped: that would have been to no avail.
    assert world.service.asked == ["stop", "start"]
    assert world.service.running
    assert world.journal is None


def test_a_server_that_never_stops_is_told_as_one_that_may_stop_at_any_time(world: World) -> None:
    world.service.on_stop = lambda: None
    with pytest.raises(StartFailed) as caught, world.window():
        pytest.fail("the block was entered")
    failure = caught.value
    assert failure.what.startswith("VictoriaLogs did not stop within 0.5 seconds: ")
    assert failure.what.endswith("; and then VictoriaLogs was asked to stop and has not, after 6 s")
    assert failure.victorialogs == "it still runs, but may stop at any time"
    assert failure.hint.endswith("run: fakectl start")
    # The guard goes on where we end.
    assert world.journal == Journal("before-create", found_running=True)
    assert world.hooks.names[-1] == "after_start"


def test_a_start_that_is_refused_is_tried_again(world: World) -> None:
    # The hook's, and the one past all plugins.
    world.service.refusals = ["start-limit hit", "start-limit hit"]
    with said() as lines, world.window():
        pass
    assert world.service.running
    assert world.service.asked == ["stop", "start", "start", "start"]
    assert any("the start failed, trying again: start-limit hit" in line for line in lines)
    assert world.journal is None


def test_a_plugin_that_refuses_to_start_does_not_keep_victorialogs_down(world: World) -> None:
    world.hooks.failing("start_service", RuntimeError("the moon is full"))
    with world.window():
        pass
    assert world.service.running
    assert world.service.asked == ["stop", "start"]


def test_a_server_that_died_at_once_is_started_again(world: World) -> None:
    deaths = [world.service.die]
    world.hooks.doing["is_healthy"] = lambda: deaths.pop()() if deaths else None
    with world.window():
        pass
    assert world.service.running
    assert world.service.asked.count("start") == 2


def test_what_says_that_it_cannot_tell_is_not_healthy(world: World) -> None:
    asked: list[bool] = []

    def fail() -> None:
        asked.append(True)
        if len(asked) < 3:
            raise RuntimeError("no answer")

    world.hooks.doing["is_healthy"] = fail
    with world.window():
        pass
    assert len(asked) == 3
    assert world.service.asked == ["stop", "start"]


def down_for_good(world: World) -> None:
    world.service.refusals = ["exit status 2"] * 100


def test_a_failed_start_says_that_victorialogs_is_down_and_why(world: World) -> None:
    down_for_good(world)
    world.service.words = "panic: missing part"
    with pytest.raises(StartFailed) as caught, world.window():
        pass
    assert str(caught.value) == (
        "VictoriaLogs did not come back within 5.5 seconds: exit status 2: panic: missing part; "
        "VICTORIALOGS IS DOWN; run: fakectl start"
    )
    assert world.journal == Journal("before-create", found_running=True)
    assert world.backup.downtime is None
    # At 0, 2 and 4 seconds, by the hook and past it.
    assert world.service.asked.count("start") == 6


def test_a_failed_start_names_the_failure_before_it_too(world: World) -> None:
    down_for_good(world)
    with pytest.raises(StartFailed) as caught, world.window():
        raise OperatorError("rsync exit status 23", hint="look at the disk")
    assert caught.value.what.startswith(
        "rsync exit status 23; look at the disk; and then VictoriaLogs did not come back within "
    )
    assert caught.value.victorialogs == "VICTORIALOGS IS DOWN"


def test_a_server_that_runs_and_is_not_healthy_is_not_called_down(world: World) -> None:
    def fail() -> None:
        raise OperatorError("/health answered with 500")

    world.hooks.doing["is_healthy"] = fail
    with pytest.raises(StartFailed) as caught, world.window():
        pass
    assert "seconds: /health answered with 500" in caught.value.what
    assert caught.value.victorialogs == "VictoriaLogs runs, but is not healthy"


@pytest.mark.parametrize("settle", [True, False])
def test_the_journal_is_left_to_a_caller_that_settles_it_itself(
    world: World, *, settle: bool
) -> None:
    with world.window(settle=settle):
        pass
    assert world.service.running
    assert (world.journal is None) is settle


def test_after_start_is_called_if_before_stop_fails(world: World) -> None:
    world.hooks.failing("before_stop", RuntimeError("no silence"))
    with pytest.raises(RuntimeError, match="no silence"), world.window():
        pytest.fail("the block was entered")
    assert world.hooks.names == ["before_stop", "after_start"]
    assert world.service.asked == []


@pytest.mark.parametrize("is_down", [True, False])
@pytest.mark.parametrize("further", [RuntimeError("still silent"), Interrupted(signal.SIGTERM)])
def test_an_after_start_that_fails_does_not_hide_an_earlier_failure(
    world: World, further: BaseException, *, is_down: bool
) -> None:
    world.hooks.failing("after_start", further)
    if is_down:
        down_for_good(world)
    expected = StartFailed if is_down else OperatorError
    with said() as lines, pytest.raises(expected, match="rsync failed"), world.window():
        raise OperatorError("rsync failed")
    assert any(f"after_start failed too: {further}" in line for line in lines)


def test_a_start_that_could_not_even_be_tried_tells_what_failed_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object) -> None:
        raise OperatorError("the connection was lost")

    monkeypatch.setattr("vl_borg_hooks.stop_window.window.bring_back", unreachable)
    with pytest.raises(OperatorError) as caught, world.window():
        raise OperatorError("rsync failed")
    assert caught.value.what == "rsync failed; and then the connection was lost"


def test_last_words_that_cannot_be_had_do_not_hide_that_it_is_down(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise RuntimeError("a bug")

    monkeypatch.setattr(world.service, "last_words", fail)
    down_for_good(world)
    with pytest.raises(StartFailed, match="VICTORIALOGS IS DOWN"), world.window():
        pass


def test_an_after_start_that_fails_is_the_failure_of_a_window_that_went_well(world: World) -> None:
    world.hooks.failing("after_start", RuntimeError("still silent"))
    with pytest.raises(RuntimeError, match="still silent"), world.window():
        pass
    assert world.service.running
    assert world.journal is None


def test_watching_starts_what_goes_down_and_leaves_alone_what_stays_up(world: World) -> None:
    watch(world.hooks, world.backup, 5)
    assert world.service.asked == []
    began = world.clock.now
    world.clock.after(2, world.service.die)
    watch(world.hooks, world.backup, 5)
    assert world.service.asked == ["start"]
    assert world.service.running
    assert 5 <= world.clock.now - began < 6
    world.clock.after(2, world.service.die)
    watch(world.hooks, world.backup, 1)
    assert world.service.asked == ["start"]


def test_watching_leaves_a_stop_of_another_run_to_that_run(world: World) -> None:
    world.service.die()
    entered: list[bool] = []

    @contextlib.contextmanager
    def alone() -> Iterator[None]:
        entered.append(world.service.running)
        # The run that is on has brought it back by the time that it ends.
        world.service.live()
        yield

    watch(world.hooks, world.backup, 1, alone)
    assert entered == [False]
    assert world.service.asked == []


def test_bringing_back_what_was_not_stopped_has_no_downtime(world: World) -> None:
    world.service.die()
    bring_back(world.hooks, world.backup)
    assert world.service.running
    assert world.backup.downtime is None


def test_what_a_restore_started_is_stopped_and_has_let_go_of_the_lock(world: World) -> None:
    world.service.on_stop = lambda: world.clock.after(0.3, world.service.die)
    stop_again(world.backup)
    assert not world.service.running
    stop_again(world.backup)
    assert world.service.asked == ["stop"]


@pytest.mark.parametrize("running", [True, False])
def test_what_cannot_tell_whether_it_runs_is_not_needed_to_stop_it_again(
    world: World, *, running: bool
) -> None:
    if not running:
        world.service.die()
    world.service.says = OperatorError("exit status 4")
    stop_again(world.backup)
    assert world.service.asked == (["stop"] if running else [])


def test_a_lock_that_is_free_in_time_ends_the_wait_for_the_stop(world: World) -> None:
    world.backup.stop.is_open = True
    world.clock.after(0.3, world.service.die)
    with locked(world.backup):
        assert not world.backup.stop.is_open
        assert world.is_locked
    assert not world.is_locked
    assert not world.backup.stop.is_late


@pytest.mark.parametrize(
    ("running", "starts_after_stop", "stop_timeout", "seconds"),
    [
        (True, False, 60, 60),
        (True, False, 1, 5),
        (False, False, 60, 5),
        (True, True, 60, 5),
    ],
)
def test_a_killed_stop_is_waited_for_as_long_as_it_may_take(
    tmp_path: Path,
    *,
    running: bool,
    starts_after_stop: bool,
    stop_timeout: int,
    seconds: int,
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    backup = make_backup(tmp_path, stop_timeout=stop_timeout)
    service = FakeService(data, running=running)
    service.starts_after_stop = starts_after_stop
    backup.service = service
    assert stop_may_come(backup) == seconds
    service.die()
