"""Runs our commands with a fault in them, and judges what is left afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import psutil

from tests.parts.command_service import write_service
from tests.parts.site import Site
from tests.parts.systemd import Systemd
from tests.parts.tally import NOT_REACHED, TALLY
from tests.parts.victoria_logs import LogServer, SteadyIngestion, server_argv
from tests.parts.waiting import wait_until
from tests.support import ALL_KILLS
from vl_borg_hooks.staging import verify
from vl_borg_hooks.victorialogs.layout import WORKING_DIRECTORY

RECOVERY_SECONDS = 10
# Beyond this, what a run started is no longer expected to end by itself.
LEFTOVER_SECONDS = 20
# A site that is beyond repair fails on everything after: so many examples are enough.
LISTED_PROBLEMS = 6
PLUGIN = Path(__file__).with_name("killer_plugin.py")
# How long an open request can hold a stop up, a little less in fact.
SLOW_STOP = "-http.maxGracefulShutdownDuration=4s"
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")


@dataclass(frozen=True)
class Fault:
    """`do` at the event `at`; see killer_plugin."""

    at: str
    do: str = "SIGKILL"
    command: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.do} at {self.at}"


@dataclass(frozen=True)
class Run:
    """A run of ours that has ended. `fired` is when the fault came, in monotonic time."""

    status: int
    stderr: str
    fired: float | None
    events: list[str]

    @property
    def moment(self) -> float:
        assert self.fired is not None
        return self.fired

    def failed_in_one_line(self, *said: str, status: int = 1) -> None:
        """AssertionError unless it said so in one line; for --verbosity -1."""
        assert self.status == status, f"exit status {self.status}: {self.stderr[-800:]}"
        assert "Traceback" not in self.stderr, self.stderr[-800:]
        assert len(self.stderr.splitlines()) == 1, self.stderr
        for words in said:
            assert words in self.stderr, f"does not say {words!r}: {self.stderr}"


class Killer:
    """The killer plugin, installed below `directory` as pip installs anybody's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._runs = 0
        metadata = directory / "killer_plugin-1.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: killer-plugin\nVersion: 1\n"
        )
        (metadata / "entry_points.txt").write_text("[vl_borg_hooks]\nkiller = killer_plugin\n")
        shutil.copy(PLUGIN, directory)

    def environment(self, site: Site, fault: Fault | None) -> dict[str, str]:
        """What a run needs to meet its fault; without one its events are recorded."""
        self._runs += 1
        path = ":".join([str(self.directory), os.environ.get("PYTHONPATH", "")]).rstrip(":")
        scratch = self.directory / f"{site.unit}-{self._runs}"
        settings = {"PYTHONPATH": path, "VL_FAULTS_FIRED": f"{scratch}.fired"}
        if fault is None:
            settings["VL_FAULTS_RECORD"] = f"{scratch}.events"
        else:
            always = "VL_FAULTS_ALWAYS" if fault.do == "always" else "VL_FAULTS_AT"
            settings |= {always: fault.at, "VL_FAULTS_DO": fault.do}
            settings["VL_FAULTS_RUN"] = json.dumps(fault.command)
        return settings

    def start(
        self, site: Site, *arguments: str, fault: Fault | None, path: str = "", lines: bool = False
    ) -> Running:
        """Start our command; `path` comes first in its PATH."""
        settings = self.environment(site, fault)
        if lines:
            settings["VL_FAULTS_LINES"] = "yes"
        environment = {**site.environment, **settings}
        if path:
            environment["PATH"] = f"{path}:{environment['PATH']}"
        return Running(command_line(site, "--verbosity", "-1", *arguments), environment)

    def run(
        self,
        site: Site,
        *arguments: str,
        fault: Fault | None = None,
        path: str = "",
        lines: bool = False,
        timeout: float = 60,
    ) -> Run:
        """Run our command until it ends, however it does; AssertionError if it does not."""
        return self.start(site, *arguments, fault=fault, path=path, lines=lines).wait(timeout)


