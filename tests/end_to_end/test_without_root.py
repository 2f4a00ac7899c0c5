"""The backup runs as VictoriaLogs' own user, with real sudo for the service manager alone."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.parts.site import Site
from tests.parts.systemd import victoria_logs_unit

README = Path(__file__).resolve().parents[2] / "README.md"
USER = "nobody"


def sudoers(unit: str) -> str:
    """The line of the README, with the site's user and unit in the place of the usual ones."""
    found = re.search(r"^victorialogs ALL=.*$", README.read_text(), re.MULTILINE)
    assert found
    line = found[0].replace("victorialogs.service", unit)
    return re.sub("^victorialogs", USER, line) + "\n"


@pytest.fixture
def owned(site: Site) -> Site:
    """A site that belongs to an ordinary user, reachable for that user."""
    for parent in site.root.parents:
        if parent != Path("/tmp") and parent.is_relative_to("/tmp"):
            parent.chmod(0o755)
    # The cache that it comes from may lie where only root may look.
    executable = Path(shutil.copy(site.executable, site.root))
    unit = victoria_logs_unit(executable, site.data, site.port)
    site.systemd.write_unit(site.unit, unit.replace("[Service]\n", f"[Service]\nUser={USER}\n"))
    site.write_config(
        service={"systemd": {"unit": site.unit, "command_prefix": ["sudo", "-n"]}},
    )
    for path in (site.root, *site.root.rglob("*")):
        shutil.chown(path, USER)
    site.start()
    return site


def test_one_sudoers_line_is_all_the_privilege_that_is_needed(owned: Site, tmp_path: Path) -> None:
    owned.server.ingest([{"host": "a", "_msg": "one", "_time": "2026-01-02T00:00:00Z"}])
    rules = tmp_path / "sudoers"
    rules.write_text(sudoers(owned.unit))
    rules.chmod(0o440)
    hooks = ("/usr/bin/env", sys.executable, "-m", "vl_borg_hooks", "--config", str(owned.config))
    environment = {"HOME": str(owned.root), "PATH": os.environ["PATH"]}

    def run(*arguments: str, allowed: bool = True) -> str:
        # The Python of the tests may lie where only root may look; nothing else is granted by it,
        # and only from the second program on, which is what `env` is for.
        properties = {"User": USER, "AmbientCapabilities": "CAP_DAC_READ_SEARCH"}
        if allowed:
            properties["BindReadOnlyPaths"] = f"{rules}:/etc/sudoers.d/vl-borg-hooks"
        done = owned.systemd.run_as_service([*hooks, *arguments], environment, properties)
        assert (done.returncode == 0) is allowed, done.stderr
        return done.stderr

    assert "password is required" in run("before-create", allowed=False)
    assert owned.is_running
    assert "VictoriaLogs was away for" in run("before-create")
    assert owned.is_running
    assert owned.manifest.rows == 1
    assert owned.manifest.final_pass == "frozen"
    owned.server.ingest([{"host": "a", "_msg": "two", "_time": "2026-01-02T00:00:00Z"}])
    shutil.copytree(owned.staging.path, owned.root / "extracted")
    for path in (owned.root / "extracted", *(owned.root / "extracted").rglob("*")):
        shutil.chown(path, USER)
    run("restore", "--from", str(owned.root / "extracted"), "--yes")
    assert owned.server.count() == 1


def test_nobody_else_can_read_the_copy_or_the_state(site: Site) -> None:
    site.install()
    site.hooks("before-create")
    for path in (site.staging.path, site.root / "state", site.root / "state" / "default"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_restore_by_root_keeps_no_later_backup_from_being_made(
    owned: Site, tmp_path: Path
) -> None:
    rules = tmp_path / "sudoers"
    rules.write_text(sudoers(owned.unit))
    rules.chmod(0o440)
    for path in (owned.config.parent, owned.config):
        shutil.chown(path, "root")
    owned.config.chmod(0o644)
    owned.server.ingest([{"host": "a", "_msg": "one", "_time": "2026-01-02T00:00:00Z"}])
    hooks = ("/usr/bin/env", sys.executable, "-m", "vl_borg_hooks", "--config", str(owned.config))
    environment = {"HOME": str(owned.root), "PATH": os.environ["PATH"]}

    def run(user: str, *arguments: str) -> str:
        properties = {
            "User": user,
            "AmbientCapabilities": "CAP_DAC_READ_SEARCH",
            "BindReadOnlyPaths": f"{rules}:/etc/sudoers.d/vl-borg-hooks",
        }
        done = owned.systemd.run_as_service([*hooks, *arguments], environment, properties)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def give_state(user: str) -> None:
        for path in (owned.root / "state", *(owned.root / "state").rglob("*")):
            shutil.chown(path, user)

    assert "belongs to root" not in run(USER, "before-create")
    assert owned.manifest.final_pass == "frozen"
    shutil.copytree(owned.staging.path, owned.root / "extracted")
    give_state("root")
    run("root", "restore", "--from", str(owned.root / "extracted"), "--yes")
    give_state(USER)
    (kept,) = (owned.data / ".vl-borg-hooks/kept").iterdir()
    assert "belongs to root, as after a restore by root" in run(USER, "before-create")
    assert (owned.manifest.rows, owned.manifest.final_pass) == (1, "stopped")
    assert owned.is_running
    assert (kept / "partitions").is_dir()
