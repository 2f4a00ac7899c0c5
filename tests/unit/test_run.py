"""What all actions share: one run at a time, checks, and errors that say where VictoriaLogs is."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.fakes import FakeService
from tests.support import make_backup, said
from vl_borg_hooks.actions.run import exclusive, explained, require
from vl_borg_hooks.errors import Busy, OperatorError
from vl_borg_hooks.plugin.checks import Check, check
from vl_borg_hooks.plugin.context import Backup
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.system.signals import Interrupted


@pytest.fixture
def backup(tmp_path: Path) -> Iterator[Backup]:
    data = tmp_path / "data"
    data.mkdir()
    backup = make_backup(tmp_path)
    service = FakeService(data, running=True)
    backup.service, backup.found = service, ServiceState.RUNNING
    yield backup
    service.die()


GOOD = Check("one", True, "is fine", "no hint")
BAD = Check("two", False, "the disk is full", "make room")
WORSE = Check("three", False, "the moon is full")
WORST = Check("four", False, "the tide is high", "swim")


def test_the_first_check_that_fails_is_the_error_and_the_others_are_warnings(
    backup: Backup,
) -> None:
    with said() as lines, pytest.raises(OperatorError) as caught:
        require(backup, [GOOD, BAD, GOOD, WORSE, WORST])
    assert (caught.value.what, caught.value.hint) == ("the disk is full", "make room")
    assert lines == ["default: the moon is full", "default: the tide is high; swim"]


def test_checks_that_are_all_ok_are_no_error(backup: Backup) -> None:
    with said() as lines:
        require(backup, [GOOD, GOOD])
        require(backup, [])
    assert lines == []


def test_a_check_fails_by_an_expected_failure_only() -> None:
    def fail() -> str:
        raise OperatorError("the disk is full", hint="make room")

    def break_down() -> str:
        raise RuntimeError("a bug")

    assert check("one", lambda: "is fine") == Check("one", True, "is fine")
    assert check("two", fail) == BAD
    with pytest.raises(RuntimeError):
        check("three", break_down)


def test_an_error_is_told_with_its_instance_and_the_state_of_victorialogs(backup: Backup) -> None:
    error = OperatorError("the disk is full", hint="make room")
    with pytest.raises(OperatorError) as caught, explained(backup):
        raise error
    assert caught.value is error
    assert str(error) == "default: the disk is full; VictoriaLogs is running; make room"


def test_an_error_that_knows_better_is_told_as_it_is(backup: Backup) -> None:
    error = OperatorError("it failed")
    error.instance, error.victorialogs = "other", "VICTORIALOGS IS DOWN"
    with pytest.raises(OperatorError), explained(backup):
        raise error
    assert str(error) == "other: it failed; VICTORIALOGS IS DOWN"


def test_an_error_that_nobody_has_foreseen_is_one_line_too(backup: Backup) -> None:
    cause = KeyError("channel")
    with pytest.raises(OperatorError) as caught, explained(backup):
        raise cause
    assert str(caught.value).startswith(
        "default: unexpected KeyError: 'channel'; VictoriaLogs is running; "
    )
    assert caught.value.__cause__ is cause


def test_an_interruption_stays_one_and_is_told_with_the_state(backup: Backup) -> None:
    interrupted = Interrupted(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught, explained(backup):
        raise interrupted
    assert caught.value is interrupted
    assert str(interrupted.error) == (
        "default: ended by SIGTERM; VictoriaLogs is running; run it again"
    )


def test_only_one_run_on_an_instance_is_on_and_another_is_told_who_that_is(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    with exclusive(backup, "restore"):
        assert "restore (pid " in backup.records.run_that_is_on()
        lock = backup.records.run_lock
        monkeypatch.setattr(backup.records, "run_lock", lambda command, **_: lock(command, wait=0))
        with pytest.raises(Busy) as caught, exclusive(backup, "before-create"):
            pytest.fail("two runs are on")
    assert str(caught.value).startswith("default: another run holds this instance: restore (pid ")
    assert caught.value.exit_status == 1
    assert backup.records.run_that_is_on() == ""


def test_a_run_that_fails_lets_the_next_one_be(backup: Backup) -> None:
    with pytest.raises(OperatorError), exclusive(backup, "restore"):
        raise OperatorError("it failed")
    with exclusive(backup, "before-create"):
        assert "before-create (pid " in backup.records.run_that_is_on()
