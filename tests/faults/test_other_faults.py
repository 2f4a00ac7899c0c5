"""Faults that kill nobody: each is a row of the table in docs/faults.md.

What the user sees, the state of VictoriaLogs, the state of the copy; and no row is ever lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest

from tests.faults.conftest import MakeSite
from tests.faults.harness import (
    NEW,
    OLD,
    RECOVERY_SECONDS,
    SLOW_STOP,
    Fault,
    Killer,
    Run,
    command_line,
    command_service,
    copy_is_whole_or_unpublished,
    leftovers,
    make_rows,
    messages,
    server_process,
    settle,
    starts,
    systemctl_that_cannot_stop,
)
from tests.faults.killer_plugin import MESSAGE
from tests.parts.disk import SmallDisk
from tests.parts.site import Site
from tests.parts.slow_borg import SlowBorg
from tests.parts.systemd import victoria_logs_unit
from tests.parts.tally import TALLY
from tests.parts.waiting import wait_until
from vl_borg_hooks.system import processes

# In the stop window: VictoriaLogs has stopped and we hold its lock.
IN_WINDOW = "in the window start #1"
BEFORE_STOP = "pass warm pass end #1"
# Room enough for a copy and for what a run wants to be left free.
DISK_BYTES = 90_000_000


@dataclass(frozen=True)
class Row:
    """One row of the table. The state of VictoriaLogs is `running` unless a test says more."""

    fault: str
    sees: tuple[str, ...]
    copy: Literal["unpublished", "published", "as it was"]
    status: int = 1

    def judge(self, site: Site, run: Run, rows: Sequence[Mapping[str, object]] = OLD) -> None:
        """AssertionError unless all is as the row says; the next run then succeeds by itself."""
        self.judge_run(site, run)
        settle(site, time.monotonic())
        self.judge_data(site, rows)

    def judge_run(self, site: Site, run: Run) -> None:
        if self.status:
            run.failed_in_one_line(*self.sees, status=self.status)
        else:
            assert run.status == 0, run.stderr
        assert copy_is_whole_or_unpublished(site) is (self.copy != "unpublished")

    def judge_data(self, site: Site, rows: Sequence[Mapping[str, object]] = OLD) -> None:
        assert site.is_running
        assert messages(site.server.rows()) == messages(rows)
        assert site.journal_is_empty()
        site.hooks("before-create")
        assert copy_is_whole_or_unpublished(site)
        assert site.manifest.rows == len(rows)
        TALLY.count(f"row: {self.fault}")


def bulky(name: str, day: str, count: int = 1000) -> list[Mapping[str, object]]:
    """Rows of a kilobyte each that can't be compressed away."""
    return [
        {**row, "_msg": f"{row['_msg']} {secrets.token_urlsafe(750)}"}
        for row in make_rows(name, count, day)
    ]


def script(site: Site, name: str, text: str, **values: object) -> tuple[str, ...]:
    """Write a Python script at the site and return its argument vector."""
    path = site.root / name
    path.write_text(textwrap.dedent(text).format(**{key: repr(v) for key, v in values.items()}))
    return (sys.executable, str(path))


def at(event: str, *argv: str | tuple[str, ...]) -> Fault:
    """Run a command at `event`."""
    (command,) = argv if isinstance(argv[0], tuple) else (argv,)
    return Fault(event, "run", tuple(map(str, command)))


def ingest_command(site: Site, name: str, *batches: Sequence[Mapping[str, object]]) -> list[str]:
    """The lines of a script that ingests `batches`."""
    body = site.root / f"{name}.jsonl"
    body.write_text("\n".join(json.dumps(row) for batch in batches for row in batch))
    return [
        "import urllib.request",
        f"body = open({str(body)!r}, 'rb').read()",
        f"url = {site.server.url + '/insert/jsonline?_stream_fields=host'!r}",
        "headers = {'Content-Type': 'application/stream+json'}",
        "opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))",
        "opener.open(urllib.request.Request(url, body, headers)).read()",
    ]


def lines_script(site: Site, name: str, *lines: str) -> tuple[str, ...]:
    path = site.root / name
    path.write_text("\n".join(lines))
    return (sys.executable, str(path))


def fake_rsync(site: Site, action: str) -> str:
    """A directory with an rsync that does `action` if it is started in the stop window."""
    directory = site.root / "bin"
    directory.mkdir(exist_ok=True)
    rsync = shutil.which("rsync")
    journal = site.root / "state" / "default" / "journal.json"
    lines = [
        f"#!{sys.executable} -IS",
        "import os, pathlib, signal, subprocess, sys, time",
        f"rsync, staging = {rsync!r}, {str(site.staging.data)!r}",
        f"if os.path.exists({str(journal)!r}) and '--version' not in sys.argv:",
        textwrap.indent(textwrap.dedent(action).strip(), "    "),
        "os.execv(rsync, ['rsync', *sys.argv[1:]])",
    ]
    (directory / "rsync").write_text("\n".join(lines))
    (directory / "rsync").chmod(0o755)
    return str(directory)


