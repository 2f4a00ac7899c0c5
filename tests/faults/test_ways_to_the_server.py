"""VictoriaLogs with all that guards it, and on a machine that only ssh reaches: the whole chain."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.faults.harness import Fault, Killer
from tests.parts.guarded import Guarded, guarded
from tests.parts.site import Site
from tests.parts.sshd import Sshd
from tests.parts.waiting import wait_until

pytestmark = pytest.mark.real_victorialogs
EXAMPLE = Path(__file__).resolve().parents[2] / "config-examples" / "several-instances.yaml"
ROW = {"host": "a", "_msg": "one", "_time": "2026-01-02T00:00:00Z"}
IN_THE_WINDOW = "in the window start #1"


@pytest.fixture
def guard(site: Site) -> Guarded:
    """What guards the server of `site`, which runs."""
    made = guarded(site.root / "secrets", site.port)
    site.server = made.server
    site.options = made.options
    site.install(made.flags, **site.options)
    site.server.ingest([ROW])
    return made


@pytest.fixture
def far(site: Site, sshd: Sshd) -> Site:
    """A site as the example of a remote instance says."""
    instances = YAML(typ="safe", pure=True).load(EXAMPLE)["instances"]
    (example,) = [entry for entry in instances if entry["name"] == "remote"]
    assert example["url_over_ssh"] is True
    site.options = {
        **example,
        "name": "default",
        "data_path": f"{sshd.destination}:{site.data}",
        # As in a config for automatic logins.
        "ssh_command": [*sshd.ssh_command, "-o", "ClearAllForwardings=yes"],
        "staging_path": str(site.staging.path),
        "url": example["url"].replace("9428", str(site.port)),
        "service": {"systemd": site.unit},
    }
    site.install(**site.options)
    site.server.ingest([ROW])
    return site


def back_up_and_restore(site: Site) -> str:
    """Back up, restore in place of more rows, and return all that was printed."""
    said = site.hooks("before-create", "--verbosity", "2")
    assert "VictoriaLogs was away for" in said.stderr
    assert site.manifest.rows == 1
    assert site.manifest.victorialogs_version == "v1.51.1"
    copy = site.root / "extracted"
    shutil.copytree(site.staging.path, copy)
    site.server.ingest([{**ROW, "_msg": "two"}])
    runs = [
        said,
        site.hooks("after-create", "--verbosity", "2"),
        site.hooks("restore", "--verbosity", "2", "--from", str(copy), "--yes"),
    ]
    assert "serves 1 rows" in runs[-1].stderr
    assert site.server.count() == 1
    runs += [
        site.hooks("restore", "--rollback", "--yes", "--verbosity", "2"),
        site.hooks("restore", "--discard-replaced", "--verbosity", "2"),
        site.hooks("status", "--json"),
        site.hooks("status"),
        site.hooks("config", "validate", "--verbosity", "2"),
        site.hooks("recover", "--verbosity", "2"),
    ]
    assert site.server.count() == 2
    return all_output(runs)


def back_up_with_snapshots(site: Site) -> str:
    """Back up without a stop, and return all that was printed."""
    site.write_config(**site.options, consistency="snapshot")
    started = site.systemd.show(site.unit, "ExecMainStartTimestampMonotonic")
    said = site.hooks("before-create", "--verbosity", "2")
    assert site.manifest.rows == site.server.count() == 2
    assert site.manifest.final_pass == "snapshot"
    assert site.systemd.show(site.unit, "ExecMainStartTimestampMonotonic") == started
    assert list(site.data.glob("partitions/*/snapshots/*")) == []
    return all_output([said])


def all_output(runs: Iterable[subprocess.CompletedProcess[str]]) -> str:
    return "\n".join(f"{run.stdout}\n{run.stderr}" for run in runs)


def files_below(directory: Path) -> dict[Path, str]:
    return {
        path: path.read_bytes().decode(errors="replace")
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_server_with_tls_a_prefix_a_password_and_keys_is_backed_up_and_restored_in_silence(
    site: Site, guard: Guarded
) -> None:
    """No secret is printed, not at `-v 2` either, nor in what is left of the runs, nor in a URL."""
    said = back_up_and_restore(site) + back_up_with_snapshots(site)
    assert "systemctl" in said, "not as much as -v 2 has"
    told = files_below(site.root / "state")
    assert told
    told |= {site.data.with_name("data.log"): site.data.with_name("data.log").read_text()}
    told |= {site.staging.manifest_path: site.staging.manifest_path.read_text()}
    for where, text in {Path("output"): said, **told}.items():
        assert not [secret for secret in guard.told if secret in text], where


def test_what_is_refused_names_the_option_and_no_secret(site: Site, guard: Guarded) -> None:
    site.hooks("before-create")
    for left_out, named in {
        "http_auth": "http_auth:",
        "auth_keys": "auth_keys: metrics:",
        "tls": "tls: ca_file:",
    }.items():
        options = {key: value for key, value in guard.options.items() if key != left_out}
        site.write_config(**options)
        refused = site.hooks(
            *("restore", "--from", str(site.staging.path), "--dry-run", "-v", "2"), check=False
        )
        assert not [secret for secret in guard.told if secret in all_output([refused])]
        if left_out == "http_auth":
            # The keys take the place of the password, and /health asks for none.
            assert refused.returncode == 0
        else:
            assert refused.returncode == 1
            assert named in refused.stderr
    assert json.loads(site.hooks("status", "--json").stdout)
    assert site.is_running


def test_a_guard_reaches_a_server_with_all_that_guards_it(
    site: Site, guard: Guarded, killer: Killer
) -> None:
    killed_and_brought_back(site, killer)
    for where, text in files_below(site.root / "state").items():
        assert not [secret for secret in guard.told if secret in text], where


def test_a_server_that_only_ssh_reaches_is_backed_up_and_restored(far: Site, sshd: Sshd) -> None:
    back_up_and_restore(far)
    back_up_with_snapshots(far)
    far.hooks("after-create")
    # Or is it reached without ssh, since it is on this machine?
    public = sshd.key.with_suffix(".pub")
    public.write_text(f"no-port-forwarding {public.read_text()}")
    refused = far.hooks("before-create", check=False)
    assert refused.returncode == 1
    assert (
        f"http://127.0.0.1:{far.port}/health did not answer: the connection was closed"
        in refused.stderr
    )
    assert far.is_running


def test_a_guard_reaches_a_server_that_only_ssh_reaches(far: Site, killer: Killer) -> None:
    killed_and_brought_back(far, killer)


def killed_and_brought_back(site: Site, killer: Killer) -> None:
    """Kill a backup in its stop window and wait until the guard has brought VictoriaLogs back."""
    killer.run(site, "before-create", fault=Fault(IN_THE_WINDOW))
    log = site.root / "state/default/guard.log"
    done = "VictoriaLogs is running again, as it was found"
    wait_until(lambda: log.exists() and done in log.read_text(), 30, "the guard has done it")
    assert site.journal_is_empty()
    assert "VICTORIALOGS IS DOWN" not in log.read_text()
    assert site.server.count() == 1
