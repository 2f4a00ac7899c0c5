"""Every file under config-examples/ does what it says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts.container_site import ContainerSite
from tests.parts.docker import Docker
from tests.parts.ports import free_port
from tests.parts.processes import spawn
from tests.parts.site import PASSPHRASE, Site
from tests.parts.systemd import Systemd
from tests.parts.victoria_logs import server_argv
from tests.parts.waiting import wait_until
from tests.setup import environments
from tests.setup.victoria_logs import Found
from vl_borg_hooks import config
from vl_borg_hooks.actions import generate
from vl_borg_hooks.system.ssh import SshHost

EXAMPLES = Path(__file__).resolve().parents[2] / "config-examples"
ROW = {"host": "a", "_msg": "one", "_time": "2026-01-02T00:00:00Z"}


def test_no_example_is_without_a_test() -> None:
    tested = Path(__file__).read_text()
    files = [path for path in EXAMPLES.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert files
    for path in files:
        assert f'"{path.name}"' in tested, path


def at_site(site: Site, *names: str) -> str:
    """The text of an example, with the site's places in the place of the usual ones."""
    text = EXAMPLES.joinpath(*names).read_text()
    executable = Path(sys.executable).with_name("vl-borg-hooks")
    for usual, here in {
        "/usr/local/bin/vl-borg-hooks recover": f"{executable} --config {site.config} recover",
        "/usr/local/bin/vl-borg-hooks": str(executable),
        "/etc/vl-borg-hooks/config.yaml": str(site.config),
        "/etc/vl-borg-hooks/borgmatic": f"{site.config.parent}/borgmatic",
        "/var/lib/vl-borg-hooks/default": str(site.staging.path),
        "/var/backups/first.borg": str(site.repositories[0]),
        "/var/backups/second.borg": str(site.repositories[1]),
        "change me": PASSPHRASE,
        "    - /etc\n": f"    - {site.root}/etc\n",
    }.items():
        text = text.replace(usual, here)
    return text