@pytest.fixture
def ready(site: Site) -> Site:
    """A site with rows and one published copy."""
    site.install(final_pass="stopped")
    site.server.ingest(OLD)
    site.hooks("before-create")
    return site


# A stop that hangs, a start that fails.


LATE = ("VictoriaLogs did not stop within 1 seconds", "VictoriaLogs is running; raise stop_timeout")


@pytest.mark.real_victorialogs
def test_a_stop_that_hangs(site: Site, killer: Killer) -> None:
    """As it does for everybody who has a live tail open."""
    row = Row("stop takes longer than stop_timeout (systemd)", LATE, "unpublished")
    site.install([SLOW_STOP], stop_timeout=1)
    site.server.ingest(OLD)
    with site.server.tail():
        run = killer.run(site, "before-create")
    row.judge_run(site, run)
    settle(site, time.monotonic())
    site.write_config()
    row.judge_data(site)


def test_a_stop_that_hangs_behind_a_command(site: Site, killer: Killer) -> None:
    row = Row("stop takes longer than stop_timeout (command)", LATE, "unpublished")
    with command_service(site, stop_delay=3, stop_timeout=1):
        before = server_process(site).pid
        run = killer.run(site, "before-create")
        row.judge_run(site, run)
        wait_until(lambda: not psutil.pid_exists(before), 30, "the late stop")
        settle(site, time.monotonic())
        assert messages(site.server.rows()) == messages(OLD)
        assert site.journal_is_empty()
        TALLY.count(f"row: {row.fault}")


@pytest.mark.parametrize("do", ["SIGKILL", "raise"])
@pytest.mark.parametrize(
    "delay", [2, 7, pytest.param(0, id="live tail", marks=pytest.mark.real_victorialogs)]
)
def test_ended_after_the_stop_command_of_a_script_that_does_not_wait(
    site: Site, killer: Killer, delay: int, do: str
) -> None:
    """The server stops long after our end: it still answers until then, or has a live tail open."""
    with (
        command_service(site, delay, stop_timeout=10),
        contextlib.nullcontext() if delay else site.server.tail(),
    ):
        before = server_process(site).pid
        run = killer.run(site, "before-create", fault=Fault("hook stop_service end #1", do))
        assert run.status == (-9 if do == "SIGKILL" else 1)
        assert do != "SIGKILL" or psutil.pid_exists(before), "it stopped at once"
        wait_until(lambda: not psutil.pid_exists(before), 30, "the late stop")
        recovery = settle(site, time.monotonic())
        assert messages(site.server.rows()) == messages(OLD)
        assert site.journal_is_empty()
        how = f"begins after {delay} s" if delay else "waits for a live tail"
        TALLY.count(f"{do} (before-create, a stop that {how})", recovery, "a slow stop")


@contextlib.contextmanager
def slow_stop(site: Site, seconds: int) -> Iterator[None]:
    """Have systemd wait before it tells the server, the real one too, to stop."""
    unit = (site.systemd.unit_directory / site.unit).read_text()
    site.systemd.write_unit(site.unit, f"{unit}ExecStop=/bin/sleep {seconds}\n")
    try:
        yield
    finally:
        site.systemd.write_unit(site.unit, unit)


def test_a_server_that_stops_late(ready: Site, killer: Killer) -> None:
    row = Row("VictoriaLogs takes its time to stop", LATE, "unpublished")
    ready.write_config(stop_timeout=1)
    before = starts(ready)
    with slow_stop(ready, 4):
        run = killer.run(ready, "before-create")
        row.judge_run(ready, run)
        wait_until(lambda: starts(ready) == before + 1, 30, "the late stop, the start after it")
    ready.write_config()
    row.judge(ready, run)


def test_a_server_that_stops_later_than_we_wait(ready: Site, killer: Killer) -> None:
    """The start that we asked for stays asked for."""
    row = Row(
        "VictoriaLogs stops after we gave up",
        ("was asked to stop and has not", "may stop at any time", "systemctl start"),
        "unpublished",
    )
    ready.write_config(stop_timeout=1, start_timeout=2)
    before = starts(ready)
    with slow_stop(ready, 9):
        run = killer.run(ready, "before-create")
        row.judge_run(ready, run)
        wait_until(lambda: starts(ready) == before + 1, 30, "the late stop, the start after it")
    ready.write_config()
    row.judge(ready, run)


