"""borgmatic as its own sample unit runs it: no CAP_CHOWN, read-only /usr, a short PATH."""

from __future__ import annotations

import os
import shutil

from tests.parts.site import Site

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


def test_the_sample_unit_of_borgmatic_backs_up_as_it_is(site: Site) -> None:
    site.install()
    site.server.ingest([{"host": "a", "_msg": "one", "_time": "2026-01-02T00:00:00Z"}])
    for path in site.data.rglob("*"):
        shutil.chown(path, 12345, 12345)
    site.write_borgmatic_config()
    site.create_repositories()
    borgmatic = shutil.which("borgmatic")
    assert borgmatic
    # Inside the service, systemctl talks to the systemd that runs it: no wrapper is needed there.
    environment = {"HOME": site.environment["HOME"], "PATH": os.environ["PATH"]}
    done = site.systemd.run_as_service(
        [borgmatic, "--config", str(site.borgmatic_config), "create"], environment, SANDBOX
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert site.is_running
    assert site.manifest.rows == 1
    assert site.manifest.owner == (12345, 12345)
    assert len(site.archives(site.repositories[0])) == 1
