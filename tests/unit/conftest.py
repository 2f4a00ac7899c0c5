"""A unit test needs no real part: if it asks for one, it is in the wrong directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import far_host
from vl_borg_hooks.system.hosts import Host
from vl_borg_hooks.system.local import LocalHost


@pytest.fixture(params=["here", "over ssh"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    """This machine, and another: what holds for one holds for both."""
    return LocalHost() if request.param == "here" else far_host(tmp_path)


def _refused(name: str) -> Callable[[], None]:
    """A fixture in the place of `name` that fails the test that asks for it."""

    @pytest.fixture(name=name)
    def refuse() -> None:
        pytest.fail(f"tests/unit has no {name}: a test that needs it belongs in tests/integration")

    return refuse


systemd, sshd, docker, site, victoria_logs = map(
    _refused, ("systemd", "sshd", "docker", "site", "victoria_logs")
)