def test_a_stop_command_that_fails(ready: Site, killer: Killer) -> None:
    row = Row("the stop command fails", ("Access denied", "VictoriaLogs is running"), "unpublished")
    before = starts(ready)
    directory = systemctl_that_cannot_stop(ready)
    began = time.monotonic()
    run = killer.run(ready, "before-create", path=directory)
    assert time.monotonic() - began < RECOVERY_SECONDS
    assert starts(ready) == before, "was stopped"
    row.judge(ready, run)


def failing_starts(site: Site, count: int, **options: Any) -> Path:
    """A server whose next `count` starts fail; returns the file that counts them."""
    counter, wrapper = site.root / "failing-starts", site.root / "wrapper"
    wrapper.write_text(
        f"""#!/bin/sh
        left=$(cat {counter})
        [ "$left" -gt 0 ] || exec {site.executable} "$@"
        echo $((left - 1)) >{counter}
        exit 1
        """
    )
    wrapper.chmod(0o755)
    counter.write_text("0")
    site.executable = wrapper
    site.install(**options)
    site.server.ingest(OLD)
    counter.write_text(str(count))
    return counter


def test_a_start_that_fails_twice(site: Site, killer: Killer) -> None:
    row = Row("start fails, then works", (), "published", status=0)
    counter = failing_starts(site, 2)
    run = killer.run(site, "before-create")
    assert int(counter.read_text()) == 0, "it started at once"
    row.judge(site, run)


def test_a_start_that_always_fails(site: Site, killer: Killer) -> None:
    row = Row(
        "start fails until start_timeout",
        ("VICTORIALOGS IS DOWN", "systemctl start", "exit-code"),
        "unpublished",
    )
    counter = failing_starts(site, 100_000, start_timeout=3)
    row.judge_run(site, killer.run(site, "before-create"))
    # The guard tries too, but keeps neither a run nor an operator from it, and no backup is skipped.
    killer.run(site, "before-create").failed_in_one_line("VICTORIALOGS IS DOWN")
    assert site.hooks("recover", check=False).returncode == 1
    assert not site.server.healthy()
    assert leftovers(site), "the guard has given up"
    counter.write_text("0")
    wait_until(lambda: not leftovers(site), 60, "the guard has brought it back")
    row.judge_data(site)


# A final pass that takes too long or fails.


