"""Fixtures for the tests of the test parts: each server, and the real systemd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.ports import free_port
from tests.parts.systemd import Systemd
from tests.parts.victoria_logs import VictoriaLogsProcess
from tests.setup.victoria_logs import STAND_IN, find


@pytest.fixture(
    params=["stand-in", pytest.param("real", marks=pytest.mark.real_victorialogs)],
)
def executable(request: pytest.FixtureRequest) -> Path:
    """The stand-in, then the real server: what is asked of one is asked of the other."""
    return STAND_IN if request.param == "stand-in" else find().path


@pytest.fixture
def process(executable: Path, tmp_path: Path) -> Iterator[VictoriaLogsProcess]:
    """A server of each kind, not yet started."""
    server = VictoriaLogsProcess(executable, tmp_path / "data", free_port())
    yield server
    if server.running:
        server.kill()


@pytest.fixture(scope="module")
def systemd() -> Iterator[Systemd]:
    if reason := Systemd.why_not():
        pytest.skip(reason)
    with Systemd() as running:
        yield running