class Running:
    """A run of ours that is on."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.process = subprocess.Popen(
            argv,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def fired(self) -> bool:
        return Path(self._environment["VL_FAULTS_FIRED"]).exists()

    def wait(self, timeout: float = 60) -> Run:
        try:
            _, stderr = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise AssertionError(f"the run had not ended after {timeout:g} s") from None
        fired = _read(self._environment["VL_FAULTS_FIRED"])
        events = _read(self._environment.get("VL_FAULTS_RECORD", os.devnull)).splitlines()
        return Run(self.process.returncode, stderr, float(fired) if fired else None, events)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except FileNotFoundError:
        return ""


def command_line(site: Site, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "vl_borg_hooks", "--config", str(site.config), *arguments]


def leftovers(site: Site) -> list[psutil.Process]:
    """Processes that a run at `site` has left: the guard, rsync; not the server."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        arguments = " ".join(process.info["cmdline"] or [])
        if str(site.root) in arguments and "-storageDataPath" not in arguments:
            found.append(process)
    return found


def server_process(site: Site) -> psutil.Process:
    for process in psutil.process_iter(["cmdline"]):
        if f"-storageDataPath={site.data}" in (process.info["cmdline"] or []):
            return process
    raise AssertionError("no server")


def starts(site: Site) -> int:
    """How often the server has started up to now."""
    return Path(f"{site.data}.log").read_text().count("started server at")


@contextlib.contextmanager
def command_service(site: Site, stop_delay: float, **options: Any) -> Iterator[None]:
    """VictoriaLogs as an operator's own script runs it; site.unit is not used."""
    flags = [] if stop_delay else [SLOW_STOP]
    argv = server_argv(site.executable, site.data, site.port, flags)
    script = write_service(site.root / "service.py", argv, stop_delay)
    command = [sys.executable, str(script)]
    service = {verb: [*command, verb] for verb in ("stop", "start", "status")}
    site.write_config(service={"command": service}, **options)
    try:
        site.run(*command, "start")
        site.server.wait_healthy()
        site.server.ingest(OLD)
        yield
        site.write_config(service={"command": service})
    finally:
        for process in leftovers(site):
            process.kill()
        with contextlib.suppress(AssertionError):
            server_process(site).kill()


def systemctl_that_cannot_stop(site: Site) -> str:
    """A directory with a systemctl that is denied to stop anything."""
    directory = site.root / "bin"
    directory.mkdir()
    real = shutil.which("systemctl", path=site.environment["PATH"])
    (directory / "systemctl").write_text(
        f'#!/bin/sh\n[ "$1" != stop ] || {{ echo "Access denied" >&2; exit 4; }}\nexec {real} "$@"\n'
    )
    (directory / "systemctl").chmod(0o755)
    return str(directory)


def settle(site: Site, fired: float) -> float:
    """Wait until VictoriaLogs is healthy and nothing of the run is left that could change it.

    Returns how many seconds after `fired` VictoriaLogs began to be healthy for good;
    AssertionError if it did not in RECOVERY_SECONDS. Asked again and again: no event tells that a
    health lasts, or that processes that are not our children have ended.
    """
    server = LogServer(site.server.url, timeout=1)
    since = None
    while True:
        now = time.monotonic()
        since = (since or now) if server.healthy() else None
        left = leftovers(site)
        if since and not left:
            assert since - fired < RECOVERY_SECONDS, f"down for {since - fired:.1f} s"
            return since - fired
        assert since or now - fired < RECOVERY_SECONDS, f"still down after {now - fired:.1f} s"
        assert now - fired < LEFTOVER_SECONDS, f"left: {[process.cmdline() for process in left]}"
        # Asked again and again: there is no event for "it serves, and all that was left has ended".
        time.sleep(0.01)


def settle_stopped(site: Site, fired: float) -> float:
    """The same for a VictoriaLogs that was found stopped: it is stopped again."""
    since = None
    while True:
        now = time.monotonic()
        since = None if site.is_running else since or now
        if since and not leftovers(site):
            return since - fired
        assert now - fired < RECOVERY_SECONDS, f"runs or is busy {now - fired:.1f} s after"
        # As above.
        time.sleep(0.02)


def copy_is_whole_or_unpublished(site: Site) -> bool:
    """AssertionError for a published copy that is not whole; tells whether it is published."""
    if not site.is_published:
        return False
    # What `vl-borg-hooks verify` does, without starting one each of a thousand times.
    problems = verify.verify(site.staging).problems
    assert not problems, f"published and broken: {problems}"
    return True