@pytest.mark.parametrize("ignored", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
def test_a_final_pass_that_takes_too_long(ready: Site, killer: Killer, ignored: str) -> None:
    row = Row(
        f"final pass longer than max_downtime{', deaf to SIGTERM' if ignored else ''}",
        ("the final pass took longer than", "VictoriaLogs is running"),
        "unpublished",
    )
    ready.write_config(final_pass="stopped", max_downtime=1)
    began = time.monotonic()
    hang = f"{ignored or 'pass'}\ntime.sleep(600)"
    run = killer.run(ready, "before-create", path=fake_rsync(ready, hang))
    assert time.monotonic() - began < RECOVERY_SECONDS
    ready.write_config()
    row.judge(ready, run)


def test_a_final_pass_with_an_io_error(ready: Site, killer: Killer) -> None:
    sees = ("the final pass failed: ", "Input/output error")
    row = Row("I/O error in the final pass", sees, "unpublished")
    action = """
        print("rsync: [sender] read errors mapping: Input/output error (5)", file=sys.stderr)
        sys.exit(23)
    """
    row.judge(ready, killer.run(ready, "before-create", path=fake_rsync(ready, action)))


def test_a_part_that_vanishes_in_the_final_pass(
    site: Site, killer: Killer, disk: SmallDisk
) -> None:
    """For real: rsync has listed it, and is held up by the part before it."""
    ready = site
    ready.install(final_pass="stopped")
    ready.server.ingest(OLD)
    sees = ("the final pass failed: file has vanished: ", "(rsync exit status 24, ")
    row = Row("a part vanishes in the final pass", sees, "unpublished")
    rows = [*bulky("early", "2026-02-01"), *bulky("late", "2026-03-01")]
    ingest = lines_script(ready, "ingest.py", *ingest_command(ready, "vanishing", rows))
    action = f"""
        copying = subprocess.Popen([rsync, "--bwlimit=400", *sys.argv[1:]])
        table = {str(ready.data / "partitions" / "20260301" / "datadb")!r}
        parts = [entry.path for entry in os.scandir(table) if entry.is_dir()]
        receiving = pathlib.Path(staging, "partitions", "20260201", "datadb")
        # Polled: this rsync runs as a program of its own, with nothing that watches a directory.
        while not any(receiving.glob("*/.*")) and copying.poll() is None:
            time.sleep(0.01)
        for part in parts:
            os.rename(part, {str(ready.root)!r} + "/" + os.path.basename(part))
        status = copying.wait()
        for part in parts:
            os.rename({str(ready.root)!r} + "/" + os.path.basename(part), part)
        sys.exit(status)
    """
    path = fake_rsync(ready, action)
    run = killer.run(ready, "before-create", fault=at(BEFORE_STOP, ingest), path=path)
    row.judge(ready, run, [*OLD, *rows])


def test_a_file_that_is_shortened_after_the_final_pass(ready: Site, killer: Killer) -> None:
    sees = (
        f"the staging copy is not consistent: {ready.staging.data}/partitions/",
        ": is not as it was when it was backed up before, but VictoriaLogs never changes a part",
    )
    row = Row("a file is shortened after the copy", sees, "unpublished")
    shorten = script(
        ready,
        "shorten.py",
        """
        import os, pathlib
        files = pathlib.Path({staging}).glob("partitions/*/datadb/*/*")
        parts = [file for file in files if file.name.endswith(".bin")]
        path = max(parts, key=lambda file: file.stat().st_size)
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-1])
        """,
        staging=str(ready.staging.data),
    )
    for event in ("pass final pass end #1", "hook publish start #1"):
        run = killer.run(ready, "before-create", fault=at(event, shorten))
        row.judge(ready, run)


def test_a_parts_json_that_is_replaced_within_the_second(ready: Site, killer: Killer) -> None:
    """By a merge in the end: the part has another name, the list its size and nearly its time."""
    row = Row("parts.json replaced, same second, same size", (), "published", status=0)
    parts = ready.data / "partitions" / "20260102" / "datadb" / "parts.json"
    replace = script(
        ready,
        "replace.py",
        """
        import json, os, shutil, subprocess
        subprocess.run(["systemctl", "stop", {unit}], check=True)
        path = {parts}
        old, *_ = json.load(open(path))
        new = format(int(old, 16) + 4096, "016X")
        before = os.stat(path)
        second = before.st_mtime_ns // 10**9 * 10**9
        shutil.copy2(path, path + ".new")
        with open(path + ".new", "r+") as file:
            replaced = file.read().replace(old, new)
            file.seek(0)
            file.write(replaced)
        assert os.stat(path + ".new").st_size == before.st_size
        os.utime(path + ".new", ns=(second, second + (before.st_mtime_ns + 7) % 10**9))
        shutil.chown(path + ".new", before.st_uid, before.st_gid)
        os.rename(os.path.join(os.path.dirname(path), old), os.path.join(os.path.dirname(path), new))
        os.rename(path + ".new", path)
        """,
        parts=str(parts),
        unit=ready.unit,
    )
    # A server that was stopped once more has no reason to write its list again.
    ready.stop()
    ready.start()
    before = parts.read_bytes()
    run = killer.run(ready, "before-create", fault=at("command systemctl stop start #1", replace))
    copied = ready.staging.data / parts.relative_to(ready.data)
    assert json.loads(copied.read_bytes()) != json.loads(before), "not replaced"
    row.judge(ready, run)


# Somebody else.


@pytest.mark.parametrize("restart", ["no", "always"])
@pytest.mark.parametrize("final_pass", ["auto", "stopped"])
def test_somebody_starts_it_in_the_window(
    site: Site, killer: Killer, restart: str, final_pass: str
) -> None:
    row = Row(f"somebody starts it in the window, Restart={restart}", (), "published", status=0)
    site.install(restart=restart, final_pass=final_pass)
    site.server.ingest(OLD)
    meddle = script(
        site,
        "meddle.py",
        """
        import pathlib, subprocess, time
        subprocess.run(["systemctl", "start", "--no-block", {unit}], check=True)
        deadline = time.monotonic() + 10
        while "flock.lock" not in pathlib.Path({log}).read_text():
            assert time.monotonic() < deadline, "it was never started"
            time.sleep(0.02)
        """,
        unit=site.unit,
        log=f"{site.data}.log",
    )
    run = killer.run(site, "before-create", fault=at(IN_WINDOW, meddle))
    assert run.fired, "nobody started it"
    row.judge(site, run)


def test_somebody_starts_it_again_before_we_have_its_lock(ready: Site, killer: Killer) -> None:
    sees = ("VictoriaLogs did not stop within 1 seconds", "it still runs")
    row = Row("somebody starts it before we have the lock", sees, "unpublished")
    ready.write_config(stop_timeout=1, start_timeout=4)
    meddle = lines_script(
        ready,
        "meddle.py",
        "import subprocess",
        f"subprocess.run(['systemctl', 'stop', {ready.unit!r}], check=True)",
        f"subprocess.run(['systemctl', 'start', {ready.unit!r}], check=True)",
        "import time, urllib.request",
        "opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))",
        "while True:",
        "    try:",
        f"        opener.open({ready.server.url + '/health'!r}).read()",
        "        break",
        "    except OSError:",
        "        time.sleep(0.02)",
    )
    began = time.monotonic()
    run = killer.run(ready, "before-create", fault=at("hook stop_service end #1", meddle))
    assert time.monotonic() - began < RECOVERY_SECONDS + 5
    wait_until(lambda: not leftovers(ready), 30, "the guard ends")
    ready.write_config()
    row.judge(ready, run)


@pytest.mark.parametrize("second", ["before-create", "restore"])
@pytest.mark.parametrize("first", ["before-create", "restore"])
def test_two_runs_at_once(ready: Site, killer: Killer, first: str, second: str) -> None:
    sees = (f"another run holds this instance: {first} (pid ", ", since 20")
    row = Row(f"{second} while {first} runs", sees, "unpublished")
    ready.run("cp", "-a", str(ready.staging.path), str(ready.root / "extracted"))
    restore = ("restore", "--from", str(ready.root / "extracted"), "--yes")
    commands = {"before-create": ("before-create",), "restore": restore}
    go_on = ready.root / "go-on"
    hold = lines_script(
        ready,
        "hold.py",
        "import pathlib, time",
        f"while not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.02)",
    )
    event = "command systemctl stop start #1"
    running = killer.start(ready, *commands[first], fault=at(event, hold))
    try:
        wait_until(lambda: running.fired, 20, f"{event}")
        refused = killer.run(ready, *commands[second])
        refused.failed_in_one_line(*row.sees, f"(pid {running.process.pid}, ")
    finally:
        go_on.touch()
    done = running.wait()
    assert done.status == 0, done.stderr
    settle(ready, time.monotonic())
    row.judge_data(ready)


def test_a_second_borgmatic_while_the_first_archives(ready: Site, killer: Killer) -> None:
    sees = ("is still being archived by borgmatic (pid ", "after-create --force")
    row = Row("a second borgmatic while the first archives", sees, "published")
    ready.hooks("after-create")
    program = lines_script(
        ready,
        "borgmatic",
        "import shlex, subprocess, sys",
        # With a shell in between that has ended when this one archives.
        "print(subprocess.run(shlex.join(sys.argv[1:]) + '; exit $?', shell=True).returncode)",
        "sys.stdout.flush()",
        "sys.stdin.read()",
    )
    first = subprocess.Popen(
        [*program, *command_line(ready, "before-create")],
        env=ready.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert first.stdout
        assert first.stdout.readline().strip() == "0"
        made = ready.manifest.created
        refused = killer.run(ready, "before-create")
        refused.failed_in_one_line(*row.sees, f"(pid {first.pid}, ")
        assert ready.manifest.created == made
        # The one that was refused does not give back what is not its own.
        ready.hooks("after-create")
        assert killer.run(ready, "before-create").status == 1
    finally:
        first.kill()
        first.communicate()
    taken_over = killer.run(ready, "before-create")
    assert taken_over.status == 0, taken_over.stderr
    settle(ready, time.monotonic())
    row.judge_data(ready)


def test_a_borgmatic_that_is_killed_while_its_borg_goes_on(ready: Site, killer: Killer) -> None:
    sees = ("is still being archived by what borgmatic has left running (pid ",)
    row = Row("borgmatic is killed, its borg goes on", sees, "published")
    borg = SlowBorg(ready.root)
    ready.write_borgmatic_config(local_path=str(borg.path))
    ready.create_repositories()
    ready.hooks("after-create")
    first = subprocess.Popen(
        ["borgmatic", "--config", str(ready.borgmatic_config), "create"],
        env=ready.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        borg.wait_until_it_reads()
        first.kill()
        first.wait()
        made = ready.manifest.created
        killer.run(ready, "before-create").failed_in_one_line(*row.sees)
        # Nor is what it reads given back.
        ready.hooks("after-create")
        killer.run(ready, "before-create").failed_in_one_line(*row.sees)
        assert ready.manifest.created == made
    finally:
        borg.go_on()

    def ended() -> bool:
        return not any(process.group == first.pid for process in processes.running())

    wait_until(ended, 60, "the end of borg")
    taken_over = killer.run(ready, "before-create")
    assert taken_over.status == 0, taken_over.stderr
    settle(ready, time.monotonic())
    row.judge_data(ready)


# Storage.


@pytest.fixture
def disk(site: Site) -> Iterator[SmallDisk]:
    with SmallDisk(site.staging.path, DISK_BYTES) as mounted:
        yield mounted


def no_room(site: Site) -> tuple[str, ...]:
    return (
        f" in reserve, but the filesystem of {site.staging.path} has ",
        "B free; VictoriaLogs is running; make room there",
    )


def test_staging_that_is_too_small(site: Site, killer: Killer) -> None:
    row = Row("staging is too small", no_room(site), "unpublished")
    with SmallDisk(site.staging.path, 400_000):
        site.install()
        site.server.ingest(OLD)
        run = killer.run(site, "before-create")
        row.judge_run(site, run)
        assert starts(site) == 1, "was stopped for nothing"
    row.judge(site, run)


def test_staging_that_has_become_too_small(site: Site, killer: Killer, disk: SmallDisk) -> None:
    row = Row("staging has become too small", no_room(site), "as it was")
    site.install()
    site.server.ingest(OLD)
    site.hooks("before-create")
    before = starts(site)
    subprocess.run(fill_command(site, disk), check=True)
    run = killer.run(site, "before-create")
    (disk.path / "filler").unlink()
    assert starts(site) == before, "was stopped for nothing"
    row.judge(site, run)


@pytest.mark.real_victorialogs
def test_a_copy_that_would_push_victorialogs_over_its_own_limits(
    site: Site, killer: Killer
) -> None:
    flag = "storage.minFreeDiskSpaceBytes=1000TB"
    sees = ("takes no logs below 1000.0 TB", "free", "VictoriaLogs is running")
    row = Row(f"the server's own {flag}", sees, "as it was")
    site.install()
    site.server.ingest(OLD)
    site.hooks("before-create")
    unlimited = (site.systemd.unit_directory / site.unit).read_text()
    limited = victoria_logs_unit(site.executable, site.data, site.port, [f"-{flag}"])
    site.systemd.write_unit(site.unit, limited)
    site.stop()
    site.start()
    before = starts(site)
    run = killer.run(site, "before-create")
    row.judge_run(site, run)
    assert starts(site) == before, "was stopped for nothing"
    site.systemd.write_unit(site.unit, unlimited)
    site.stop()
    site.start()
    row.judge(site, run)


def fill_command(site: Site, disk: SmallDisk, *lines: str) -> tuple[str, ...]:
    """What leaves too little room on the disk for `bulky` rows, after doing `lines`."""
    return lines_script(
        site,
        "fill.py",
        *lines,
        "import os",
        f"disk = os.statvfs({str(disk.path)!r})",
        f"filler = open({str(disk.path / 'filler')!r}, 'wb')",
        "filler.write(bytes(disk.f_bavail * disk.f_frsize - 200_000))",
    )


def test_staging_that_is_full_in_the_warm_pass(site: Site, killer: Killer, disk: SmallDisk) -> None:
    sees = ("the warm pass failed: ", "No space left on device", "VictoriaLogs is running")
    row = Row("staging is full in the warm pass", sees, "unpublished")
    site.install()
    rows = [*OLD, *bulky("big", "2026-02-01")]
    site.server.ingest(rows)
    # Only a stop has all of them on disk at once.
    site.stop()
    site.start()
    fill = fill_command(site, disk)
    run = killer.run(site, "before-create", fault=at("pass warm pass start #1", fill))
    assert starts(site) == 2, "was stopped for nothing"
    (disk.path / "filler").unlink()
    row.judge(site, run, rows)


@pytest.mark.parametrize("final_pass", ["auto", "stopped"])
def test_staging_that_is_full_in_the_final_pass(
    site: Site, killer: Killer, disk: SmallDisk, final_pass: str
) -> None:
    sees = ("the final pass failed: ", "No space left on device", "VictoriaLogs is running")
    row = Row(f"staging is full in the final pass ({final_pass})", sees, "unpublished")
    site.install(final_pass=final_pass)
    site.server.ingest(OLD)
    rows = bulky("big", "2026-02-01")
    fill = fill_command(site, disk, *ingest_command(site, "big", rows))
    run = killer.run(site, "before-create", fault=at(BEFORE_STOP, fill))
    (disk.path / "filler").unlink()
    row.judge(site, run, [*OLD, *rows])


@pytest.mark.parametrize("final_pass", ["auto", "stopped"])
def test_staging_that_becomes_read_only(
    site: Site, killer: Killer, disk: SmallDisk, final_pass: str
) -> None:
    sees = ("the final pass failed: ", "Read-only file system", "VictoriaLogs is running")
    row = Row(f"staging becomes read-only ({final_pass})", sees, "unpublished")
    site.install(final_pass=final_pass)
    site.server.ingest(OLD)
    remount = ("mount", "-o", "remount,ro", str(disk.path))
    more = lines_script(site, "more.py", *ingest_command(site, "new", NEW))
    both = lines_script(
        site, "both.py", "import subprocess", *(f"subprocess.run({c!r})" for c in (more, remount))
    )
    run = killer.run(site, "before-create", fault=at(BEFORE_STOP, both))
    subprocess.run(["mount", "-o", "remount,rw", str(disk.path)], check=True)
    row.judge(site, run, [*OLD, *NEW])


def test_staging_that_is_read_only(site: Site, killer: Killer, disk: SmallDisk) -> None:
    sees = ("manifest.json: Read-only file system; VictoriaLogs is running",)
    row = Row("staging is read-only", sees, "as it was")
    site.install()
    site.server.ingest(OLD)
    site.hooks("before-create")
    subprocess.run(["mount", "-o", "remount,ro", str(disk.path)], check=True)
    run = killer.run(site, "before-create")
    assert starts(site) == 2, "stopped again for nothing"
    subprocess.run(["mount", "-o", "remount,rw", str(disk.path)], check=True)
    row.judge(site, run)


def test_staging_that_is_unmounted_between_the_passes(site: Site, killer: Killer) -> None:
    """What is copied then is either refused or whole, on the disk below."""
    row = Row("staging is unmounted between the passes", (), "unpublished")
    site.install()
    site.server.ingest(OLD)
    with SmallDisk(site.staging.path, DISK_BYTES) as disk:
        run = killer.run(
            site, "before-create", fault=at(BEFORE_STOP, "umount", "--lazy", str(disk.path))
        )
        # Lazily unmounted below, by its context: there must be something to unmount.
        if not disk.path.is_mount():
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk.path)], check=True)
    assert run.status in (0, 1)
    assert copy_is_whole_or_unpublished(site) is (run.status == 0)
    if run.status:
        run.failed_in_one_line("VictoriaLogs is running")
    settle(site, time.monotonic())
    row.judge_data(site)


