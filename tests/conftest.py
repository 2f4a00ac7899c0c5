"""Fixtures for all tests: which VictoriaLogs they run, and the real systemd, sshd and dockerd."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.parts.docker import Docker
from tests.parts.left_behind import MARK, left_behind
from tests.parts.sshd import Sshd
from tests.parts.systemd import Systemd
from tests.parts.tally import TALLY, Tally
from tests.parts.waiting import wait_until
from tests.setup.victoria_logs import Found, Unusable, find, warning

# Files whose tests never run at the same time, and why.
KILLS = "six flows at once are enough for a machine"
SERVICES = "borgmatic in a service has /tmp for its temporary files, as any other there"
GROUPS = {
    "tests/faults/test_kills.py": KILLS,
    "tests/faults/test_random_instants.py": KILLS,
    "tests/faults/test_snapshot_faults.py": KILLS,
    "tests/end_to_end/test_borgmatic_service.py": SERVICES,
    "tests/end_to_end/test_leases.py": SERVICES,
    "tests/end_to_end/test_install.py": "they share the wheel",
}


@pytest.fixture(scope="session", autouse=True)
def _programs_of_this_environment_first() -> None:
    """Have tests find the borg, borgmatic and vl-borg-hooks that are installed beside pytest."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.fixture(scope="session", autouse=True)
def _own_temporary_directory() -> Iterator[Path]:
    """Have programs put their temporary files in a directory that no other tests have.

    borgmatic removes what it takes for its own there. The path is short, as a socket's must be.
    """
    before = tempfile.gettempdir()
    directory = Path(tempfile.mkdtemp(prefix="vl-"))
    directory.chmod(0o1777)
    os.environ["TMPDIR"] = tempfile.tempdir = str(directory)
    yield directory
    os.environ["TMPDIR"] = tempfile.tempdir = before
    shutil.rmtree(directory)


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind(
    tmp_path_factory: pytest.TempPathFactory, _own_temporary_directory: Path
) -> Iterator[None]:
    """Fail the last test if processes, mounts or loop devices outlive it."""
    directories = (tmp_path_factory.getbasetemp(), _own_temporary_directory)
    mark = os.environ[MARK] = str(directories[0])

    def left() -> list[str]:
        return [each for directory in directories for each in left_behind(mark, directory)]

    yield
    # What ends by itself, such as a guard, is given the time.
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: not left(), 30, "nothing is left")
    assert left() == []


@pytest.fixture(scope="session")
def victoria_logs() -> Found:
    """The server that tests run: the real one, or the stand-in if there is no real one."""
    return find()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips", action="store_true", help="a skipped test is a failure of the run"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, by name, what only the real server can prove, if there is none."""
    found = find()
    if found.real:
        return
    reason = f"no real VictoriaLogs on this machine: {'; '.join(found.reasons) or found.path}"
    for item in items:
        if item.get_closest_marker("real_victorialogs"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def systemd() -> Iterator[Systemd]:
    if reason := Systemd.why_not():
        pytest.fail(f"the tests need a real systemd: {reason}")
    with Systemd() as running:
        yield running


@pytest.fixture
def sshd(systemd: Systemd, tmp_path: Path) -> Iterator[Sshd]:
    """A host to log in to, whose systemctl is that of the tests' systemd."""
    if reason := Sshd.why_not():
        pytest.fail(f"the tests need a real sshd: {reason}")
    with Sshd(tmp_path / "sshd", {"PATH": systemd.path}) as running:
        yield running


@pytest.fixture
def docker() -> Iterator[Docker]:
    """A dockerd with nothing but an empty image."""
    if reason := Docker.why_not():
        pytest.fail(f"the tests need a real Docker: {reason}")
    with Docker() as running:
        yield running


def pytest_configure(config: pytest.Config) -> None:
    """End at once if $VICTORIA_LOGS is set to something that is not VictoriaLogs."""
    if hasattr(config, "workerinput"):
        # What another worker of pytest-xdist starts would be taken for what a test has left running.
        os.setpgid(0, 0)
    # As Ctrl-C does: what the parts have mounted and started is ended by them.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        find()
    except Unusable as error:
        raise pytest.UsageError(str(error)) from None


def pytest_report_header() -> str:
    """Say at the top of the report what the tests prove anything about."""
    found = find()
    return f"VictoriaLogs: {found.version}{'' if found.real else ' (NOT the real one)'}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which faults were survived, and at the end too that a run on the stand-in proves less."""
    if TALLY.survived:
        terminalreporter.section("faults survived")
        for line in TALLY.lines():
            terminalreporter.line(line)
    found = find()
    if not found.real:
        terminalreporter.line("")
        for line in warning(found):
            terminalreporter.line(line, red=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker of pytest-xdist one test after another, and those of a group to only one.

    By their files: pytest-xdist 3.8.0 does not see the groups of its own with pytest 9.2.
    """
    missing = [path for path in GROUPS if not (config.rootpath / path).exists()]
    assert not missing, f"in GROUPS, but not there: {missing}"
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return GROUPS.get(nodeid.partition("::")[0], nodeid)

    return Groups(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker of pytest-xdist has counted, unless it has died."""
    TALLY.add(getattr(node, "workeroutput", {}).get("tally", Tally().as_json()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run for a skipped test, if --no-skips is given; a worker tells what it has counted."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tally"] = TALLY.as_json()
    if not session.config.getoption("--no-skips"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and reporter.stats.get("skipped") and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.line("")
        reporter.line("--no-skips: tests were skipped, so the run has failed", red=True)