def messages(rows: Iterable[Mapping[str, object]]) -> list[str]:
    return sorted(str(row["_msg"]) for row in rows)


def make_rows(name: str, count: int, *days: str) -> list[Mapping[str, object]]:
    return [
        {"host": name, "_msg": f"{name} {n}", "_time": f"{days[n % len(days)]}T00:00:00Z"}
        for n in range(count)
    ]


OLD = make_rows("old", 60, "2026-01-02", "2026-01-03", "2026-01-04")
NEW = make_rows("new", 40, "2026-02-01", "2026-01-04")


class Flow(ABC):
    """One command at one site, run again and again with faults in it."""

    command: tuple[str, ...]
    # Of the instance in the config.
    options: Mapping[str, Any] = {}

    def __init__(self, site: Site, killer: Killer, *, running: bool = True) -> None:
        self.site, self.killer, self.running = site, killer, running
        self.site.install(**self.options)
        self.prepare()

    @property
    def name(self) -> str:
        return f"{self.command[0]}{'' if self.running else ', found stopped'}"

    @abstractmethod
    def prepare(self) -> None:
        """Bring the site to where the command can be run."""

    @abstractmethod
    def check_data(self) -> None:
        """AssertionError if a row is lost, or more."""

    @abstractmethod
    def again(self) -> None:
        """The next run, undisturbed; AssertionError if it needs help. Then ready for one more."""

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """End what `prepare` began."""

    def record(self, *, lines: bool = False) -> list[str]:
        """Return the events of a second run, of the polled ones only the first.

        A first run makes directories and copies that all later ones find.
        """
        for _ in range(2):
            run = self.killer.run(self.site, *self.command, lines=lines, timeout=120)
            assert run.status == 0, run.stderr
            self.settle(time.monotonic())
            self.prepare()
        # How often something is polled is a matter of chance; once it is for certain.
        polled = ("hook is_healthy start", "hook is_healthy end", "command systemctl show")
        return [
            event for event in run.events if not event.startswith(polled) or event.endswith("#1")
        ]

    def settle(self, fired: float) -> float:
        settled = settle(self.site, fired) if self.running else settle_stopped(self.site, fired)
        assert self.site.journal_is_empty(), "the journal is still there"
        return settled

    def survive(self, fault: Fault, *, lines: bool = False, again: bool = True) -> None:
        """Run with `fault` and check all that must be true then; leave it ready for the next."""
        run = self.killer.run(self.site, *self.command, fault=fault, lines=lines)
        for _ in range(3):
            if run.fired is not None:
                break
            # How often something is polled is a matter of chance: try again.
            assert run.status == 0, f"never came to it: {run.stderr}"
            self.prepare()
            run = self.killer.run(self.site, *self.command, fault=fault, lines=lines)
        if run.fired is None and (lines or fault.at.startswith("process ")):
            # A line for when something has to be waited for, and now it had not; or the service
            # manager is only asked how VictoriaLogs ended if the kernel does not know it in time.
            TALLY.count(NOT_REACHED)
            self.prepare()
            return
        assert run.fired is not None, "never came to it"
        self.check_end(fault, run)
        recovery = self.settle(run.fired)
        self.check_data()
        copy_is_whole_or_unpublished(self.site)
        if again:
            self.again()
        else:
            self.prepare()
        kind = f"{fault.do} at a line" if lines else fault.do
        TALLY.count(f"{kind} ({self.name})", recovery, f"{self.name}: {fault}")

    def check_end(self, fault: Fault, run: Run) -> None:
        """Did the run end as it must for such a fault?"""
        if fault.do == "SIGKILL":
            assert run.status == -9, f"exit status {run.status}"
        elif fault.do in SIGNALS:
            run.failed_in_one_line(fault.do)
        elif fault.do == "raise":
            # By their specification an exception in these is a reason to try again.
            if run.status == 0 and ("is_healthy" in fault.at or "start_service" in fault.at):
                return
            run.failed_in_one_line()
        else:
            assert run.status in (0, 1), f"exit status {run.status}"


