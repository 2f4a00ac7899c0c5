"""Fixtures for all tests: which VictoriaLogs they run, and the real systemd, sshd and dockerd."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.docker import Docker
from tests.parts.sshd import Sshd
from tests.parts.systemd import Systemd
from tests.setup.victoria_logs import Found, find


@pytest.fixture(scope="session", autouse=True)
def _programs_of_this_environment_first() -> None:
    """Have tests find the borg, borgmatic and vl-borg-hooks that are installed beside pytest."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.fixture(scope="session")
def victoria_logs() -> Found:
    """The server that tests run: the real one, or where it can't be had the stand-in."""
    return find()


@pytest.fixture(autouse=True)
def _only_with_the_real_server(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("real_victorialogs"):
        found = find()
        if not found.real:
            pytest.skip(f"no real VictoriaLogs on this machine: {'; '.join(found.reasons)}")


@pytest.fixture(scope="session")
def systemd() -> Iterator[Systemd]:
    if reason := Systemd.why_not():
        pytest.fail(f"the tests need a real systemd: {reason}")
    with Systemd() as running:
        yield running


@pytest.fixture
def sshd(systemd: Systemd, tmp_path: Path) -> Iterator[Sshd]:
    """A host to log in to, whose systemctl is that of the tests' systemd."""
    if reason := Sshd.why_not():
        pytest.fail(f"the tests need a real sshd: {reason}")
    with Sshd(tmp_path / "sshd", {"PATH": systemd.path}) as running:
        yield running


@pytest.fixture
def docker() -> Iterator[Docker]:
    """A dockerd with nothing but an empty image."""
    if reason := Docker.why_not():
        pytest.fail(f"the tests need a real Docker: {reason}")
    with Docker() as running:
        yield running


def pytest_report_header() -> str:
    """Say at the top of the report what the tests prove anything about."""
    found = find()
    return f"VictoriaLogs: {found.version}{'' if found.real else ' (NOT the real one)'}"
