"""Who archives has the copy for itself, and is the only one: real borgmatics, a script, services."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.parts.site import PASSPHRASE, Site
from tests.parts.slow_borg import SlowBorg
from tests.parts.waiting import wait_until

ROWS = [{"host": "a", "_msg": f"message {n}", "_time": "2026-01-02T00:00:00Z"} for n in range(20)]


@pytest.fixture
def ready(site: Site) -> Site:
    """A site that notes each start of VictoriaLogs, with rows and two repositories."""
    site.install()
    unit = (site.systemd.unit_directory / site.unit).read_text()
    note = f"ExecStartPre=/bin/sh -c 'echo started >> {site.root}/starts'\n"
    site.systemd.write_unit(site.unit, unit.replace("[Service]\n", f"[Service]\n{note}"))
    site.stop()
    site.start()
    site.server.ingest(ROWS)
    site.write_borgmatic_config()
    site.create_repositories()
    return site


def starts(site: Site) -> int:
    return len((site.root / "starts").read_text().splitlines())


def lease(site: Site) -> str:
    return str(json.loads(site.hooks("status", "--json").stdout)[0]["lease"])


# Several config files.


def config_files(site: Site) -> tuple[Path, Path]:
    """Two config files of an operator, each with our include and a repository."""
    paths = []
    for number, repository in enumerate(site.repositories):
        path = site.root / "borgmatic.d" / f"{number}.yaml"
        path.parent.mkdir(exist_ok=True)
        own = {
            "unknown_unencrypted_repo_access_is_ok": True,
            "repositories": [{"path": str(repository)}],
            "encryption_passphrase": PASSPHRASE,
        }
        site.write_yaml(path, own)
        path.write_text(f"<<: !include {site.root}/etc/borgmatic.yaml\n{path.read_text()}")
        paths.append(path)
    first, second = paths
    return first, second


def create(site: Site, *configs: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    options = [word for config in configs for word in ("--config", str(config))]
    return site.run("borgmatic", *options, "--verbosity", "1", "create", check=check)


def test_two_config_files_in_one_run_of_borgmatic_stop_victorialogs_once(
    ready: Site, tmp_path: Path
) -> None:
    before = starts(ready)
    done = create(ready, *config_files(ready))
    assert starts(ready) == before + 1
    assert "published already for this run of borgmatic, at " in done.stdout + done.stderr
    for repository in ready.repositories:
        (archive,) = ready.archives(repository)
        extracted = ready.extract(repository, archive, tmp_path / repository.name)
        copy = extracted / str(ready.staging.path).lstrip("/")
        assert f": ok: {len(ROWS)} rows, " in ready.hooks("verify", str(copy)).stdout
    assert lease(ready) == ""
    # The next run makes a copy of its own.
    ready.server.ingest(ROWS)
    create(ready, *config_files(ready))
    assert starts(ready) == before + 2
    assert ready.manifest.rows == 2 * len(ROWS)


def test_the_second_config_file_has_its_archive_if_the_first_has_none(ready: Site) -> None:
    first, second = config_files(ready)
    before = starts(ready)
    first.write_text(first.read_text().replace(str(ready.repositories[0]), "/dev/null/no.borg"))
    done = create(ready, first, second, check=False)
    assert done.returncode != 0
    assert starts(ready) == before + 1
    assert len(ready.archives(ready.repositories[1])) == 1
    assert lease(ready) == ""


def test_a_copy_that_somebody_else_has_made_meanwhile_is_not_the_one_of_this_run(
    ready: Site,
) -> None:
    first, second = config_files(ready)
    archived, may_go_on = ready.root / "archived", ready.root / "may-go-on"
    wait = f"touch {archived}; while [ ! -e {may_go_on} ]; do sleep 0.1; done"
    hook = {"after": "configuration", "when": ["create"], "run": [wait]}
    first.write_text(f"{first.read_text()}commands:\n  - {json.dumps(hook)}\n")
    before = starts(ready)
    argv = ["borgmatic", "--config", str(first), "--config", str(second), "create"]
    with subprocess.Popen(
        argv, env=ready.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        try:
            wait_until(archived.exists, 120, "the end of the first file")
            ready.hooks("after-create", "--force")
            ready.hooks("before-create")
            ready.hooks("after-create")
            made = ready.manifest
        finally:
            may_go_on.touch()
            running.wait(120)
    assert running.returncode == 0
    assert starts(ready) == before + 3
    assert ready.manifest != made


# Another run.


@contextmanager
def borgmatic_that_archives(site: Site) -> Iterator[subprocess.Popen[bytes]]:
    """Be in the middle of `borg create` of a borgmatic, in this block; then let it end."""
    borg = SlowBorg(site.root)
    config = site.root / "slow.yaml"
    config.write_text(f"local_path: {borg.path}\n{site.borgmatic_config.read_text()}")
    config.chmod(0o600)
    # As many a timer has it: with more in between.
    argv = ["timeout", "300", "borgmatic", "--config", str(config), "create"]
    with subprocess.Popen(
        argv, env=site.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        try:
            borg.wait_until_it_reads()
            yield running
        finally:
            borg.go_on()
            running.wait(120)


def test_a_second_borgmatic_fails_as_long_as_the_first_archives(ready: Site) -> None:
    before = starts(ready)
    with borgmatic_that_archives(ready) as first:
        made = ready.manifest
        second = ready.borgmatic("create", check=False)
        # What monitoring takes for success must be one.
        assert second.returncode == 1
        said = second.stdout + second.stderr
        assert "is still being archived by borgmatic (pid " in said
        assert "if nothing archives it: vl-borg-hooks after-create --force" in said
        assert ready.manifest == made
        assert "borgmatic (pid " in lease(ready)
    assert first.returncode == 0
    assert starts(ready) == before + 1
    assert [len(ready.archives(repository)) for repository in ready.repositories] == [1, 1]
    ready.borgmatic("create")


def test_who_wants_it_soft_has_the_second_borgmatic_skip_it(ready: Site) -> None:
    text = ready.config.read_text()
    ready.config.write_text(f"{text}when_busy: skip\n")
    with borgmatic_that_archives(ready):
        second = ready.borgmatic("create", check=False)
        # So borgmatic 2.1.10 has it.
        assert second.returncode == 0, second.stderr
    assert [len(ready.archives(repository)) for repository in ready.repositories] == [1, 1]


# No borgmatic.


def hooks(site: Site, command: str) -> str:
    return f"{sys.executable} -m vl_borg_hooks --config {site.config} {command}"


def test_a_script_with_plain_borg_has_the_copy_until_it_ends(ready: Site) -> None:
    script = ready.root / "backup.sh"
    script.write_text(
        f"set -e\nsh -c '{hooks(ready, 'before-create')}; exit $?'\necho made\nread line\n"
        f"{hooks(ready, 'after-create')}\necho over\nread line\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(
        ["sh", str(script)],
        env=ready.environment,
        stdin=pipe,
        stdout=pipe,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stdin
        assert running.stdout
        assert running.stdout.readline() == "made\n"
        assert f"(pid {running.pid}, since " in lease(ready)
        refused = ready.hooks("before-create", check=False)
        assert refused.returncode == 1
        assert f"(pid {running.pid}, since " in refused.stderr
        # By whatever name it is called, nobody else gives it back.
        ready.borgmatic("create", check=False)
        assert f"(pid {running.pid}, since " in lease(ready)
        print(file=running.stdin, flush=True)
        assert running.stdout.readline() == "over\n"
        assert lease(ready) == ""
        print(file=running.stdin, flush=True)


def test_a_script_that_is_killed_blocks_nobody(ready: Site) -> None:
    script = ready.root / "backup.sh"
    script.write_text(f"{hooks(ready, 'before-create')}\necho made\nread line\n")
    pipe = subprocess.PIPE
    with subprocess.Popen(
        ["sh", str(script)],
        env=ready.environment,
        stdin=pipe,
        stdout=pipe,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stdout
        assert running.stdout.readline() == "made\n"
        assert lease(ready)
        running.kill()
    assert lease(ready) == ""
    ready.borgmatic("create")


def by_hand(site: Site, *commands: str) -> None:
    """Have a person's shell in a session of its own run commands of ours, and end."""
    text = "".join(f"{hooks(site, command)} || exit\n" for command in commands)
    subprocess.run(
        ["sh"], input=text, text=True, env=site.environment, check=True, start_new_session=True
    )