class BackupFlow(Flow):
    """before-create while rows come in all the time, or on a server that was found stopped."""

    command = ("before-create",)

    def __init__(self, site: Site, killer: Killer, *, running: bool = True) -> None:
        self.ingestion: SteadyIngestion | None = None
        super().__init__(site, killer, running=running)

    def prepare(self) -> None:
        if self.ingestion is None:
            self.site.server.ingest(OLD)
            self.ingestion = SteadyIngestion(self.site.server, batch=3, interval=0.1)
            self.ingestion.__enter__()
            self.ingestion.wait_for(3)
            if not self.running:
                self.ingestion.stop()
        if self.running:
            self.site.start()
        else:
            self.site.stop()

    def close(self) -> None:
        if self.ingestion:
            self.ingestion.stop()

    def check_data(self) -> None:
        assert self.ingestion is not None
        if not self.running:
            problems: list[str] = []
            rows = sum(part.rows for part in verify.partitions(self.site.data, problems))
            assert not problems, problems
            assert rows == len(OLD) + len(self.ingestion.sequences()), f"{rows} rows"
            return
        now = time.monotonic()
        steady = [row for row in self.site.server.rows() if row["host"] == "steady"]
        missing = self.ingestion.missing(steady, now)
        assert not missing, f"{len(missing)} acknowledged rows are lost: {sorted(missing)[:10]}"

    def again(self) -> None:
        assert self.ingestion is not None
        started = time.monotonic()
        done = self.site.hooks("before-create", check=False)
        assert done.returncode == 0, f"the next run failed: {done.stderr}"
        assert copy_is_whole_or_unpublished(self.site), "the next run published nothing"
        acknowledged = len(OLD) + len(self.ingestion.sequences(started))
        rows = self.site.manifest.rows
        assert rows >= acknowledged, f"the next copy has {rows} of {acknowledged} rows"
        self.settle(time.monotonic())


class StoppedPassFlow(BackupFlow):
    """The same if hard links can't be made: the final pass is in the stop window."""

    options: Mapping[str, Any] = {"final_pass": "stopped"}

    @property
    def name(self) -> str:
        return "before-create, final_pass: stopped"


class RestoreFlow(Flow):
    """restore of a copy with OLD into a server that has OLD and NEW."""

    def __init__(self, site: Site, killer: Killer, *, running: bool = True) -> None:
        self.extracted = site.root / "extracted"
        self._before = site.root / "before"
        self.command = ("restore", "--from", str(self.extracted), "--yes")
        super().__init__(site, killer, running=running)

    def prepare(self) -> None:
        """Serve OLD and NEW again, or have them on disk again."""
        if not self.extracted.exists():
            self.site.server.ingest(OLD)
            self.site.hooks("before-create")
            self.site.run("cp", "-a", str(self.site.staging.path), str(self.extracted))
        if self.running:
            self.site.start()
            if (self.site.data / WORKING_DIRECTORY).exists():
                self.site.hooks("restore", "--discard-replaced")
            if len(self.site.server.rows()) != len(OLD) + len(NEW):
                self.site.server.ingest(NEW)
                self.check_data()
            return
        if not self._before.exists():
            self.site.server.ingest(NEW)
            self.site.stop()
            self.site.run("cp", "-a", str(self.site.data), str(self._before))
        self.site.stop()
        shutil.rmtree(self.site.data)
        self.site.run("cp", "-a", str(self._before), str(self.site.data))

    def check_data(self) -> None:
        """Either exactly the old data or exactly the restored."""
        if self.running:
            served = messages(self.site.server.rows())
            wholes = [messages([*OLD, *NEW]), messages(OLD)]
            assert served in wholes, f"a mix: {Counter(text.split()[0] for text in served)}"
            return
        assert self._rows_by_day(self.site.data) in (
            self._rows_by_day(self._before),
            self._rows_by_day(self.extracted / "data"),
        ), f"a mix: {self._rows_by_day(self.site.data)}"

    def _rows_by_day(self, data: Path) -> dict[str, int]:
        problems: list[str] = []
        found = {part.name: part.rows for part in verify.partitions(data, problems)}
        assert not problems, problems
        return found

    def again(self) -> None:
        self.prepare()
        done = self.site.hooks(*self.command, check=False)
        assert done.returncode == 0, f"the next run failed: {done.stderr}"
        self.settle(time.monotonic())
        left = [path.name for path in (self.site.data / WORKING_DIRECTORY).iterdir()]
        assert left == ["kept"], f"left in the working directory: {left}"
        if self.running:
            assert messages(self.site.server.rows()) == messages(OLD), "not what was restored"
        else:
            assert self._rows_by_day(self.site.data) == self._rows_by_day(self.extracted / "data")
        self.prepare()


