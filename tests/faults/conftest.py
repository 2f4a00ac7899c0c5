"""Sites that faults are caused at, and the plugin that causes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.harness import Flow, Killer, leftovers
from tests.parts.site import Site
from tests.parts.systemd import Systemd
from tests.setup.victoria_logs import Found

MakeSite = Callable[[], Site]


@pytest.fixture
def killer(tmp_path: Path) -> Killer:
    return Killer(tmp_path / "killer")


@pytest.fixture
def make_site(
    tmp_path: Path, victoria_logs: Found, systemd: Systemd, request: pytest.FixtureRequest
) -> Iterator[MakeSite]:
    made: list[Site] = []
    name = re.sub(r"\W+", "-", request.node.name)[:50]

    def make() -> Site:
        number = len(made)
        site = Site(tmp_path / f"site-{number}", victoria_logs.path, systemd, f"{name}-{number}")
        made.append(site)
        return site

    yield make
    for site in made:
        for process in leftovers(site):
            process.kill()
        systemd.systemctl("stop", site.unit, check=False)
        systemd.systemctl("reset-failed", site.unit, check=False)


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    return make_site()


MakeFlows = Callable[..., list[Flow]]


@pytest.fixture
def make_flows(make_site: MakeSite, killer: Killer) -> Iterator[MakeFlows]:
    """Makes flows of one kind, each at a site of its own, to be run at the same time."""
    made: list[Flow] = []

    def make(kind: type[Flow], *, running: bool = True, count: int = 6) -> list[Flow]:
        flows = [kind(make_site(), killer, running=running) for _ in range(count)]
        made.extend(flows)
        return flows

    yield make
    for flow in made:
        flow.close()
