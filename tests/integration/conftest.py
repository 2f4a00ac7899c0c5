"""A site of its own for each test, whose server only locks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.locking_site import LockingSite, guards
from tests.parts.waiting import wait_until


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LockingSite]:
    site = LockingSite(tmp_path)
    with site.server:
        site.server.start()
        yield site
        for run in site.runs:
            run.kill()
            run.communicate()
        # The guard of a run may still be about: it ends by itself.
        wait_until(lambda: not guards(site.config), 20, "the end of the guards")
