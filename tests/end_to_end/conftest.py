"""A site of its own for each test."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.site import Site
from tests.parts.systemd import Systemd
from tests.setup.victoria_logs import Found


@pytest.fixture
def site(
    tmp_path: Path, victoria_logs: Found, systemd: Systemd, request: pytest.FixtureRequest
) -> Iterator[Site]:
    name = re.sub(r"\W+", "-", request.node.name)[:60]
    made = Site(tmp_path / "site", victoria_logs.path, systemd, name)
    yield made
    made.systemd.systemctl("stop", made.unit, check=False)
    made.systemd.systemctl("reset-failed", made.unit, check=False)