def private(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_the_config_is_what_config_generate_prints(tmp_path: Path) -> None:
    text = (EXAMPLES / "config.yaml").read_text()
    assert text == generate.commented_config()
    loaded = config.load(private(tmp_path / "config.yaml", text))
    assert loaded.config.instances[0].service == {"systemd": "victorialogs.service"}


def test_several_instances_and_another_service_manager(tmp_path: Path) -> None:
    text = (EXAMPLES / "several-instances.yaml").read_text()
    instances = config.load(private(tmp_path / "several.yaml", text)).config.instances
    assert [instance.name for instance in instances] == ["web", "mail", "remote"]
    assert isinstance(instances[2].host, SshHost)
    text = (EXAMPLES / "openrc.yaml").read_text()
    (instance,) = config.load(private(tmp_path / "openrc.yaml", text)).config.instances
    assert list(instance.service) == ["command"]


def test_the_docker_config_backs_up_and_restores(
    tmp_path: Path, victoria_logs: Found, systemd: Systemd, docker: Docker
) -> None:
    site = ContainerSite(tmp_path / "site", victoria_logs.path, systemd, "logs", docker)
    site.install()
    text = (EXAMPLES / "docker.yaml").read_text()
    for usual, here in {
        "/var/lib/victoria-logs\n": f"{site.data}\n",
        "/var/lib/vl-borg-hooks/default\n": f"{site.staging.path}\n",
        "http://127.0.0.1:9428\n": f"{site.server.url}\n",
        "[docker, ": f"[{', '.join(docker.command)}, ",
        "victorialogs]": f"{site.container}]",
    }.items():
        assert usual in text
        text = text.replace(usual, here)
    private(site.config, f"{text}\nstate_path: {site.root}/state\n")
    site.server.ingest([ROW])
    assert "VictoriaLogs was away for" in site.hooks("before-create").stderr
    assert site.is_running
    assert site.manifest.rows == 1
    assert site.manifest.final_pass == "frozen"

    site.server.ingest([{**ROW, "_msg": "two"}])
    extracted = site.root / "extracted"
    shutil.copytree(site.staging.path, extracted)
    site.hooks("restore", "--from", str(extracted), "--yes")
    assert site.is_running
    assert site.server.count() == 1
    # A stop that is no business of ours.
    site.stop()
    site.hooks("before-create")
    assert not site.is_running


def test_borgmatic_takes_the_include_and_the_restoring_config(site: Site) -> None:
    site.install(restore={"on_extract": True})
    site.server.ingest([ROW])
    include = site.config.parent / "borgmatic.yaml"
    site.hooks("config", "generate", "--borgmatic", "--destination", str(include))
    private(site.borgmatic_config, at_site(site, "borgmatic", "config.yaml"))
    site.create_repositories()
    created = site.borgmatic("create")
    assert "the hooks that were there before still run" in created.stdout + created.stderr
    assert all(site.archives(repository) for repository in site.repositories)

    site.server.ingest([{**ROW, "_msg": "two"}])
    private(site.borgmatic_config, at_site(site, "borgmatic", "restore.yaml"))
    site.extract(site.repositories[0], "latest", site.root / "extracted")
    assert site.server.count() == 1


@pytest.mark.parametrize(
    ("version", "include", "own"),
    [
        (
            "1.7.7",
            "include-1.7.yaml",
            (
                "location:\n    repositories:\n        - {repository}\n"
                "    source_directories:\n        - {own}\n"
            ),
        ),
        (
            "1.9.14",
            "include-1.8.yaml",
            "repositories:\n    - path: {repository}\nsource_directories:\n    - {own}\n",
        ),
    ],
    ids=["1.7", "1.9"],
)
def test_older_borgmatic_takes_its_include(
    site: Site, version: str, include: str, own: str
) -> None:
    site.install()
    site.server.ingest([ROW])
    name = f"borgmatic-{include.removeprefix('include-')}"
    private(site.config.parent / name, at_site(site, "borgmatic", include))
    text = own.format(repository=site.repositories[0], own=site.config.parent)
    private(site.borgmatic_config, f"<<: !include {site.config.parent}/{name}\n{text}")
    borgmatic = (str(environments.borgmatic(version)), "--config", str(site.borgmatic_config))
    site.run("borg", "init", "--encryption", "none", str(site.repositories[0]))
    site.run(*borgmatic, "create")
    listed = site.run("borg", "list", "--short", f"{site.repositories[0]}").stdout.split()
    files = site.run("borg", "list", "--short", f"{site.repositories[0]}::{listed[0]}").stdout
    assert f"{str(site.staging.manifest_path).lstrip('/')}\n" in files
    assert f"{str(site.config).lstrip('/')}\n" in files
    assert site.is_running
    assert not (site.root / "state/default/lease.json").exists()


def test_the_boot_unit_starts_what_a_dead_machine_left_stopped(site: Site) -> None:
    site.install()
    site.hooks("before-create")
    site.stop()
    journal = site.root / "state/default/journal.json"
    journal.write_text('{"command": "before-create", "found_running": true, "replaced": null}')
    name = f"recover-{site.unit}"
    text = at_site(site, "systemd", "vl-borg-hooks-recover.service")
    site.systemd.write_unit(name, text)
    # Docker's unit need not exist; if it does, a container can be started only after it.
    assert "docker.service" in site.systemd.show(name, "After").split()
    # It tries until it has succeeded, and no boot waits for it meanwhile.
    unit = (site.systemd.unit_directory / site.unit).read_text()
    site.systemd.write_unit(site.unit, unit.replace(str(site.executable), "/no/such/program"))
    site.systemd.systemctl("start", name)
    wait_until(lambda: site.systemd.show(site.unit, "Result") == "exit-code", 60, "a first try")
    site.systemd.write_unit(site.unit, unit)
    wait_until(lambda: site.systemd.show(name, "ActiveState") == "inactive", 60, "its end")
    assert site.systemd.show(name, "Result") == "success"
    assert site.is_running
    assert site.server.healthy()
    assert site.journal_is_empty()


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """Where the example plugin is installed: "pyproject.toml", "vl_borg_hooks_example.py"."""
    target = tmp_path / "plugin"
    source = tmp_path / "source"
    shutil.copytree(EXAMPLES / "plugin", source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    return target


def test_the_example_plugin_adds_a_service_manager_and_two_occasions(
    plugin: Path, tmp_path: Path, victoria_logs: Found
) -> None:
    port = free_port()
    data = tmp_path / "data"
    supervisor_config = tmp_path / "supervisord.conf"
    supervisor_config.write_text(
        f"[supervisord]\npidfile={tmp_path}/supervisord.pid\nlogfile={tmp_path}/supervisord.log\n"
        f"[unix_http_server]\nfile={tmp_path}/socket\n"
        "[rpcinterface:supervisor]\n"
        "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n"
        f"[supervisorctl]\nserverurl=unix://{tmp_path}/socket\n"
        f"[program:victorialogs]\ncommand={' '.join(server_argv(victoria_logs.path, data, port))}\n"
    )
    # supervisorctl finds the config in the current directory.
    server_url = f"http://127.0.0.1:{port}"
    our_config = private(
        tmp_path / "config.yaml",
        f"instances:\n  - name: default\n    data_path: {data}\n"
        f"    staging_path: {tmp_path}/staging\n    url: {server_url}\n"
        f"    service: {{supervisor: victorialogs}}\nstate_path: {tmp_path}/state\n"
        f"plugins: {{stop_window_metric: {{directory: {tmp_path}}}}}\n",
    )
    environment = {**os.environ, "PYTHONPATH": str(plugin)}
    supervisord = [sys.executable, "-m", "supervisor.supervisord", "-n", "-c"]
    daemon = spawn([*supervisord, str(supervisor_config)], tmp_path / "daemon.log")
    try:
        wait_until((data / "flock.lock").exists, 20, "supervisord has started VictoriaLogs")
        argv = [sys.executable, "-m", "vl_borg_hooks", "--config", str(our_config)]
        done = subprocess.run(
            [*argv, "before-create"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "VictoriaLogs was away for" in done.stderr
        metric = tmp_path / "victorialogs_stop_window_default.prom"
        assert metric.read_text() == 'victorialogs_in_stop_window{instance="default"} 0\n'
        unknown = subprocess.run(
            [*argv, "before-create"], capture_output=True, text=True, check=False
        )
        assert unknown.returncode == 1
        assert "plugins.stop_window_metric: no installed plugin" in unknown.stderr
    finally:
        daemon.terminate()
        daemon.wait(30)
