"""borgmatic as its own sample unit runs it: no CAP_CHOWN, read-only /usr, a short PATH."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.parts.site import Site

BORGMATIC = str(Path(sys.executable).with_name("borgmatic"))

# From borgmatic's sample/systemd/borgmatic.service, what concerns us.
SANDBOX = {
    "CapabilityBoundingSet": "CAP_DAC_READ_SEARCH CAP_FOWNER CAP_NET_RAW",
    "NoNewPrivileges": "yes",
    "ProtectSystem": "full",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectControlGroups": "yes",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "SystemCallFilter": "@system-service @mount",
    "SystemCallErrorNumber": "EPERM",
    "Nice": "19",
    "IOSchedulingClass": "best-effort",
}


# What its ExecStart= has.
OPTIONS = ("--verbosity", "-2", "--syslog-verbosity", "1")
TO_THE_JOURNAL = {"StandardOutput": "journal", "StandardError": "journal"}


@pytest.mark.parametrize("options", [(), OPTIONS], ids=["default", "sample"])
def test_a_good_run_is_no_error_in_the_journal(site: Site, options: tuple[str, ...]) -> None:
    site.install()
    site.server.ingest([{"host": "a", "_msg": "one", "_time": "2026-01-02T00:00:00Z"}])
    site.write_borgmatic_config()
    site.create_repositories()
    site.systemd.start_journal()
    before = len(site.systemd.journal())
    failed = len(site.systemd.journal("--priority=err"))

    def create() -> int:
        environment = {"HOME": site.environment["HOME"], "PATH": os.environ["PATH"]}
        argv = [BORGMATIC, *options, "--config", str(site.borgmatic_config), "create"]
        return site.systemd.run_as_service(argv, environment, TO_THE_JOURNAL).returncode

    assert create() == 0, site.systemd.journal()[before:]
    assert site.manifest.rows == 1
    said = [line for line in site.systemd.journal()[before:] if "vl-borg-hooks" in line]
    assert [line for line in said if "published: 1 rows" in line] == said[-1:]
    assert bool(said) == bool(options)
    assert site.systemd.journal("--priority=err")[failed:] == []
    # An error is there: at its level if borgmatic itself logs it, not if systemd has it from stderr.
    site.write_config(data_path=str(site.root / "missing"))
    assert create() == 1
    errors = site.systemd.journal(*(("--priority=err",) if options else ()))
    assert any(str(site.root / "missing") in line for line in errors)


def test_the_sample_unit_of_borgmatic_backs_up_as_it_is(site: Site) -> None:
    site.install()
    site.server.ingest([{"host": "a", "_msg": "one", "_time": "2026-01-02T00:00:00Z"}])
    for path in site.data.rglob("*"):
        shutil.chown(path, 12345, 12345)
    site.write_borgmatic_config()
    site.create_repositories()
    # Inside the service, systemctl talks to the systemd that runs it: no wrapper is needed there.
    environment = {"HOME": site.environment["HOME"], "PATH": os.environ["PATH"]}
    done = site.systemd.run_as_service(
        [BORGMATIC, "--config", str(site.borgmatic_config), "create"], environment, SANDBOX
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert site.is_running
    assert site.manifest.rows == 1
    assert site.manifest.owner == (12345, 12345)
    assert len(site.archives(site.repositories[0])) == 1
