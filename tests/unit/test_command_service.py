"""A service manager of three commands: what they say, and what is done if they can't tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vl_borg_hooks.errors import CommandFailed, OperatorError
from vl_borg_hooks.services import ServiceManager, ServiceState, command
from vl_borg_hooks.system.local import LocalHost


class Place:
    """A service whose commands note that they were called."""

    def __init__(self, directory: Path) -> None:
        self.calls = directory / "calls"
        self.calls.touch()

    def service(self, status: int = 0, **options: Any) -> ServiceManager:
        commands = {
            verb: ["sh", "-c", f"echo {verb} >> {self.calls}; exit {code}"]
            for verb, code in (("stop", 0), ("start", 0), ("status", status))
        }
        return command.from_config({**commands, **options}, LocalHost())

    @property
    def asked(self) -> list[str]:
        return self.calls.read_text().split()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(0, ServiceState.RUNNING), (1, ServiceState.STOPPED), (3, ServiceState.STOPPED)],
)
def test_three_exit_statuses_are_a_state(place: Place, status: int, expected: ServiceState) -> None:
    assert place.service(status).state() is expected


@pytest.mark.parametrize("status", [2, 4, 127])
def test_any_other_is_none(place: Place, status: int) -> None:
    with pytest.raises(CommandFailed):
        place.service(status).state()


@pytest.mark.parametrize(
    ("status", "expected"), [(0, []), (1, ["start"]), (3, ["start"]), (4, ["start"])]
)
def test_what_may_be_stopped_is_started(place: Place, status: int, expected: list[str]) -> None:
    """Also if the status command can't tell: otherwise VictoriaLogs stays down."""
    place.service(status).start()
    assert place.asked == ["status", *expected]


@pytest.mark.parametrize(
    ("prints", "expected"),
    [
        ("echo 0", ""),
        ("echo 137", "exit status 137"),
        ("printf 'warning\n255\n'", "exit status 255"),
        # Not known.
        ("true", ""),
        ("exit 1", ""),
        ("echo no such container >&2; exit 1", ""),
        ("exec sleep 60", ""),
    ],
)
def test_the_exit_status_of_the_server_is_what_the_command_prints(
    place: Place, prints: str, expected: str
) -> None:
    asked = place.service(exit_status=["sh", "-c", prints]).ask_how_it_ended()
    assert asked
    assert asked() == expected


@pytest.mark.parametrize("status", [0, 1])
def test_what_is_not_there_is_an_error_and_not_stopped(place: Place, status: int) -> None:
    place.service(status, exists=["true"]).check()
    for refusal in ("echo No such container: x >&2; exit 1", "exit 3"):
        with pytest.raises(CommandFailed, match=r"starts is not there: (No such|exit status 3)"):
            place.service(status, exists=["sh", "-c", refusal]).check()


def test_whether_it_is_there_is_not_asked_while_it_is_stopped(place: Place) -> None:
    service = place.service(1, exists=["sh", "-c", f"echo exists >> {place.calls}"])
    service.state()
    service.stop()
    service.start()
    assert place.asked == ["status", "stop", "status", "start"]


def test_without_a_command_for_it_nobody_knows_how_it_ended(place: Place) -> None:
    assert place.service().ask_how_it_ended() is None


def test_a_command_that_is_missing_is_found_before_the_stop(place: Place) -> None:
    place.service(exit_status=["true"]).check()
    with pytest.raises(OperatorError, match="no-such-command was not found"):
        place.service(exit_status=["no-such-command"]).check()