# The machine.


def test_the_machine_dies_in_the_stop_window(ready: Site, killer: Killer) -> None:
    row = Row("the machine dies in the stop window", (), "unpublished", status=-9)
    run = killer.run(ready, "before-create", fault=Fault(IN_WINDOW, "power-loss"))
    wait_until(lambda: not leftovers(ready), 30, "the end of the guard")
    assert (run.status, run.stderr) == (row.status, "")
    assert not ready.is_running
    assert not copy_is_whole_or_unpublished(ready)
    ready.hooks("recover")
    row.judge_data(ready)


# Restores that come to nothing.


@pytest.fixture
def restorable(ready: Site) -> Site:
    """A site with an extracted copy of OLD, that serves OLD and NEW."""
    ready.run("cp", "-a", str(ready.staging.path), str(ready.root / "extracted"))
    ready.server.ingest(NEW)
    return ready


@pytest.mark.parametrize(
    ("on_restored_data", "sees"),
    [
        ("exit 1", ("VictoriaLogs did not come back",)),
        ("rm -r {data}/partitions/20260103", ("VictoriaLogs serves 40 rows of the 60",)),
    ],
    ids=["does not come up", "lacks rows"],
)
def test_a_restored_server_that_does_not_serve_the_copy(
    restorable: Site, killer: Killer, on_restored_data: str, sees: tuple[str, ...]
) -> None:
    site, extracted = restorable, str(restorable.root / "extracted")
    sees = (*sees, "VictoriaLogs is running, on the data that was there before")
    row = Row(f"a restored server: {on_restored_data}", sees, "published")
    # What only NEW has tells the data apart.
    command = f"[ -e {site.data}/partitions/20260201 ] || {on_restored_data.format(data=site.data)}"
    unit = (site.systemd.unit_directory / site.unit).read_text()
    site.systemd.write_unit(site.unit, f"{unit}ExecStartPre=/bin/sh -c '{command}'\n")
    site.write_config(start_timeout=3)
    run = killer.run(site, "restore", "--from", extracted, "--yes")
    row.judge_run(site, run)
    site.hooks("verify", extracted)
    site.systemd.write_unit(site.unit, unit)
    site.write_config()
    row.judge(site, run, [*OLD, *NEW])


