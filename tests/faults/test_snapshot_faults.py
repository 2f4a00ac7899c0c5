"""Faults in a backup with `consistency: snapshot`: VictoriaLogs and its clients never notice.

And of the snapshots, ours are deleted and those of others are not.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest

from tests.faults.conftest import MakeFlows
from tests.faults.harness import (
    NEW,
    OLD,
    SIGNALS,
    BackupFlow,
    Fault,
    Flow,
    Killer,
    command_line,
    copy_is_whole_or_unpublished,
    leftovers,
    server_process,
    share_out,
)
from tests.faults.test_other_faults import at, lines_script
from tests.parts.disk import SmallDisk
from tests.parts.site import Site
from tests.parts.tally import TALLY
from tests.parts.victoria_logs import LogServer, VictoriaLogsProcess
from tests.parts.waiting import wait_until
from tests.setup.victoria_logs import Found
from tests.support import ALL_KILLS
from vl_borg_hooks.snapshots.ours import BEGIN_SECONDS

pytestmark = pytest.mark.real_victorialogs

INSTANTS = 400 if ALL_KILLS else 24
FIRST_SEED = 20261124
TODAY = "20260104"
# A request that makes a snapshot of a day which is then copied is after all short ones.
CREATE = "http partition/snapshot/create"


@pytest.fixture(autouse=True)
def _requests_are_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VL_FAULTS_HTTP", "yes")


def ask(site: Site, path: str, **form: str) -> str:
    """What the server answers, as anybody may ask it."""
    opener = build_opener(ProxyHandler({}))
    url = f"{site.server.url}/internal/partition/{path}"
    with opener.open(url, urlencode(form).encode(), timeout=30) as answer:
        text: str = answer.read().decode()
        return text


def asking(site: Site, script: str, path: str, /, **form: str) -> tuple[str, ...]:
    """A command that asks the same."""
    return lines_script(
        site,
        f"{script}.py",
        "from urllib.request import ProxyHandler, build_opener",
        f"url = {f'{site.server.url}/internal/partition/{path}'!r}",
        f"build_opener(ProxyHandler({{}})).open(url, {urlencode(form).encode()!r}).read()",
    )


def take_snapshots(site: Site, day: str = "") -> set[str]:
    """Snapshots of somebody else's: of `day`, or of all days."""
    return set(json.loads(ask(site, "snapshot/create", partition_prefix=day)))


def there(site: Site) -> set[str]:
    return {str(path) for path in site.data.glob("partitions/*/snapshots/*")}


def record(site: Site) -> Path:
    return site.root / "state" / "default" / "snapshots.json"


def require_clean(site: Site, others: set[str]) -> None:
    """AssertionError if one of ours is left, or one of the others' is not, or the record is."""
    found = there(site)
    assert not found - others, f"left: {found - others}, record: {record(site).exists()}"
    assert not others - found, f"somebody else's are gone: {others - found}"
    assert not record(site).exists(), record(site).read_text()


class SnapshotFlow(BackupFlow):
    """before-create with snapshots while rows come in."""

    options = {"consistency": "snapshot"}  # noqa: RUF012 - as in the base class

    def prepare(self) -> None:
        if self.ingestion is None:
            super().prepare()
            self.others = take_snapshots(self.site)
            self.process = server_process(self.site)
            self.number = 0

    @property
    def name(self) -> str:
        return "before-create, consistency: snapshot"

    def record(self, *, lines: bool = False) -> list[str]:
        for _ in range(2):
            run = self.killer.run(self.site, *self.command)
            assert run.status == 0, run.stderr
        return run.events

    def require_undisturbed(self) -> None:
        assert self.ingestion is not None
        assert self.process.is_running(), "the server has ended"
        assert server_process(self.site) == self.process, "the server was restarted"
        assert not self.ingestion.refused, f"{self.ingestion.refused} requests failed"

    def survive(self, fault: Fault, *, lines: bool = False, again: bool = True) -> None:
        for _ in range(3):
            run = self.killer.run(self.site, *self.command, fault=fault)
            if run.fired is not None:
                break
            # How often the server is asked is a matter of chance.
            assert run.status == 0, run.stderr
        else:
            TALLY.count("no fault: a line or process that was not come to again")
            return
        self.check_end(fault, run)
        self.after_kill(f"{fault.do} ({self.name})", str(fault))

    def after_kill(self, what: str, at: str) -> None:
        wait_until(lambda: not leftovers(self.site), 20, "what the run started has ended")
        copy_is_whole_or_unpublished(self.site)
        self.number += 1
        if self.number % 4:
            recovered = self.site.hooks("recover", check=False)
            assert recovered.returncode == 0, recovered.stderr
        else:
            self.again()
        self.require_undisturbed()
        require_clean(self.site, self.others)
        TALLY.count(what, 0, at)

    def again(self) -> None:
        assert self.ingestion is not None
        started = time.monotonic()
        done = self.site.hooks("before-create", check=False)
        assert done.returncode == 0, f"the next run failed: {done.stderr}"
        acknowledged = len(OLD) + len(self.ingestion.sequences(started))
        rows = self.site.manifest.rows
        assert rows >= acknowledged, f"the next copy has {rows} of {acknowledged} rows"


