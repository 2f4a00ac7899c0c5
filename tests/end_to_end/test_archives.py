"""`archives`, with real borgmatics and Borg: what each archive holds, without extracting its data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.parts.borgmatic_site import NEWEST, BorgmaticSite
from tests.parts.healthchecks import Healthchecks
from tests.support import make_copy


@pytest.fixture
def healthchecks() -> Iterator[Healthchecks]:
    with Healthchecks() as running:
        yield running


def archives(site: BorgmaticSite, *arguments: str) -> list[dict[str, Any]]:
    """What `archives --json` finds in the repositories of borgmatic's usual config."""
    done = site.run(
        *(str(site.ours), "--config", str(site.locking.config), "--verbosity", "-1"),
        *("archives", "--json", *arguments),
    )
    assert done.stderr == ""
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


# What a hook of the operator's prints is not what Borg prints.
CHATTY = {"commands": [{"before": "action", "run": ["echo '{'"]}]}


@pytest.mark.parametrize(("version", "more"), [(NEWEST, CHATTY), ("1.7.7", {})])
def test_the_archives_and_their_days_are_told_from_the_manifests(
    tmp_path: Path, healthchecks: Healthchecks, version: str, more: dict[str, object]
) -> None:
    site = BorgmaticSite(tmp_path / "site", version, healthchecks)
    site.write_config(**more)
    usual = site.root / "home" / "config" / "borgmatic" / "config.yaml"
    usual.parent.mkdir(parents=True)
    usual.symlink_to(site.config)
    # Beside a file that has only the name of a manifest.
    copy, other = site.locking.staging, tmp_path / "manifest.json"
    other.write_text("{}")
    for name, days in {"first": ["20261121", "20261122"], "second": ["20261123"]}.items():
        make_copy(copy.path, days=days)
        site.run("borg", "create", f"{site.repository}::{name}", str(copy.path), str(other))
        shutil.rmtree(copy.path)
    site.run("borg", "create", f"{site.repository}::without", str(other))

    first, second = archives(site)
    assert [first["archive"], second["archive"]] == ["first", "second"]
    assert (first["instance"], first["repository"]) == ("default", str(site.repository))
    assert (first["rows"], first["days"]) == (42, 2)
    assert (first["first_day"], first["last_day"]) == ("20261121", "20261122")
    assert first["rows_by_day"] == {"20261121": 21, "20261122": 21}

    # What is known of an archive is not extracted again.
    (cached,) = (site.root / "site/state/.archives").glob(f"*/{second['id']}-*.json")
    cached.write_text(cached.read_text().replace('"rows":21', '"rows":22'))
    (found,) = archives(site, "--day", "20261123")
    assert found == {**second, "rows": 22}
