"""Through the command line: whatever is wrong is one line, and VictoriaLogs is as it was found.

A server that only holds the lock of its data stands in for VictoriaLogs; all else is real.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import final

import pytest

from tests.parts.disk import SmallDisk
from tests.parts.locking_site import LockingSite, guards, the_line
from tests.parts.waiting import wait_until
from tests.support import (
    command_line,
    make_copy,
    make_data,
    make_part,
    make_partition,
    publish,
    run_command_line,
    tree,
    write_config,
)
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.staging.walk import TOO_YOUNG_NANOSECONDS

RSYNC = """\
#!/bin/sh
case "$1" in --version) exec {real} --version ;; esac
if [ -e {root}/state/default/journal.json ] || [ -e {root}/found-stopped ]; then
    {final}
fi
exec {real} "$@"
"""


def final_pass_does(site: LockingSite, script: str) -> Mapping[str, str]:
    """Return an environment in which an rsync in the stop window runs `script` first.

    If there is none, since the server is found stopped, a file of that name says so.
    """
    binaries = site.root / "bin"
    binaries.mkdir(exist_ok=True)
    content = RSYNC.format(real=shutil.which("rsync"), root=site.root, final=script)
    (binaries / "rsync").write_text(content)
    (binaries / "rsync").chmod(0o755)
    return {"PATH": f"{binaries}:{os.environ['PATH']}"}


@final
class BlockedRun:
    """A before-create that stands still in its final pass."""

    def __init__(self, site: LockingSite) -> None:
        self.site = site
        self.gate = site.root / "gate"
        os.mkfifo(self.gate)
        blocked = site.root / "blocked"
        environment = final_pass_does(site, f": > {blocked}; read line < {self.gate}")
        self.process = subprocess.Popen(
            command_line("--config", site.config, "before-create"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        site.runs.append(self.process)
        wait_until(blocked.exists, 30, "the final pass")

    def go_on(self) -> None:
        """Let the final pass do its work."""
        self.gate.write_text("\n")


# What is wrong before anything was touched: server, data and staging copy are left as they are.


def no_config(site: LockingSite) -> None:
    site.config.unlink()


def open_config(site: LockingSite) -> None:
    site.config.chmod(0o666)


def no_data(site: LockingSite) -> None:
    (site.root / "empty").mkdir()
    site.configure(data_path=str(site.root / "empty"))


def missing_data(site: LockingSite) -> None:
    site.configure(data_path=str(site.root / "nothing"))


def data_is_a_file(site: LockingSite) -> None:
    (site.root / "file").touch()
    site.configure(data_path=str(site.root / "file"))


def command(site: LockingSite, **changes: list[str]) -> None:
    commands = {action: site.server.argv(action) for action in ("stop", "start", "status")}
    site.configure(service={"command": {**commands, **changes}})


def unreachable(site: LockingSite) -> None:
    ssh = ["ssh", "-F", "/dev/null", "-p", "1"]
    site.configure(data_path="127.0.0.1:/srv/data", ssh_command=ssh)


def staging_open(site: LockingSite) -> None:
    (site.staging.path / "of-others").touch()
    site.staging.path.chmod(0o777)


def staging_is_a_file(site: LockingSite) -> None:
    shutil.rmtree(site.staging.path)
    site.staging.path.touch()


def state_open(site: LockingSite) -> None:
    (site.root / "state").chmod(0o777)


def bad_journal(site: LockingSite) -> None:
    (site.root / "state/default/journal.json").write_bytes(b"\0\0\0")


def no_program(site: LockingSite) -> None:
    program = site.root / "program"
    program.write_text("no interpreter line")
    program.chmod(0o755)
    command(site, status=[str(program)])


BEFORE: dict[str, tuple[Callable[[LockingSite], object], str]] = {
    "no config": (no_config, "there is no config file"),
    "a config that others can write": (open_config, "can be written by others"),
    "no VictoriaLogs data": (no_data, "is not a VictoriaLogs data directory"),
    "data that is missing": (missing_data, "is not a VictoriaLogs data directory"),
    "data that is a file": (data_is_a_file, "is not a VictoriaLogs data directory"),
    "no status command": (
        lambda site: command(site, status=["/no/such/command"]),
        "the command /no/such/command was not found",
    ),
    "no stop command": (
        lambda site: command(site, stop=["/no/such/command"]),
        "the command /no/such/command was not found",
    ),
    "no start command": (
        lambda site: command(site, start=["/no/such/command"]),
        "the command /no/such/command was not found",
    ),
    "a command that can't be executed": (no_program, "/program could not be started: "),
    "a status that tells nothing": (
        lambda site: command(site, status=["sh", "-c", "echo who knows >&2; exit 4"]),
        "failed: who knows; VictoriaLogs is running",
    ),
    "stopped by its service, but running": (
        lambda site: command(site, status=["false"]),
        "is stopped, but a process holds the lock",
    ),
    "another data path": (
        lambda site: site.configure(data_path=str(make_data(site.root / "other"))),
        "runs, but no process holds the lock",
    ),
    "a host that can't be reached": (unreachable, "127.0.0.1 could not be reached over ssh"),
    "an unknown service manager": (
        lambda site: site.configure(service={"sytemd": "x"}),
        "is not a service manager; there are: ",
    ),
    "a password that can't be read": (
        lambda site: site.configure(
            url="http://127.0.0.1:1",
            http_auth={"username": "backup", "password_file": str(site.root / "no-password")},
        ),
        "could not read ",
    ),
    "a state directory that others can write": (state_open, "can be written by others"),
    "a journal that makes no sense": (
        bad_journal,
        "journal.json: is not valid JSON; VictoriaLogs is running",
    ),
}


@pytest.mark.parametrize("reason", BEFORE)
def test_what_is_wrong_is_said_before_anything_is_touched(site: LockingSite, reason: str) -> None:
    site.backs_up()
    site.command("after-create")
    cause, expected = BEFORE[reason]
    cause(site)
    before, copy, pid = site.content(), tree(site.staging.path), site.server.pid
    assert expected in the_line(site.command("before-create"))
    assert site.server.running
    assert site.server.pid == pid
    assert site.content() == before
    assert tree(site.staging.path) == copy


def test_an_unknown_instance_names_those_there_are(site: LockingSite) -> None:
    said = the_line(site.command("--instance", "other", "before-create"))
    assert "has no instance 'other'; it has: default" in said


def test_a_missing_rsync_is_said_before_anything_is_touched(site: LockingSite) -> None:
    (site.root / "empty").mkdir()
    pid = site.server.pid
    said = the_line(site.command("before-create", environment={"PATH": f"{site.root}/empty"}))
    assert "the command rsync was not found; VictoriaLogs is running; install rsync" in said
    assert site.server.pid == pid


@pytest.mark.parametrize("command", ["before-create", "recover"])
def test_a_missing_ssh_is_said_before_anything_is_touched(site: LockingSite, command: str) -> None:
    site.configure(data_path=f"user@host:{site.data}", ssh_command=["no-such-ssh"])
    said = the_line(site.command(command))
    assert said.startswith("vl-borg-hooks: default: the command no-such-ssh ")
    assert "install no-such-ssh or correct PATH" in said
    assert not site.staging.path.exists()


@pytest.mark.parametrize(
    ("cause", "expected"),
    [(staging_open, "can be written by others"), (staging_is_a_file, "/staging: File exists")],
    ids=["open", "a file"],
)
def test_a_staging_path_that_can_not_be_used_is_said(
    site: LockingSite, cause: Callable[[LockingSite], object], expected: str
) -> None:
    site.backs_up()
    cause(site)
    pid = site.server.pid
    assert expected in the_line(site.command("before-create"))
    assert site.server.running
    assert site.server.pid == pid


def test_a_stop_command_that_fails_leaves_the_server_running(site: LockingSite) -> None:
    command(site, stop=["sh", "-c", "echo no way >&2; exit 1"])
    pid = site.server.pid
    said = the_line(site.command("before-create"))
    assert "no way; VictoriaLogs is running" in said
    assert (site.server.running, site.server.pid) == (True, pid)
    assert not site.published


def test_a_server_that_does_not_stop_in_time_is_left_running(site: LockingSite) -> None:
    command(site, stop=["true"])
    site.configure(stop_timeout=0.5, start_timeout=0.5)
    pid = site.server.pid
    said = the_line(site.command("before-create"))
    assert "VictoriaLogs was asked to stop and has not, after 1 s; it still runs" in said
    assert (site.server.running, site.server.pid) == (True, pid)
    assert not site.published


def test_a_server_that_does_not_come_back_is_the_loudest_error_there_is(site: LockingSite) -> None:
    command(site, start=["sh", "-c", "echo out of luck >&2; exit 1"])
    site.configure(start_timeout=0.5)
    said = the_line(site.command("before-create"))
    assert "VICTORIALOGS IS DOWN" in said
    assert "out of luck" in said
    assert "run: sh -c" in said
    # The guard goes on trying, and an operator finds what it has to say.
    log = site.root / "state/default/guard.log"
    wait_until(lambda: "VICTORIALOGS IS DOWN" in log.read_text(), 30, "the guard's own failure")
    assert re.search(
        r"^vl-borg-hooks: \d{4}-\d\d-\d\d .*out of luck", log.read_text(), re.MULTILINE
    )
    # Once it can be started, the next run does that by itself.
    command(site)
    site.configure(start_timeout=60)
    site.backs_up()
    assert site.server.running


def test_a_staging_filesystem_without_room_is_said_and_nothing_is_published(
    site: LockingSite,
) -> None:
    if reason := SmallDisk.why_not():
        pytest.skip(reason)
    site.backs_up()
    shutil.rmtree(site.staging.path)
    table = site.data / "partitions/20261121/datadb"
    make_part(table / "large", rows=40_000, day=20261121)
    (table / "parts.json").write_text(
        json.dumps([path.name for path in table.iterdir() if path.is_dir()])
    )
    before, pid = site.content(), site.server.pid
    # There is room for what is to be left free, but not for the copy as well.
    with SmallDisk(site.staging.path, 66_000_000) as disk:
        disk.path.chmod(0o700)
        said = the_line(site.command("before-create"))
        assert re.search(r"the staging copy needs 5\.\d MB more and 64\.0 MB in reserve", said)
        assert f"{site.staging.path} has 66.0 MB free; VictoriaLogs is running" in said
        assert not site.published
    assert (site.server.running, site.server.pid) == (True, pid)
    assert site.content() == before


def test_a_staging_filesystem_that_is_full_in_the_final_pass_leaves_the_server_running(
    site: LockingSite,
) -> None:
    if reason := SmallDisk.why_not():
        pytest.skip(reason)
    large = site.data / "large"
    # As a merge between the passes would: there was room when the backup began.
    grow = ["sh", "-c", f'head -c 100000000 /dev/zero > "{large}"; exec "$@"', "sh"]
    command(site, stop=[*grow, *site.server.argv("stop")])
    with SmallDisk(site.staging.path, 80_000_000) as disk:
        disk.path.chmod(0o700)
        said = the_line(site.command("before-create"))
        assert "the final pass failed: " in said
        assert "No space left on device" in said
        assert "VictoriaLogs is running" in said
        assert not site.published
    assert site.server.running
    large.unlink()
    command(site)
    site.backs_up()


def test_files_that_vanish_in_the_final_pass_are_an_error(site: LockingSite) -> None:
    site.backs_up()
    complaint = "echo 'file has vanished: x' >&2; exit 24"
    environment = final_pass_does(site, complaint)
    said = the_line(site.command("before-create", environment=environment))
    assert "the final pass failed: file has vanished: x" in said
    assert not site.published
    assert site.server.running


def test_a_final_pass_longer_than_max_downtime_is_given_up(site: LockingSite) -> None:
    site.configure(max_downtime=1)
    environment = final_pass_does(site, "exec sleep 50")
    started = time.monotonic()
    said = the_line(site.command("before-create", environment=environment))
    assert time.monotonic() - started < 15
    assert "the final pass took longer than" in said
    assert "VictoriaLogs is running" in said
    assert not site.published
    assert site.server.running


def test_a_copy_of_data_that_was_damaged_is_not_published(site: LockingSite) -> None:
    site.backs_up()
    part = next((site.data / "partitions/20261121/datadb").glob("18A*"))
    os.truncate(part / "index.bin", 1)
    said = the_line(site.command("before-create"))
    assert "the staging copy is not consistent: " in said
    assert f"{part.relative_to(site.data)}/index.bin: is not as it was when" in said
    assert not site.published
    assert site.server.running


def test_a_server_that_was_found_stopped_stays_stopped_and_is_backed_up(site: LockingSite) -> None:
    site.server.stop()
    site.backs_up()
    assert not site.server.running
    (site.data / "flock.lock").unlink()
    site.backs_up()
    assert not site.server.running


def test_a_staging_copy_of_ours_is_sound_for_verify_too(site: LockingSite) -> None:
    # On one filesystem it shares its files with the data, as hard links.
    site.backs_up()
    checked = run_command_line("verify", site.staging.path)
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout


def test_a_dry_run_changes_nothing(site: LockingSite) -> None:
    pid, before = site.server.pid, site.content()
    done = site.command("--dry-run", "before-create")
    assert (done.returncode, done.stderr) == (0, "")
    assert not site.staging.path.exists()
    assert site.server.pid == pid
    assert site.content() == before


# Two at once, and runs that are killed.


def test_a_second_run_is_a_failure_and_told_who_holds_the_first(site: LockingSite) -> None:
    blocked = BlockedRun(site)
    said = the_line(site.command("before-create"))
    assert f"another run holds this instance: before-create (pid {blocked.process.pid}, " in said
    copy = make_copy(site.root / "extracted")
    said = the_line(site.command("restore", "--from", copy.path, "--yes"))
    assert f"(pid {blocked.process.pid}, " in said
    blocked.go_on()
    _, log = blocked.process.communicate(timeout=30)
    assert blocked.process.returncode == 0, log
    assert site.published
    assert site.server.running


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_run_that_is_ended_in_the_final_pass_leaves_the_server_running(
    site: LockingSite, number: signal.Signals
) -> None:
    before = site.content()
    # There is a copy of an earlier run, that must not be archived any more.
    site.backs_up()
    blocked = BlockedRun(site)
    assert not site.server.running
    assert not site.published
    blocked.process.send_signal(number)
    started = time.monotonic()
    site.server.wait(running=True)
    assert time.monotonic() - started < 10
    _, log = blocked.process.communicate(timeout=30)
    if number != signal.SIGKILL:
        assert blocked.process.returncode == 1
        said = log.splitlines()[-1]
        assert said.startswith(f"vl-borg-hooks: default: ended by {number.name}; ")
        assert "VictoriaLogs is running" in said
        assert "Traceback" not in log
    assert not site.published
    assert site.content() == before
    wait_until(lambda: not guards(site.config), 20, "the end of the guard")
    assert site.server.running
    site.backs_up()


def test_a_server_that_was_found_stopped_stays_stopped_though_the_run_is_killed(
    site: LockingSite,
) -> None:
    site.server.stop()
    (site.root / "found-stopped").touch()
    environment = final_pass_does(site, f": > {site.root}/blocked; exec sleep 50")
    with subprocess.Popen(
        command_line("--config", site.config, "before-create"),
        env={**os.environ, **environment},
        stderr=subprocess.DEVNULL,
    ) as process:
        wait_until((site.root / "blocked").exists, 30, "the final pass")
        process.kill()
    wait_until(lambda: not guards(site.config), 20, "the end of all processes")
    (site.root / "found-stopped").unlink()
    assert not site.server.running
    assert not site.published
    site.backs_up()


def test_whatever_happens_to_a_staging_copy_on_another_filesystem_is_mended(
    site: LockingSite,
) -> None:
    """What has not changed since the last backup is not looked at again: what has, is."""
    if reason := SmallDisk.why_not():
        pytest.fail(reason)
    part = "partitions/20261121/datadb/18A0000000000000"
    with SmallDisk(site.root / "other", 200 << 20) as disk:
        staging = disk.path / "staging"
        site.staging = StagingCopy(staging)
        site.configure(staging_path=str(staging))
        site.backs_up()
        # A directory that changed a moment ago is not taken for one that will stay.
        newest = max(path.stat().st_ctime_ns for path in staging.rglob("*"))
        wait_until(
            lambda: time.time_ns() > newest + TOO_YOUNG_NANOSECONDS, 30, "the directories are old"
        )
        site.backs_up()
        os.truncate(staging / "data" / part / "index.bin", 3)
        site.backs_up()
        (staging / "data" / part / "values.bin0").unlink()
        (staging / "data" / part / "stray").touch()
        site.backs_up()
        shutil.rmtree(staging / "data" / "partitions/20261121/indexdb")
        make_partition(site.data / "partitions/20261123")
        site.backs_up()
        shutil.rmtree(site.data / "partitions/20261121")
        site.backs_up()


def test_what_something_else_makes_of_a_part_in_the_data_does_not_get_into_the_copy(
    site: LockingSite,
) -> None:
    """VictoriaLogs replaces no file of a part: what was hashed first is what it wrote."""
    site.backs_up()
    before, index = site.content(), "partitions/20261121/datadb/18A0000000000000/index.bin"
    replaced = site.data / "replaced"
    replaced.write_bytes(bytes(reversed((site.data / index).read_bytes())))
    replaced.rename(site.data / index)
    assert site.content() != before
    done = run_command_line("--config", site.config, "before-create")
    assert done.returncode == 0
    assert "the last copy is as it was published" in done.stderr
    assert tree(site.staging.data) == before


def test_recovering_where_there_is_nothing_to_recover_changes_nothing(site: LockingSite) -> None:
    pid, before = site.server.pid, site.content()
    assert site.command("recover").returncode == 0
    assert (site.server.running, site.server.pid) == (True, pid)
    assert site.content() == before


# Restores that must not be.


def test_a_restore_has_to_be_told_what_to_do(site: LockingSite) -> None:
    before = tree(site.data)
    assert "needs one of --from DIR, --rollback, --discard-replaced" in the_line(
        site.command("restore", "--yes")
    )
    both = site.command("restore", "--rollback", "--from", site.root)
    assert both.returncode == 2
    assert "not allowed with argument" in both.stderr
    assert tree(site.data) == before


def no_copy(site: LockingSite, copy: StagingCopy) -> None:
    shutil.rmtree(copy.path)
    make_data(copy.path)


def of_another(site: LockingSite, copy: StagingCopy) -> None:
    fields = json.loads(copy.manifest_path.read_bytes()) | {"instance": "other"}
    copy.manifest_path.write_text(json.dumps(fields))


def two_of_one(site: LockingSite, copy: StagingCopy) -> None:
    shutil.copytree(copy.path, copy.path / "inner" / "a")
    shutil.copytree(copy.path / "inner" / "a", copy.path / "inner" / "b")
    copy.manifest_path.unlink()


def damaged(site: LockingSite, copy: StagingCopy) -> None:
    path = next(copy.data.rglob("index.bin"))
    os.truncate(path, 3)


def inverted(site: LockingSite, copy: StagingCopy) -> None:
    """Change every byte of a file, and neither its size nor its modification time."""
    path = next(copy.data.rglob("values.bin0"))
    times = path.stat()
    path.write_bytes(bytes(byte ^ 0xFF for byte in path.read_bytes()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def setuid(site: LockingSite, copy: StagingCopy) -> None:
    next(copy.data.rglob("values.bin0")).chmod(0o4755)


def planted(site: LockingSite, copy: StagingCopy) -> None:
    """Who may write to the data would have us write elsewhere, as root."""
    (site.root / "elsewhere").mkdir()
    (site.data / ".vl-borg-hooks").symlink_to(site.root / "elsewhere")


def with_a_link(site: LockingSite, copy: StagingCopy) -> None:
    (copy.data / "partitions/20261121/datadb/link").symlink_to("/etc")


RESTORES: dict[str, tuple[Callable[[LockingSite, StagingCopy], object], str]] = {
    "missing": (lambda site, copy: shutil.rmtree(copy.path), "No such file or directory"),
    "no copy": (no_copy, "holds no staging copy"),
    "another instance's": (of_another, "holds copies of other, none of default"),
    "two of one instance": (two_of_one, "holds two copies of default"),
    "damaged": (damaged, "index.bin: has 3 bytes, should have 544"),
    "with every byte of a file inverted": (
        inverted,
        "values.bin0: has another content than when it was backed up",
    ),
    "with a setuid file": (setuid, "values.bin0: is setuid, setgid or sticky: mode 4755"),
    "a link in place of our directory": (planted, ".vl-borg-hooks on this machine is a link"),
    "with a link": (with_a_link, "datadb/link: is not a file or directory"),
    "unpublished": (lambda site, copy: copy.unpublish(), "holds no staging copy"),
}


@pytest.mark.parametrize("reason", RESTORES)
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_a_restore_that_must_not_be_touches_nothing(
    site: LockingSite, reason: str, *, running: bool
) -> None:
    copy = make_copy(site.root / "extracted")
    cause, expected = RESTORES[reason]
    cause(site, copy)
    if not running:
        site.server.stop()
    before, pid = tree(site.data), site.server.pid
    assert expected in the_line(site.command("restore", "--from", copy.path, "--yes"))
    assert site.server.running is running
    assert site.server.pid == pid
    assert tree(site.data) == before


def configure_two(site: LockingSite) -> None:
    """Make a second instance known, of whose data nothing was ever extracted."""
    paths = {key: f"{site.fields[key]}-other" for key in ("data_path", "staging_path")}
    instances = [site.fields, {**site.fields, "name": "other", **paths}]
    write_config(site.config, instances, state_path=str(site.root / "state"))


def test_an_instance_that_was_asked_for_and_has_no_copy_is_an_error(site: LockingSite) -> None:
    copy = make_copy(site.root / "extracted")
    configure_two(site)
    before = tree(site.data)
    named = ("--instance", "default", "--instance", "other")
    said = the_line(site.command(*named, "restore", "--from", copy.path, "--yes"))
    assert "holds copies of default, none of other" in said
    assert tree(site.data) == before
    done = site.command("--verbosity", "0", "restore", "--from", copy.path, "--yes")
    assert done.returncode == 0, done.stderr
    assert "holds no copy of other: not restored" in done.stderr
    assert site.served() == tree(copy.data)


@pytest.mark.parametrize("name", ["plain", "with space", "new\nline", os.fsdecode(b"no utf8 \xff")])
def test_a_copy_is_restored_from_wherever_it_is(site: LockingSite, name: str) -> None:
    copy = make_copy(site.root / name / "var/lib/vl-borg-hooks/default")
    (site.data / "partitions/20261121/datadb/old").mkdir()
    done = site.command("restore", "--from", site.root / name, "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert site.served() == tree(copy.data)
    assert site.server.running


def test_a_restored_server_that_does_not_come_up_gets_its_data_back(site: LockingSite) -> None:
    copy = make_copy(site.root / "extracted")
    (copy.data / "refuses").mkdir()
    publish(copy)
    before = site.content()
    start = site.server.argv("start")
    # It starts on any data but the restored.
    refusing = f'[ ! -e {site.data}/refuses ] && exec "$@"; echo refuses >&2; exit 1'
    command(site, start=["sh", "-c", refusing, "sh", *start])
    site.configure(start_timeout=3)
    said = the_line(site.command("restore", "--from", copy.path, "--yes"))
    assert "VictoriaLogs did not come back" in said
    assert "VictoriaLogs is running, on the data that was there before" in said
    assert site.server.running
    assert site.content() == before


def test_a_restore_onto_a_filesystem_without_room_touches_nothing(site: LockingSite) -> None:
    if reason := SmallDisk.why_not():
        pytest.skip(reason)
    copy = make_copy(site.root / "extracted")
    (copy.data / "large").write_bytes(bytes(4 << 20))
    publish(copy)
    site.server.stop()
    with SmallDisk(site.root / "small", 1 << 20) as disk:
        site.configure(data_path=str(disk.path / "data"))
        shutil.copytree(site.data, disk.path / "data")
        before = tree(disk.path)
        said = the_line(site.command("restore", "--from", copy.path, "--yes"))
        assert re.search(r"the copy needs 4\.\d MB, but .* has \d+\.\d kB free; ", said)
        assert "VictoriaLogs is stopped as it was found" in said
        assert tree(disk.path) == before