STRANGERS: dict[str, Callable[[Path, Path], object]] = {
    "link": lambda path, outside: path.symlink_to(outside),
    "device": lambda path, outside: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    "FIFO": lambda path, outside: os.mkfifo(path),
    "foreign hard link": lambda path, outside: path.hardlink_to(outside),
    "damage": lambda path, outside: path.write_bytes(b"stray"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_restore_from_a_tree_that_is_no_copy(restorable: Site, killer: Killer, kind: str) -> None:
    site, extracted = restorable, restorable.root / "extracted"
    outside = site.root / "outside"
    outside.write_bytes(b"outside")
    path = extracted / "data/partitions/stranger"
    STRANGERS[kind](path, outside)
    is_file = path.is_file() and not path.is_symlink()
    what = "a stray file" if is_file else "not a file or directory"
    sees = (f"{path}: is {what}", "VictoriaLogs is running; run: vl-borg-hooks verify ")
    row = Row(f"an extracted tree with a {kind}", sees, "published")
    before = starts(site)
    run = killer.run(site, "restore", "--from", str(extracted), "--yes")
    assert starts(site) == before, "was stopped for nothing"
    assert outside.read_bytes() == b"outside"
    assert f"{path}: is {what}" in site.hooks("verify", str(extracted), check=False).stdout
    path.unlink()
    site.hooks("verify", str(extracted))
    row.judge(site, run, [*OLD, *NEW])


# Plugins and output.


@pytest.mark.parametrize("hook", ["before_backup", "make_copy", "publish", "after_backup"])
def test_a_plugin_that_raises_once(ready: Site, killer: Killer, hook: str) -> None:
    """At both ends of every hook it does in test_kills; here with what is seen then."""
    row = Row(
        f"a plugin raises in {hook}",
        (f"unexpected RuntimeError: {MESSAGE}",),
        "as it was" if hook == "before_backup" else "unpublished",
    )
    row.judge(
        ready, killer.run(ready, "before-create", fault=Fault(f"hook {hook} end #1", "raise"))
    )


@pytest.mark.parametrize("hook", ["start_service", "is_healthy"])
def test_a_plugin_that_always_raises_where_victorialogs_is_brought_back(
    ready: Site, killer: Killer, hook: str
) -> None:
    """The guard has the same plugin: it must not be what keeps VictoriaLogs down."""
    ready.write_config(start_timeout=4)
    run = killer.run(ready, "before-create", fault=Fault(f"hook {hook} start", "always"))
    if run.status:
        run.failed_in_one_line(MESSAGE)
    assert copy_is_whole_or_unpublished(ready) is (run.status == 0)
    ready.server.wait_healthy()
    # A guard that is told that it is not healthy goes on, until a run without the plugin has seen it.
    ready.hooks("before-create")
    settle(ready, time.monotonic())
    assert messages(ready.server.rows()) == messages(OLD)
    assert ready.journal_is_empty()
    TALLY.count(f"row: a plugin that always raises in {hook}")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_without_standard_streams(ready: Site, closed: str) -> None:
    """Files that a run opens must not get the numbers of the streams and be written to."""
    argv = ["sh", "-c", f'exec "$@" {closed}', "sh", *command_line(ready, "before-create")]
    done = subprocess.run(
        argv, env=ready.environment, capture_output=True, timeout=60, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert copy_is_whole_or_unpublished(ready)
    assert ready.manifest.rows == len(OLD)
    settle(ready, time.monotonic())
    assert ready.journal_is_empty()
    TALLY.count("row: closed standard streams")


def test_nobody_reads_the_output(ready: Site) -> None:
    """borgmatic has died and the pipe is broken from the start; the guard and the end are as ever."""
    reader, writer = os.pipe()
    os.close(reader)
    argv = command_line(ready, "before-create", "-vv")
    try:
        done = subprocess.run(
            argv, env=ready.environment, stdout=writer, stderr=writer, timeout=60, check=False
        )
    finally:
        os.close(writer)
    assert done.returncode in (0, 1)
    assert copy_is_whole_or_unpublished(ready) is (done.returncode == 0)
    settle(ready, time.monotonic())
    assert messages(ready.server.rows()) == messages(OLD)
    TALLY.count("row: a broken pipe from the start")


def test_what_a_killed_restore_left_is_gone_after_the_next_backup(
    make_site: MakeSite, killer: Killer
) -> None:
    site = make_site()
    site.install()
    site.server.ingest(OLD)
    site.hooks("before-create")
    site.run("cp", "-a", str(site.staging.path), str(site.root / "extracted"))
    command = ("restore", "--from", str(site.root / "extracted"), "--yes")
    killed = killer.run(site, *command, fault=Fault("pass restore pass end #1"))
    assert killed.status == -9
    assert (site.data / ".vl-borg-hooks" / "incoming").exists()
    settle(site, killed.moment)
    site.hooks("before-create")
    assert not (site.data / ".vl-borg-hooks").exists()
    assert site.manifest.rows == len(OLD)
