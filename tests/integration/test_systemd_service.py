"""How a unit's server has ended is what systemd says, asked before the next start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.parts import systemd as parts
from tests.parts.waiting import wait_until
from vl_borg_hooks.services import systemd as services
from vl_borg_hooks.system.local import LocalHost

UNIT = "ended.service"
ROUNDS = 10


@pytest.fixture(autouse=True)
def _own_systemctl(systemd: parts.Systemd, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PATH", systemd.path)
    yield
    systemd.systemctl("stop", UNIT, check=False)
    systemd.systemctl("reset-failed", UNIT, check=False)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("status", "expected"),
    [(0, ""), (255, "Result=exit-code, ExecMainCode=1, ExecMainStatus=255")],
)
def test_the_answer_is_of_the_server_that_has_stopped(
    systemd: parts.Systemd, status: int, expected: str
) -> None:
    """Not of the next one, which clears it."""
    script = f"trap 'kill $!; exit {status}' TERM; sleep 600 & wait"
    systemd.write_unit(UNIT, f'[Service]\nExecStart=/bin/sh -c "{script}"\n')
    service = services.from_config(UNIT, LocalHost())
    systemd.systemctl("start", UNIT)
    for _ in range(ROUNDS):
        service.stop()
        wait_until(
            lambda: systemd.show(UNIT, "ActiveState") in ("inactive", "failed"), 10, "it stops"
        )
        answer = service.ask_how_it_ended()
        assert answer
        service.start()
        assert answer() == expected
        wait_until(lambda: systemd.show(UNIT, "ActiveState") == "active", 10, "it starts")