def is_chosen(event: str) -> bool:
    """Is something different on disk or at the server after `event`?"""
    if event.startswith("hook "):
        return event.split()[1] in ("make_copy", "publish")
    if event.startswith("http partition/snapshot/"):
        return "/list" not in event
    # The first things that are written are the same in both modes.
    return event.startswith(("pass ", "disk write_atomically snap", "disk remove snap"))


@pytest.mark.timeout(900)
def test_sigkill_at_every_event(make_flows: MakeFlows) -> None:
    flows = make_flows(SnapshotFlow, count=5)
    events = flows[0].record()
    assert f"{CREATE} start #2" in events
    events = events if ALL_KILLS else list(filter(is_chosen, events))
    assert len(events) >= 30

    def survive(flow: Flow, event: str) -> None:
        flow.survive(Fault(event))

    share_out(flows, events, survive)


@pytest.mark.timeout(900)
def test_signals_at_requests(make_flows: MakeFlows) -> None:
    flows = make_flows(SnapshotFlow, count=4)
    events = [event for event in flows[0].record() if event.startswith("http partition/snapshot/")]
    faults = [Fault(event, SIGNALS[number % 3]) for number, event in enumerate(events)]
    share_out(flows, faults if ALL_KILLS else faults[::2], lambda flow, fault: flow.survive(fault))