def lose_power(flow: Flow, event: str) -> None:
    """Have the run and its guard die at `event`, at the same moment."""
    flow.prepare()
    run = flow.killer.run(flow.site, *flow.command, fault=Fault(event, "power-loss"))
    assert run.status == -9, f"{run.status}: {run.stderr}"


def check_recovered(flow: Flow) -> None:
    """AssertionError if `recover` has left anything to do."""
    assert flow.site.is_running
    assert flow.site.server.healthy()
    assert flow.site.journal_is_empty()
    flow.check_data()
    working = flow.site.data / WORKING_DIRECTORY
    # A restore that VictoriaLogs serves already is finished, and keeps what it has replaced.
    assert not working.exists() or [path.name for path in working.iterdir()] == ["kept"]


FlowT = TypeVar("FlowT", bound=Flow)
Item = TypeVar("Item")


def survive_all(
    flows: Sequence[Flow], faults: Iterable[Fault], *, lines: bool = False, again_every: int = 1
) -> None:
    """Have the flows survive all `faults`; the next run is checked after each `again_every`th."""
    numbered = list(enumerate(faults, 1))
    share_out(
        flows,
        numbered,
        lambda flow, item: flow.survive(item[1], lines=lines, again=item[0] % again_every == 0),
        lambda item: str(item[1]),
    )


def share_out(
    flows: Sequence[FlowT],
    items: Iterable[Item],
    survive: Callable[[FlowT, Item], None],
    describe: Callable[[Item], str] = str,
) -> None:
    """Have the flows share out `items`, at the same time; AssertionError that names the bad ones."""
    queue: SimpleQueue[Item] = SimpleQueue()
    for item in items:
        queue.put(item)
    problems: list[str] = []

    def work(flow: FlowT) -> None:
        while len(problems) < LISTED_PROBLEMS:
            try:
                item = queue.get_nowait()
            except Empty:
                return
            try:
                survive(flow, item)
            except (AssertionError, TimeoutError, OSError, RuntimeError) as error:
                problems.append(f"{flow.name}: {describe(item)}: {error}")
                try:
                    repair(flow)
                except (AssertionError, TimeoutError, OSError, RuntimeError) as beyond:
                    problems.append(f"{flow.name} is beyond repair after that: {beyond}")
                    return

    with ThreadPoolExecutor(len(flows)) as pool:
        for result in [pool.submit(work, flow) for flow in flows]:
            result.result()
    assert not problems, f"{len(problems)} faults not survived:\n" + "\n".join(problems)


def repair(flow: Flow) -> None:
    """Help, though no help should be needed, so that the next fault is judged by itself."""
    for process in leftovers(flow.site):
        process.kill()
    (flow.site.root / "state" / "default" / "journal.json").unlink(missing_ok=True)
    wait_until(lambda: not leftovers(flow.site), 30, "leftovers are gone")
    flow.prepare()


def shuffled(faults: Sequence[Fault], count: int, seed: int) -> list[Fault]:
    """`count` of `faults`, always the same; all of them if all are asked for."""
    if ALL_KILLS or count >= len(faults):
        return list(faults)
    return random.Random(seed).sample(faults, count)


def start_unit(systemd: Systemd, unit: str, argv: Sequence[str], **environment: str) -> None:
    """Start `argv` as a transient service of the tests' systemd, with its default KillMode."""
    subprocess.run(
        [
            str(systemd.wrapper_directory / "systemd-run"),
            *("--quiet", "--collect", f"--unit={unit}", "--property=Type=exec"),
            *(f"--setenv={name}={value}" for name, value in environment.items()),
            "--",
            *argv,
        ],
        check=True,
        capture_output=True,
    )
