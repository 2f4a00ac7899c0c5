"""SIGKILL at instants that nobody chose, in the stop window of a backup."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.faults.conftest import MakeFlows
from tests.faults.harness import (
    BackupFlow,
    Flow,
    StoppedPassFlow,
    command_line,
    copy_is_whole_or_unpublished,
    share_out,
    start_unit,
)
from tests.parts.systemd import Systemd
from tests.parts.tally import TALLY
from tests.parts.waiting import wait_until
from tests.support import ALL_KILLS

INSTANTS = 1000 if ALL_KILLS else 100
CONTROL_GROUPS = 100 if ALL_KILLS else 10
FIRST_SEED = 20261122
# Of the time from the stop command to the end of an undisturbed run. A seed is tried until it hits
# the window; kills between the window and the end are checked and counted as well.
LATEST = 0.9


def journal_of(flow: Flow) -> Path:
    return flow.site.root / "state" / "default" / "journal.json"


def ended_at(flow: Flow) -> int:
    """When the last run that succeeded has ended: it writes a lease then."""
    lease = journal_of(flow).with_name("lease.json")
    return lease.stat().st_mtime_ns if lease.exists() else 0


def comes_to_window(flow: Flow, before: int, timeout: float = 30) -> bool:
    """Return True as soon as the journal is there: VictoriaLogs is about to be stopped.

    False if the run, which began after the one that had ended at `before`, has ended meanwhile: on a
    busy machine the window can be shorter than the time between two looks.
    """
    deadline = time.monotonic() + timeout
    while not journal_of(flow).exists():
        if ended_at(flow) != before:
            return False
        assert time.monotonic() < deadline, "the run never came to its stop window"
        time.sleep(0.001)
    return True


def start(flow: Flow) -> subprocess.Popen[bytes]:
    null = subprocess.DEVNULL
    argv = command_line(flow.site, "before-create")
    return subprocess.Popen(argv, env=flow.site.environment, stdin=null, stdout=null, stderr=null)


def undisturbed(flow: Flow) -> float:
    """Seconds from the stop command to the end of a run."""
    while True:
        before = ended_at(flow)
        process = start(flow)
        seen, began = comes_to_window(flow, before), time.monotonic()
        assert process.wait(60) == 0
        seconds = time.monotonic() - began
        flow.settle(time.monotonic())
        if seen:
            return seconds


def check(flow: Flow, fired: float, what: str, seed: int) -> None:
    recovery = flow.settle(fired)
    flow.check_data()
    copy_is_whole_or_unpublished(flow.site)
    if seed % 3 == 0:
        # Of the others, the next run is the one that is killed next.
        flow.again()
    TALLY.count(f"{what} ({flow.name})", recovery, f"{what}, seed {seed}")


def delays(seed: int, longest: float) -> Iterator[float]:
    chance = random.Random(seed)
    while True:
        yield chance.uniform(0, longest * LATEST)


def seeds(count: int) -> Sequence[int]:
    return range(FIRST_SEED, FIRST_SEED + count)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", [BackupFlow, StoppedPassFlow], ids=["frozen", "stopped"])
def test_sigkill_at_random_instants(make_flows: MakeFlows, kind: type[Flow]) -> None:
    flows = make_flows(kind)
    longest = min(undisturbed(flows[0]) for _ in range(2))

    def survive(flow: Flow, seed: int) -> None:
        for delay in delays(seed, longest):
            before = ended_at(flow)
            process = start(flow)
            if not comes_to_window(flow, before):
                assert process.wait(60) == 0
                flow.settle(time.monotonic())
                continue
            time.sleep(delay)
            in_window = journal_of(flow).exists()
            fired = time.monotonic()
            process.kill()
            if process.wait(10) != -9:
                flow.settle(fired)
                continue
            where = "in the stop window" if in_window else "after it"
            check(flow, fired, f"SIGKILL at a random instant {where}", seed)
            if in_window:
                return

    share_out(flows, seeds(INSTANTS // 2), survive)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("ending", ["systemctl kill -s KILL", "systemctl stop"])
def test_the_whole_control_group_is_ended(make_flows: MakeFlows, ending: str) -> None:
    """As borgmatic's own unit, with the default KillMode: only another unit outlives it."""
    flows = make_flows(BackupFlow, count=3)
    longest = undisturbed(flows[0])

    def survive(flow: Flow, seed: int) -> None:
        systemd = flow.site.systemd
        unit = f"backup-{seed}-{flow.site.unit}"
        for delay in delays(seed, longest):
            # Inside, systemctl talks to the systemd that runs it.
            path = flow.site.environment["PATH"].partition(":")[2]
            environment = {**flow.site.environment, "PATH": path}
            kept = {
                key: environment[key]
                for key in ("PATH", "HOME", "PYTHONPATH")
                if key in environment
            }
            argv = command_line(flow.site, "before-create")
            before = ended_at(flow)
            start_unit(systemd, unit, argv, **kept)
            if not comes_to_window(flow, before):
                wait_until(lambda: has_ended(systemd, unit), 10, "the end")
                flow.settle(time.monotonic())
                continue
            assert guard_units(flow), "no guard that is a unit"
            time.sleep(delay)
            running = systemd.systemctl("is-active", unit, check=False).returncode == 0
            fired = time.monotonic()
            if ending == "systemctl stop":
                systemd.systemctl("stop", unit, check=False)
            else:
                systemd.systemctl("kill", "--kill-whom=all", "-s", "KILL", unit, check=False)
            wait_until(lambda: has_ended(systemd, unit), 10, "the end")
            systemd.systemctl("reset-failed", unit, check=False)
            if running:
                break
            flow.settle(fired)
        what = "SIGKILL of" if "KILL" in ending else "systemctl stop of"
        check(flow, fired, f"{what} the control group", seed)

    share_out(flows, seeds(CONTROL_GROUPS), survive)


def has_ended(systemd: Systemd, unit: str) -> bool:
    return systemd.show(unit, "ActiveState") in ("inactive", "failed")


def guard_units(flow: Flow) -> list[psutil.Process]:
    """The guards of this site that run in a control group of their own."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        if str(flow.site.config) not in arguments or "--wait" not in arguments:
            continue
        if "vl-borg-hooks-guard" in Path(f"/proc/{process.pid}/cgroup").read_text():
            found.append(process)
    return found