def from_afar(site: Site, command: str) -> subprocess.CompletedProcess[bytes]:
    """Call us as sshd does: nobody is there who waits for us and goes on."""
    argv = hooks(site, command).split()
    return subprocess.run(argv, env=site.environment, check=False, start_new_session=True)


def test_a_call_by_hand_blocks_nobody_when_its_shell_is_closed(ready: Site) -> None:
    by_hand(ready, "before-create", "before-create")
    assert lease(ready) == ""
    ready.borgmatic("create")


def test_a_call_from_afar_has_the_copy_until_it_is_given_back_from_anywhere(ready: Site) -> None:
    assert from_afar(ready, "before-create").returncode == 0
    assert "whoever called before-create (since " in lease(ready)
    assert ", for 24 hours at most)" in lease(ready)
    assert from_afar(ready, "before-create").returncode == 1
    assert ready.borgmatic("create", check=False).returncode == 1
    assert from_afar(ready, "after-create").returncode == 0
    assert lease(ready) == ""
    assert from_afar(ready, "before-create").returncode == 0
    ready.hooks("after-create", "--force")
    ready.borgmatic("create")


def test_a_service_has_the_copy_from_its_first_command_to_its_last(ready: Site) -> None:
    name = f"plain-{ready.unit}"
    reads, may_go_on = ready.root / "reads", ready.root / "may-go-on"
    archive = ready.root / "archive"
    archive.write_text(
        f"#!/bin/sh\ntouch {reads}\nwhile [ ! -e {may_go_on} ]; do sleep 0.1; done\n"
    )
    archive.chmod(0o755)
    environment = f"PATH={os.environ['PATH']}\nEnvironment=HOME={ready.environment['HOME']}"
    ready.systemd.write_unit(
        name,
        f"""\
[Unit]
DefaultDependencies=no

[Service]
Type=oneshot
Environment={environment}
ExecStartPre={hooks(ready, "before-create")}
ExecStart={archive}
ExecStopPost={hooks(ready, "after-create")}
""",
    )
    before = starts(ready)
    ready.systemd.systemctl("start", "--no-block", name)
    wait_until(reads.exists, 60, "the main process")
    assert starts(ready) == before + 1
    # Asked where its control group is seen.
    argv = hooks(ready, "before-create").split()
    told = {"PATH": os.environ["PATH"], "HOME": ready.environment["HOME"]}
    refused = ready.systemd.run_as_service(argv, told)
    assert refused.returncode == 1
    assert f"is still being archived by {name} (since " in refused.stderr
    may_go_on.touch()
    wait_until(
        lambda: ready.systemd.show(name, "ActiveState") in ("inactive", "failed"), 60, "its end"
    )
    assert ready.systemd.show(name, "Result") == "success"
    assert not (ready.root / "state/default/lease.json").exists()
    assert starts(ready) == before + 1


def test_a_service_that_has_ended_blocks_nobody(ready: Site) -> None:
    told = {"PATH": os.environ["PATH"], "HOME": ready.environment["HOME"]}
    made = ready.systemd.run_as_service(hooks(ready, "before-create").split(), told)
    assert made.returncode == 0, made.stderr
    assert (ready.root / "state/default/lease.json").exists()
    borgmatic = shutil.which("borgmatic")
    assert borgmatic
    # systemd, which called us, goes on.
    argv = [borgmatic, "--config", str(ready.borgmatic_config), "create"]
    done = ready.systemd.run_as_service(argv, told)
    assert done.returncode == 0, done.stderr
    assert not (ready.root / "state/default/lease.json").exists()
