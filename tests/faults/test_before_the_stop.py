"""VictoriaLogs is not stopped unless all that can be known says that it can start again.

Each on a real systemd and a VictoriaLogs that serves all the time, or again.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import MakeSite
from tests.faults.harness import (
    NEW,
    OLD,
    Fault,
    Killer,
    Run,
    command_service,
    copy_is_whole_or_unpublished,
    messages,
    server_process,
    settle,
    starts,
    systemctl_that_cannot_stop,
)
from tests.parts.ports import free_port
from tests.parts.site import Site
from tests.parts.waiting import wait_until

pytestmark = [pytest.mark.timeout(180), pytest.mark.real_victorialogs]

# Far less than the 120 s that a VictoriaLogs may take to start.
QUICK_SECONDS = 20


@pytest.fixture
def ready(site: Site) -> Site:
    site.install()
    site.server.ingest(OLD)
    site.hooks("before-create")
    return site


def was_not_stopped(site: Site, run: Run, before: int, *sees: str) -> None:
    run.failed_in_one_line(*sees, "VictoriaLogs is running")
    assert starts(site) == before, "was stopped for nothing"
    assert site.journal_is_empty()
    assert messages(site.server.rows()) == messages(OLD)


def next_run_succeeds(site: Site) -> None:
    site.hooks("before-create")
    assert copy_is_whole_or_unpublished(site)
    assert site.manifest.rows == len(OLD)


@pytest.mark.parametrize("when", ["in the checks", "just before the stop"])
def test_what_would_keep_it_from_starting_is_refused_before_the_stop(
    ready: Site, killer: Killer, when: str
) -> None:
    stray = ready.data / "partitions" / "20260102.bak"
    day = str(ready.data / "partitions" / "20260102")
    before = starts(ready)
    fault = None
    if when == "in the checks":
        shutil.copytree(day, stray)
    else:
        fault = Fault("hook make_copy start #1", "run", ("cp", "-a", day, str(stray)))
    run = killer.run(ready, "before-create", fault=fault)
    run.failed_in_one_line(
        "VictoriaLogs was not stopped, because it could not start again",
        f"in {ready.data}, partitions/20260102.bak: is not the partition of a day",
        "VictoriaLogs is running; repair that, or move it to a place outside of the data path",
    )
    assert starts(ready) == before, "was stopped for nothing"
    assert ready.journal_is_empty()
    # It is as it was said to be: this is why it was not stopped.
    ready.stop()
    ready.systemd.systemctl("start", ready.unit)
    wait_until(lambda: ready.systemd.show(ready.unit, "ActiveState") == "failed", 20, "it panics")
    shutil.rmtree(stray)
    ready.systemd.systemctl("reset-failed", ready.unit)
    ready.start()
    ready.hooks("before-create")


@pytest.mark.parametrize("compared", ["all", "only what is new"])
def test_what_the_server_skips_is_no_reason_to_refuse_and_not_copied(
    ready: Site, killer: Killer, compared: str
) -> None:
    partitions = ready.data / "partitions"
    (partitions / ".DS_Store").touch()
    shutil.copytree(partitions / "20260102", partitions / ".trash")
    (partitions / "lost+found").mkdir()
    (partitions / "20260201").mkdir()
    if compared == "all":
        shutil.rmtree(ready.root / "state")
    run = killer.run(ready, "before-create")
    assert run.status == 0, run.stderr
    assert sorted(path.name for path in (ready.staging.data / "partitions").iterdir()) == [
        *("20260102", "20260103", "20260104"),
    ]
    assert copy_is_whole_or_unpublished(ready)
    assert messages(ready.server.rows()) == messages(OLD)


@pytest.mark.parametrize("policy", ["refuse", "detach"])
def test_days_that_are_detached_are_not_served_again_by_a_backup(
    ready: Site, killer: Killer, policy: str
) -> None:
    ready.write_config(detached_days=policy)
    ready.server.detach("20260102")
    before = starts(ready)
    served = messages(ready.server.rows())
    assert served != messages(OLD)
    run = killer.run(ready, "before-create")
    assert messages(ready.server.rows()) == served
    assert starts(ready) == before + (policy == "detach")
    if policy == "detach":
        assert run.status == 0, run.stderr
        # A copy of all that is there: a restore attaches it.
        assert ready.manifest.rows == len(OLD)
    else:
        run.failed_in_one_line(
            f"a start would attach days in {ready.data}/partitions that are detached: 20260102;",
            "attach them, move them to a place outside of the data path, or set detached_days",
        )


def test_detached_days_are_detached_again_after_a_kill_too(ready: Site, killer: Killer) -> None:
    ready.write_config(detached_days="detach")
    ready.server.detach("20260102")
    served = messages(ready.server.rows())
    run = killer.run(ready, "before-create", fault=Fault("in the window start #1"))
    assert run.status == -signal.SIGKILL
    settle(ready, time.monotonic())
    assert messages(ready.server.rows()) == served


def test_days_that_are_still_detached_after_a_stop_that_failed_are_no_news(ready: Site) -> None:
    ready.write_config(detached_days="detach")
    ready.server.detach("20260102")
    # Not by the killer, which has no warnings printed.
    path = f"PATH={systemctl_that_cannot_stop(ready)}:{ready.environment['PATH']}"
    hooks = [sys.executable, "-m", "vl_borg_hooks", "--config", str(ready.config)]
    run = ready.run("env", path, *hooks, "before-create", check=False)
    assert "Access denied; VictoriaLogs is running" in run.stderr
    assert "could not be detached" not in run.stderr


@pytest.mark.parametrize("command", ["before-create", "restore"])
@pytest.mark.parametrize("who", ["nobody", "another instance", "another with a key"])
def test_a_url_of_another_server_is_found_out_at_once(
    ready: Site, killer: Killer, make_site: MakeSite, who: str, command: str
) -> None:
    """And not after a stop, a wait of 120 s for a start that was seen by nobody, and an undo."""
    other = make_site()
    if who == "nobody":
        url = f"http://127.0.0.1:{free_port()}"
    else:
        other.install(["-metricsAuthKey=k", "-partitionManageAuthKey=k"] if "key" in who else [])
        url = other.server.url
    ready.run("cp", "-a", str(ready.staging.path), str(ready.root / "extracted"))
    arguments = ["--from", str(ready.root / "extracted"), "--yes"] if command == "restore" else []
    ready.write_config(url=url)
    before, began = starts(ready), time.monotonic()
    run = killer.run(ready, command, *arguments)
    assert time.monotonic() - began < QUICK_SECONDS
    if who == "another with a key" and command == "restore":
        # A restore has to know what the server keeps.
        run.failed_in_one_line(f"{url}/metrics answered with HTTP Error 401", "auth_keys")
        assert starts(ready) == before, "was stopped for nothing"
    elif who == "another with a key":
        # It can only be told when ours is stopped.
        run.failed_in_one_line(
            f"{url} is another server's: it answers while VictoriaLogs is stopped",
            "VictoriaLogs is running",
            "correct url",
        )
        assert starts(ready) == before + 1
    else:
        said = "/health did not answer" if who == "nobody" else "is not the one on"
        run.failed_in_one_line(url, said, "correct url")
        assert starts(ready) == before, "was stopped for nothing"
    settle(ready, time.monotonic())
    assert messages(ready.server.rows()) == messages(OLD)
    assert ready.journal_is_empty()
    ready.write_config()
    next_run_succeeds(ready)


@pytest.mark.parametrize("final_pass", ["auto", "stopped"])
def test_a_stop_that_was_not_clean_is_told_and_noted(site: Site, final_pass: str) -> None:
    """systemd loses patience with a server that waits for a live tail."""
    site.install(final_pass=final_pass)
    site.server.ingest(OLD)
    unit = (site.systemd.unit_directory / site.unit).read_text()
    site.systemd.write_unit(site.unit, f"{unit}TimeoutStopSec=1\n")
    # All of it is on the disk then.
    site.stop()
    site.start()
    with site.server.tail():
        run = site.hooks("before-create")
    how = r"(killed by signal 9|Result=timeout, ExecMainCode=2, ExecMainStatus=9)"
    assert re.search(
        rf"VictoriaLogs did not stop cleanly \({how}\): rows .* may be lost", run.stderr
    )
    assert re.fullmatch(how, site.manifest.unclean_stop)
    site.hooks("verify", str(site.staging.path))
    assert messages(site.server.rows()) == messages(OLD)


def test_a_clean_stop_is_no_news(ready: Site) -> None:
    assert "cleanly" not in ready.hooks("before-create").stderr
    assert ready.manifest.unclean_stop == ""


@contextlib.contextmanager
def scripted(site: Site, stop_delay: float = 0, **options: object) -> Iterator[Path]:
    """A VictoriaLogs run by a script, which notes what is asked of it in the file that is yielded."""
    calls = site.root / "calls"
    noting = site.root / "noting.py"
    with command_service(site, stop_delay, **options):
        noting.write_text(
            "import os, sys\n"
            f"with open({str(calls)!r}, 'a') as file: print(sys.argv[1], file=file)\n"
            f"service = {str(site.root / 'service.py')!r}\n"
            "os.execv(sys.executable, [sys.executable, service, sys.argv[1]])\n"
        )
        verbs = {v: [sys.executable, str(noting), v] for v in ("stop", "start", "status")}
        site.write_config(service={"command": verbs}, **options)
        yield calls


def test_a_server_that_is_stopping_is_not_told_to_stop_again(site: Site, killer: Killer) -> None:
    """A second SIGTERM kills VictoriaLogs, with all that it has not written yet."""
    with scripted(site, stop_delay=6, stop_timeout=15) as calls:
        site.server.ingest(NEW)
        server = server_process(site)
        run = killer.run(site, "before-create", fault=Fault("hook stop_service end #1"))
        assert run.status == -signal.SIGKILL
        # The guard has nothing to bring back yet, and only watches from then on.
        wait_until(site.journal_is_empty, 10, "the guard has looked")
        assert server.is_running()
        second = killer.run(site, "before-create")
        assert second.status == 0, second.stderr
        assert server_process(site).pid != server.pid
        assert calls.read_text().split().count("stop") == 1
        settle(site, time.monotonic())
        assert messages(site.server.rows()) == messages([*OLD, *NEW])


def test_after_a_stop_command_that_failed_the_next_run_asks_again(
    site: Site, killer: Killer
) -> None:
    with scripted(site, stop_timeout=60) as calls:
        noting = str(site.root / "noting.py")
        verbs = {v: [sys.executable, noting, v] for v in ("stop", "start", "status")}
        wrong = {**verbs, "stop": ["false"]}
        site.write_config(service={"command": wrong}, stop_timeout=60)
        assert killer.run(site, "before-create").status == 1
        site.write_config(service={"command": verbs}, stop_timeout=60)
        began = time.monotonic()
        second = killer.run(site, "before-create")
        assert second.status == 0, second.stderr
        assert time.monotonic() - began < QUICK_SECONDS
        assert calls.read_text().split().count("stop") == 1


def test_a_status_command_that_looks_at_the_lock_may_take_us_for_victorialogs(
    site: Site, killer: Killer
) -> None:
    with scripted(site, stop_timeout=30) as calls:
        site.hooks("before-create")
        site.run("cp", "-a", str(site.staging.path), str(site.root / "extracted"))
        site.server.ingest(NEW)
        status = site.root / "status.sh"
        status.write_text(f"#!/bin/sh\n! flock --nonblock {site.data}/flock.lock true\n")
        status.chmod(0o755)
        service = json.loads(
            json.dumps(
                {v: [sys.executable, str(site.root / "noting.py"), v] for v in ("stop", "start")}
            )
        )
        site.write_config(
            service={"command": {**service, "status": [str(status)]}}, stop_timeout=30
        )
        began = time.monotonic()
        run = killer.run(site, "restore", "--from", str(site.root / "extracted"), "--yes")
        assert run.status == 0, run.stderr
        assert time.monotonic() - began < QUICK_SECONDS
        assert messages(site.server.rows()) == messages(OLD)
        assert calls.read_text().split().count("stop") == 2


def test_a_status_command_that_cannot_tell_does_not_keep_victorialogs_down(
    site: Site, killer: Killer
) -> None:
    with scripted(site):
        # From the stop on, it fails.
        status = site.root / "status.sh"
        status.write_text(
            f"#!/bin/sh\n! grep -q stop {site.root}/calls || exit 4\n"
            f"exec {sys.executable} {site.root}/service.py status\n"
        )
        status.chmod(0o755)
        noting = [sys.executable, str(site.root / "noting.py")]
        service = {
            "stop": [*noting, "stop"],
            "start": [*noting, "start"],
            "status": [str(status)],
        }
        (site.root / "calls").touch()
        site.write_config(service={"command": service})
        run = killer.run(site, "before-create")
        assert run.status == 0, run.stderr
        assert site.server.healthy()