@pytest.mark.timeout(3600)
def test_kills_at_random_instants(make_flows: MakeFlows) -> None:
    """While others make snapshots too."""
    flows = make_flows(SnapshotFlow, count=5)
    started = time.monotonic()
    assert flows[0].killer.run(flows[0].site, "before-create").status == 0
    longest = time.monotonic() - started

    def survive(flow: Any, seed: int) -> None:
        chance = random.Random(seed)
        argv = command_line(flow.site, "before-create")
        process = subprocess.Popen(
            argv,
            env=flow.site.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        delay, theirs = chance.uniform(0.2, longest), chance.uniform(0, 0.9)
        time.sleep(delay * theirs)
        flow.others |= take_snapshots(flow.site, TODAY)
        time.sleep(delay * (1 - theirs))
        do = chance.choice(["SIGKILL", "SIGTERM"])
        process.kill() if do == "SIGKILL" else process.terminate()
        process.wait(30)
        flow.after_kill(f"{do} at a random instant ({flow.name})", f"seed {seed}")

    share_out(flows, range(FIRST_SEED, FIRST_SEED + INSTANTS), survive)


@pytest.fixture
def ready(site: Site) -> Site:
    """A site with rows and one published copy, made with snapshots."""
    site.install(consistency="snapshot")
    site.server.ingest(OLD)
    site.hooks("before-create")
    return site


def new_rows(site: Site, name: str = "more") -> None:
    site.server.ingest([{**row, "host": name} for row in NEW])


def new_rows_on_disk(site: Site) -> None:
    """Rows that even a SIGKILL of the server does not lose."""
    new_rows(site)
    site.stop()
    site.start()


def test_what_others_make_after_our_end_is_not_taken_for_ours(ready: Site, killer: Killer) -> None:
    new_rows(ready)
    run = killer.run(ready, "before-create", fault=Fault(f"{CREATE} start #3"))
    assert run.status == -9
    # The request that was noted never came. The server's next snapshot is theirs.
    time.sleep(BEGIN_SECONDS + 1)
    others = take_snapshots(ready)
    ready.hooks("recover")
    require_clean(ready, others)


def test_a_snapshot_in_the_making_is_not_removed_under_the_server(
    ready: Site, killer: Killer
) -> None:
    """The server hangs in the middle of one, and we are killed; `recover` comes while it hangs."""
    new_rows(ready)
    server = server_process(ready)
    days = [path.name for path in (ready.data / "partitions").iterdir()]
    stop = lines_script(
        ready,
        "stop.py",
        "import glob, os, signal, subprocess, sys, time",
        f"pattern = {str(ready.data)!r} + '/partitions/*/snapshots/*'",
        "while not glob.glob(pattern): pass",
        f"os.kill({server.pid}, signal.SIGSTOP)",
    )
    with subprocess.Popen(stop) as stopping:
        running = killer.start(ready, "before-create", fault=None)
        try:
            assert stopping.wait(30) == 0
            running.process.kill()
            running.process.communicate()
            made = there(ready)
            assert len(made) == 1, f"{made} of {days}"
            recovered = ready.hooks("recover", check=False)
            assert there(ready) == made
            assert recovered.returncode == 0
        finally:
            server.resume()
    ready.server.wait_healthy()
    ready.hooks("recover")
    require_clean(ready, set())
    assert server.is_running()
    ready.hooks("before-create")
    assert ready.manifest.rows == len(OLD) + len(NEW)


PHASES = {
    "before the flush": "http force_flush start #1",
    "in the wait": "http force_flush end #1",
    "between snapshot and copy": "pass final pass start #1",
    "in the copy": "pass final pass end #1",
}


def require_next_run(site: Site, rows: int) -> None:
    site.hooks("recover")
    require_clean(site, set())
    site.hooks("before-create")
    require_clean(site, set())
    assert copy_is_whole_or_unpublished(site)
    assert site.manifest.rows == rows


@pytest.mark.parametrize(
    ("phase", "how"),
    [
        ("before the flush", "restart"),
        ("in the wait", "SIGKILL, start"),
        ("between snapshot and copy", "restart"),
        ("in the copy", "SIGKILL, start"),
    ],
)
def test_a_server_that_is_restarted(ready: Site, killer: Killer, phase: str, how: str) -> None:
    new_rows_on_disk(ready)
    kill = ["systemctl", "kill", "-s", "KILL", ready.unit]
    commands = [["systemctl", "restart", ready.unit]]
    if how != "restart":
        commands = [kill, ["systemctl", "start", ready.unit]]
    script = lines_script(
        ready,
        "restart.py",
        "import subprocess, time",
        *(f"subprocess.run({command!r}, check=True); time.sleep(0.5)" for command in commands),
    )
    run = killer.run(ready, "before-create", fault=at(PHASES[phase], script))
    assert run.fired, run.stderr
    run.failed_in_one_line("VictoriaLogs was restarted during the backup", "run it again")
    assert not copy_is_whole_or_unpublished(ready)
    ready.server.wait_healthy()
    require_next_run(ready, len(OLD) + len(NEW))
    TALLY.count(f"row: the server is restarted {phase} ({how})")


@pytest.mark.parametrize("phase", ["before the flush", "between snapshot and copy"])
def test_a_server_that_is_stopped_and_stays_down(ready: Site, killer: Killer, phase: str) -> None:
    new_rows_on_disk(ready)
    ready.write_config(consistency="snapshot", service={})
    run = killer.run(
        ready, "before-create", fault=at(PHASES[phase], "systemctl", "stop", ready.unit)
    )
    run.failed_in_one_line("did not answer: ")
    assert not copy_is_whole_or_unpublished(ready)
    ready.hooks("recover")
    require_clean(ready, set())
    ready.start()
    require_next_run(ready, len(OLD) + len(NEW))
    TALLY.count(f"row: the server is stopped {phase}")


def test_recover_deletes_ours_from_the_disk_of_a_server_that_is_down(
    ready: Site, killer: Killer
) -> None:
    new_rows(ready)
    others = take_snapshots(ready)
    killed = killer.run(ready, "before-create", fault=Fault("pass final pass start #1"))
    assert killed.status == -9
    assert there(ready) > others
    assert "vl-borg-hooks recover finishes it" in ready.hooks("status").stdout
    ready.stop()
    ready.hooks("recover")
    require_clean(ready, others)
    ready.start()
    ready.hooks("before-create")
    require_clean(ready, others)


@pytest.mark.parametrize("phase", list(PHASES) if ALL_KILLS else ["between snapshot and copy"])
def test_a_server_that_hangs(ready: Site, killer: Killer, phase: str) -> None:
    """It comes back long after we have given up."""
    new_rows(ready)
    server = server_process(ready)
    try:
        run = killer.run(
            ready,
            "before-create",
            fault=at(PHASES[phase], "kill", "-STOP", str(server.pid)),
            timeout=100,
        )
        run.failed_in_one_line("did not answer: timed out")
        assert not copy_is_whole_or_unpublished(ready)
    finally:
        server.resume()
    ready.server.wait_healthy()
    require_next_run(ready, len(OLD) + len(NEW))
    assert server.is_running()
    TALLY.count(f"row: the server hangs {phase}")


def test_snapshots_that_are_deleted_under_us(ready: Site, killer: Killer) -> None:
    """As -snapshotsMaxAge does, a second old."""
    new_rows(ready)
    stale = asking(ready, "stale.py", "snapshot/delete_stale", max_age="1s")
    script = lines_script(
        ready, "late.py", "import subprocess, time", "time.sleep(1.2)", f"subprocess.run({stale!r})"
    )
    run = killer.run(ready, "before-create", fault=at("pass final pass start #1", script))
    run.failed_in_one_line("was deleted while it was copied", "-snapshotsMaxAge")
    assert not copy_is_whole_or_unpublished(ready)
    require_next_run(ready, len(OLD) + len(NEW))
    TALLY.count("row: -snapshotsMaxAge deletes a snapshot that is copied")


@pytest.mark.parametrize(
    "event", ["pass warm pass start #1", "http force_flush end #1", "pass final pass start #1"]
)
def test_a_day_that_is_dropped_meanwhile(ready: Site, killer: Killer, event: str) -> None:
    """As retention does."""
    day = "20260201"
    new_rows(ready)
    drop = asking(ready, "detach.py", "detach", name=day)
    script = lines_script(
        ready,
        "drop.py",
        "import shutil, subprocess",
        f"subprocess.run({drop!r}, check=True)",
        f"shutil.rmtree({str(ready.data / 'partitions' / day)!r})",
    )
    run = killer.run(ready, "before-create", fault=at(event, script))
    assert run.status == 0, run.stderr
    require_clean(ready, set())
    assert copy_is_whole_or_unpublished(ready)
    assert day not in {part.name for part in ready.manifest.partitions}
    TALLY.count(f"row: a day is dropped at {event}")


@pytest.mark.parametrize("event", ["http force_flush end #1", "http /metrics start #2"])
def test_a_day_that_is_detached_meanwhile(ready: Site, killer: Killer, event: str) -> None:
    """It is on the disk, but nothing is known of it any more."""
    detach = asking(ready, "detach.py", "detach", name="20260102")
    run = killer.run(ready, "-v", "before-create", fault=at(event, detach))
    assert run.status == 0, run.stderr
    assert "20260102" not in {part.name for part in ready.manifest.partitions}
    assert copy_is_whole_or_unpublished(ready)
    assert ready.manifest.rows == len(OLD) - 20
    ask(ready, "attach", name="20260102")
    require_next_run(ready, len(OLD))


def test_a_day_that_was_detached_before(ready: Site) -> None:
    """The last copy has it, the next one doesn't."""
    assert (ready.staging.data / "partitions" / "20260102").exists()
    ask(ready, "detach", name="20260102")
    run = ready.hooks("before-create")
    assert "these days are detached, so they are not copied: 20260102" in run.stderr
    assert not (ready.staging.data / "partitions" / "20260102").exists()
    assert copy_is_whole_or_unpublished(ready)
    assert ready.manifest.rows == len(OLD) - 20


def test_a_task_to_delete_rows_that_comes_after_the_warm_pass(site: Site, killer: Killer) -> None:
    """After a restore it is gone on with: no rows come back that it has still to delete."""
    site.install(["-delete.enable"], consistency="snapshot")
    site.server.ingest(OLD)
    site.hooks("before-create")
    # For a filter without a match the task is as good as any, and the rows can be counted.
    task = lines_script(
        site,
        "task.py",
        "from urllib.request import ProxyHandler, build_opener",
        f"url = {site.server.url + '/delete/run_task'!r}",
        "build_opener(ProxyHandler({})).open(url, b'filter=host:=nobody').read()",
    )
    new_rows_on_disk(site)
    run = killer.run(site, "before-create", fault=at("pass warm pass end #1", task))
    assert run.fired
    assert run.status == 0, run.stderr
    assert (site.staging.data / "delete_tasks.json").exists()
    assert copy_is_whole_or_unpublished(site)
    require_clean(site, set())


@pytest.fixture
def disk(site: Site) -> Iterator[SmallDisk]:
    with SmallDisk(site.staging.path, 90_000_000) as mounted:
        yield mounted


def test_staging_that_is_full_in_the_final_pass(
    disk: SmallDisk, site: Site, killer: Killer
) -> None:
    site.install(consistency="snapshot")
    site.server.ingest(OLD)
    site.hooks("before-create")
    site.server.ingest(
        [{"host": "big", "_msg": os.urandom(3000).hex(), "_time": "2026-01-04T00:00:00Z"}] * 3
    )
    fill = lines_script(
        site,
        "fill.py",
        "import os",
        f"disk = os.statvfs({str(disk.path)!r})",
        f"filler = open({str(disk.path / 'filler')!r}, 'wb')",
        "filler.write(bytes(disk.f_bavail * disk.f_frsize))",
    )
    run = killer.run(site, "before-create", fault=at("pass final pass start #1", fill))
    run.failed_in_one_line("the final pass failed: ", "No space left on device")
    assert not copy_is_whole_or_unpublished(site)
    require_clean(site, set())
    (disk.path / "filler").unlink()
    require_next_run(site, len(OLD) + 3)


def test_without_hard_links_no_snapshot_is_asked_for(ready: Site, killer: Killer) -> None:
    """A link to a file that can't be changed is refused, as on a filesystem without links."""
    lock = ready.data / "flock.lock"
    directory = ready.root / "bin"
    directory.mkdir()
    (directory / "stat").write_text("#!/bin/sh\necho msdos\n")
    (directory / "stat").chmod(0o755)
    subprocess.run(["chattr", "+i", str(lock)], check=True)
    log = Path(f"{ready.data}.log")
    before = log.read_text().count("creating a snapshot")
    try:
        run = killer.run(ready, "before-create", path=str(directory))
        run.failed_in_one_line("no hard links can be made in", "set consistency: stop")
        assert log.read_text().count("creating a snapshot") == before
        assert copy_is_whole_or_unpublished(ready)
        ready.write_config(consistency="auto")
        unlock = at("hook stop_service start #1", "chattr", "-i", str(lock))
        run = killer.run(ready, "before-create", fault=unlock, path=str(directory))
        assert run.status == 0, run.stderr
        assert log.read_text().count("creating a snapshot") == before
    finally:
        subprocess.run(["chattr", "-i", str(lock)], check=True)
    assert "no hard links can be made" in ready.manifest.consistency_why
    assert "no hard links can be made" in ready.hooks("status").stdout


@pytest.fixture
def other(site: Site, victoria_logs: Found) -> Iterator[LogServer]:
    """Another VictoriaLogs, with the same days."""
    from tests.parts.ports import free_port

    with VictoriaLogsProcess(victoria_logs.path, site.root / "other", free_port()) as process:
        process.server.ingest(OLD)
        yield process.server


def test_a_server_whose_snapshots_are_not_in_the_data_path(
    ready: Site, killer: Killer, other: LogServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container the path that it tells says nothing; here we are kept from looking at it."""
    monkeypatch.setenv("VL_FAULTS_BLIND", "yes")
    ready.write_config(consistency="snapshot", url=other.url)
    other.ingest(OLD)
    run = killer.run(ready, "before-create")
    run.failed_in_one_line("made the snapshot", "is not there", "correct data_path or url")
    assert not copy_is_whole_or_unpublished(ready)
    assert not list((ready.root / "other").glob("partitions/*/snapshots/*"))
    assert not record(ready).exists()


@pytest.mark.parametrize("command", [("before-create",), ("config", "validate")])
def test_a_key_that_is_missing(site: Site, command: Sequence[str]) -> None:
    site.install(["-partitionManageAuthKey=secret"], consistency="snapshot")
    site.server.ingest(OLD)
    run = site.hooks(*command, check=False)
    assert run.returncode == 1
    assert "auth_keys: partition_manage" in run.stdout + run.stderr
