"""What a run leaves for the next: one at a time, nothing of a dead process, all of it private."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parts.waiting import wait_until
from tests.support import EXAMPLES
from vl_borg_hooks.errors import Busy, InvalidCopy, OperatorError
from vl_borg_hooks.runs import holder
from vl_borg_hooks.runs.holder import Holder
from vl_borg_hooks.runs.records import Journal, RunRecords

HOLD = """\
import sys
from pathlib import Path
from vl_borg_hooks.runs.records import RunRecords
with RunRecords(Path(sys.argv[1]), "default").run_lock("before-create"):
    print("held", flush=True)
    sys.stdin.read()
"""


def records(directory: Path, name: str = "default") -> RunRecords:
    made = RunRecords(directory, name)
    made.create()
    return made


@pytest.fixture
def state(tmp_path: Path) -> RunRecords:
    return records(tmp_path / "state")


@contextmanager
def other_run(state: RunRecords, script: str = HOLD) -> Iterator[subprocess.Popen[str]]:
    """Have another process hold the run lock, as `script` does."""
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", script, str(state.directory.parent)]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.timeout(60)
def test_a_second_run_is_told_who_holds_the_first(state: RunRecords) -> None:
    with (
        other_run(state) as other,
        pytest.raises(Busy) as caught,
        state.run_lock("restore", wait=0.2),
    ):
        pass
    assert caught.value.exit_status == 1
    assert caught.value.seconds < 60
    assert f"before-create (pid {other.pid}, since 20" in str(caught.value)


@pytest.mark.timeout(60)
def test_the_run_that_is_on_is_known_as_long_as_it_lives(state: RunRecords) -> None:
    assert state.run_that_is_on() == ""
    with other_run(state) as other:
        assert f"before-create (pid {other.pid}, since 20" in state.run_that_is_on()
        other.kill()
        other.wait(10)
        assert state.run_that_is_on() == ""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_run_takes_over_the_moment_that_the_first_is_killed(
    state: RunRecords, number: signal.Signals
) -> None:
    with other_run(state) as other:
        other.send_signal(number)
        with state.run_lock("restore", wait=None):
            assert other.wait(10) == -number


RECOVER = """\
import sys, time
from pathlib import Path
from vl_borg_hooks.runs.records import RECOVERY, RunRecords
records = RunRecords(Path(sys.argv[1]), "default")
while True:
    with records.run_lock(RECOVERY, wait=None):
        print("held", flush=True)
        line = sys.stdin.readline()
    print("free", flush=True)
    if sys.stdin.readline() == "":
        break
"""


def guard_that_tries(state: RunRecords) -> AbstractContextManager[subprocess.Popen[str]]:
    """Have another process hold the run lock as a guard that tries: a line from us ends one try."""
    return other_run(state, RECOVER)


@pytest.mark.timeout(60)
def test_a_run_waits_for_one_try_of_a_guard_and_then_has_its_turn(state: RunRecords) -> None:
    with guard_that_tries(state) as guard:
        assert guard.stdin
        ending = threading.Timer(0.3, lambda: print(file=guard.stdin, flush=True))
        ending.start()
        with state.run_lock("before-create", wait=0, for_recovery=30):
            assert not ending.is_alive()
        ending.join()


@pytest.mark.timeout(60)
def test_a_try_that_has_no_end_fails_the_next_run_and_is_not_a_reason_to_skip_it(
    state: RunRecords,
) -> None:
    # With `when_busy: skip` borgmatic would pass over it in silence.
    with (
        guard_that_tries(state) as guard,
        pytest.raises(OperatorError) as caught,
        state.run_lock("before-create", wait=0, for_recovery=0.1),
    ):
        pass
    assert not isinstance(caught.value, Busy)
    assert f"still being brought back by recover (pid {guard.pid}" in str(caught.value)
    assert "guard.log" in str(caught.value)


def test_a_run_that_failed_holds_nothing(state: RunRecords) -> None:
    with pytest.raises(KeyError), state.run_lock("restore"):
        raise KeyError
    with state.run_lock("restore", wait=0):
        pass


def test_two_instances_are_not_in_each_others_way(tmp_path: Path) -> None:
    one, two = (records(tmp_path, name) for name in ("one", "two"))
    with one.run_lock("a", wait=0), two.run_lock("b", wait=0):
        pass


def test_a_lease_is_its_holders_until_it_is_given_back(state: RunRecords) -> None:
    assert state.lease_holder() is None
    ours = Holder.of(os.getpid(), "borgmatic")
    state.take_lease(ours)
    assert RunRecords(state.directory.parent, "default").lease_holder() == ours
    assert f"borgmatic (pid {os.getpid()}, since " in str(ours)
    state.release_lease()
    state.release_lease()
    assert state.lease_holder() is None


@pytest.mark.timeout(60)
def test_the_lease_of_a_dead_process_is_none(state: RunRecords) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        state.take_lease(Holder.of(process.pid, "borgmatic"))
        assert state.lease_holder()
        process.kill()
        # Dead, though nobody has waited for it yet: a zombie.
        zombie = psutil.Process(process.pid)
        wait_until(lambda: zombie.status() == psutil.STATUS_ZOMBIE, 30, "a zombie")
        assert state.lease_holder() is None
    assert state.lease_holder() is None


def test_a_later_process_with_the_same_id_holds_nothing(state: RunRecords) -> None:
    ours = Holder.of(os.getpid(), "borgmatic")
    # The kernel gives an id again only if there is no group of that number either.
    state.take_lease(replace(ours, created=ours.created - 0.01, group=ours.pid))
    assert state.lease_holder() is None


def test_a_process_of_another_boot_holds_nothing(state: RunRecords) -> None:
    state.take_lease(replace(Holder.of(os.getpid(), "borgmatic"), boot="another"))
    assert state.lease_holder() is None


def test_a_clock_that_was_set_frees_no_lease(
    state: RunRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Holder.of(os.getpid(), "borgmatic")
    state.take_lease(ours)
    # What psutil reckons the start of a process from; the kernel moves it with the clock.
    booted = psutil.boot_time()
    monkeypatch.setattr(psutil._pslinux, "BOOT_TIME", booted + 5, raising=False)
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: booted + 5)
    assert state.lease_holder() == ours


# Started in a process group of its own: a borgmatic that starts its borg.
BORGMATIC = """\
import subprocess, sys
borg = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
print(borg.pid, flush=True)
borg.wait()
"""


@pytest.mark.timeout(60)
def test_what_a_killed_borgmatic_has_left_running_keeps_the_lease(state: RunRecords) -> None:
    argv = [sys.executable, "-c", BORGMATIC]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as borgmatic:
        assert borgmatic.stdout
        borg = psutil.Process(int(borgmatic.stdout.readline()))
        state.take_lease(Holder.of(borgmatic.pid, "borgmatic"))
        borgmatic.kill()
    try:
        found = state.lease_holder()
        assert found
        assert str(found).startswith(f"what borgmatic has left running (pid {borg.pid}, since ")
    finally:
        borg.kill()
    wait_until(lambda: not psutil.pid_exists(borg.pid) or borg.status() == "zombie", 30, "its end")
    assert state.lease_holder() is None


def test_a_later_process_with_the_id_of_the_group_is_not_what_was_left_running(
    state: RunRecords,
) -> None:
    # borgmatic was in the group of its parent, systemd-inhibit say. Both have ended.
    with subprocess.Popen(["sleep", "60"]) as borgmatic:
        held = Holder.of(borgmatic.pid, "borgmatic")
        borgmatic.kill()
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as later:
        wait_until(lambda: os.getpgid(later.pid) == later.pid, 30, "its group")
        state.take_lease(replace(held, group=later.pid, created=held.created - 1))
        assert state.lease_holder() is None
        later.kill()


# What a start command leaves running, if it does not call setsid itself.
STARTER = """\
import sys, time
from vl_borg_hooks.system.local import LocalHost
started = LocalHost().run_starter(["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"])
print(started.stdout, end="", flush=True)
time.sleep(60)
"""


@pytest.mark.timeout(60)
def test_a_victorialogs_that_a_killed_borgmatic_has_started_keeps_no_lease(
    state: RunRecords,
) -> None:
    argv = [sys.executable, "-c", STARTER]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as borgmatic:
        assert borgmatic.stdout
        server = psutil.Process(int(borgmatic.stdout.readline()))
        state.take_lease(Holder.of(borgmatic.pid, "borgmatic"))
        borgmatic.kill()
    try:
        assert server.status() != psutil.STATUS_ZOMBIE
        assert state.lease_holder() is None
    finally:
        server.kill()


@pytest.mark.timeout(60)
def test_what_began_before_the_borgmatic_that_was_killed_keeps_no_lease(state: RunRecords) -> None:
    # The script that starts one borgmatic after the other, and goes on with other things.
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as script:
        with subprocess.Popen(["true"]) as borgmatic:
            pass
        began = Holder.of(script.pid, "borgmatic")
        # The kernel counts in hundredths of a second.
        state.take_lease(replace(began, pid=borgmatic.pid, created=began.created + 0.01))
        assert state.lease_holder() is None
        script.kill()


def test_the_run_that_asks_keeps_no_lease_of_an_earlier_one(state: RunRecords) -> None:
    # One script starts both.
    with subprocess.Popen(["sleep", "60"]) as borgmatic:
        state.take_lease(replace(Holder.of(borgmatic.pid, "borgmatic"), created=0.0))
        borgmatic.kill()
    argv = [sys.executable, "-c", ASK, str(state.directory.parent)]
    asked = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert f"pid {os.getpid()}," not in asked.stdout


ASK = """\
import sys
from pathlib import Path
from vl_borg_hooks.runs.records import RunRecords
print(RunRecords(Path(sys.argv[1]), "default").lease_holder())
"""


def later(monkeypatch: pytest.MonkeyPatch, hours: float) -> None:
    """Let `hours` pass, as a holder counts them."""
    clock = holder._since_boot
    monkeypatch.setattr(holder, "_since_boot", lambda: clock() + hours * 3600)


def test_a_lease_that_no_process_stands_for_ends_after_a_day(
    state: RunRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.take_lease(Holder.unknown())
    held = state.lease_holder()
    assert held
    assert str(held).startswith("whoever called before-create (since 20")
    assert str(held).endswith(", for 24 hours at most)")
    later(monkeypatch, 23.9)
    assert state.lease_holder() == held
    later(monkeypatch, 0.2)
    assert state.lease_holder() is None


@pytest.mark.timeout(60)
def test_the_lease_of_a_persons_shell_ends_with_it_or_after_a_day(
    state: RunRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(["sleep", "60"]) as shell:
        state.take_lease(Holder.of(shell.pid, "bash", is_limited=True))
        assert f"bash (pid {shell.pid}, since 20" in str(state.lease_holder())
        with monkeypatch.context() as patched:
            later(patched, 24.1)
            assert state.lease_holder() is None
        assert state.lease_holder()
        shell.kill()
    assert state.lease_holder() is None


def test_the_lease_of_a_borgmatic_has_no_end_but_its_own(
    state: RunRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A first `borg create` to a repository far away takes days.
    taken = Holder.of(os.getpid(), "borgmatic")
    state.take_lease(taken)
    later(monkeypatch, 100)
    assert state.lease_holder() == taken
    assert taken.age == pytest.approx(100 * 3600, abs=60)


def test_an_unknown_holder_of_another_boot_holds_nothing(state: RunRecords) -> None:
    state.take_lease(replace(Holder.unknown(), boot="another"))
    assert state.lease_holder() is None


def group_of(directory: Path, *pids: int) -> Path:
    """Make what the kernel shows of a control group with these processes."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    return directory


def test_the_lease_of_a_service_is_held_as_long_as_another_process_of_it_runs(
    state: RunRecords, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = group_of(tmp_path / "system.slice/plain.service", os.getpid())
    state.take_lease(Holder.of_service(service))
    # Its main process comes next, and is started by systemd.
    assert str(state.lease_holder()).startswith("plain.service (since 20")
    later(monkeypatch, 1)
    # We are not that, and those above us neither.
    group_of(service, os.getpid(), os.getppid())
    assert state.lease_holder() is None
    group_of(service, os.getpid(), 2**30)
    assert state.lease_holder()
    group_of(service, os.getpid())
    group_of(service / "deeper", 2**30)
    assert state.lease_holder()


@pytest.mark.parametrize("name", ["\0", "", "/dev/null/x", "." * 5000])
def test_a_lease_of_a_service_that_can_not_be_is_none(state: RunRecords, name: str) -> None:
    state.take_lease(replace(Holder.of_service(Path("/")), service=f"/nowhere/{name}"))
    assert state.lease_holder() is None


@pytest.mark.parametrize("taken", [float("nan"), float("inf"), -1.0, 1e300])
def test_an_age_that_can_not_be_is_none(taken: float) -> None:
    assert replace(Holder.unknown(), taken=taken).age == 0


def test_the_lease_of_a_service_ends_with_it(state: RunRecords, tmp_path: Path) -> None:
    service = group_of(tmp_path / "system.slice/plain.service", os.getpid())
    state.take_lease(Holder.of_service(service))
    assert state.lease_holder()
    # As systemd does then.
    shutil.rmtree(service)
    assert state.lease_holder() is None


def test_who_is_the_same_is_known_of_processes_and_services_alone(tmp_path: Path) -> None:
    ours, other = Holder.of(os.getpid(), "a"), Holder.of(os.getppid(), "a")
    assert ours.is_same(Holder.of(os.getpid(), "b"))
    assert not ours.is_same(other)
    assert not ours.is_same(replace(ours, created=ours.created + 1))
    assert not Holder.unknown().is_same(Holder.unknown())
    one, two = (Holder.of_service(tmp_path / name) for name in ("one", "two"))
    assert one.is_same(one)
    assert not one.is_same(two)
    assert not one.is_same(Holder.unknown())
    assert not Holder.unknown().is_same(one)


@pytest.mark.parametrize(("seconds", "alive"), [(0, True), (5, True), (-5, True), (300, False)])
def test_a_lease_of_an_older_version_is_read(
    state: RunRecords, seconds: int, *, alive: bool
) -> None:
    created = psutil.Process().create_time() + seconds
    fields = {"pid": os.getpid(), "created": created, "command": "borgmatic", "since": "2026"}
    (state.directory / "lease.json").write_text(json.dumps(fields))
    assert bool(state.lease_holder()) is alive


def test_a_process_that_has_ended_can_be_no_holder() -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    with pytest.raises(OperatorError, match=f"process {process.pid} has ended"):
        Holder.of(process.pid, "borgmatic")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"{",
        b"[]",
        b"5",
        b'{"pid": "x"}',
        b"[" * 100_000,
        b'{"pid": 1e999, "created": 0, "command": "", "since": ""}',
        b'{"pid": 1e30, "created": 0, "command": "", "since": ""}',
        b"\xff\xfe",
    ],
)
def test_a_lease_that_makes_no_sense_is_one_line_that_says_what_to_do(
    state: RunRecords, content: bytes
) -> None:
    # Never "there is none": Borg may be reading the staging copy.
    path = state.directory / "lease.json"
    path.write_bytes(content)
    with pytest.raises(InvalidCopy) as caught:
        state.lease_holder()
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert "make sure that no borgmatic runs, then: vl-borg-hooks after-create --force" in str(
        caught.value
    )


def test_a_lease_that_is_not_a_file_is_one_line(state: RunRecords) -> None:
    os.mkfifo(state.directory / "lease.json")
    with pytest.raises(InvalidCopy, match="is not a regular file"):
        state.lease_holder()


def test_a_holder_that_makes_no_sense_is_unknown_and_still_busy(state: RunRecords) -> None:
    with other_run(state):
        (state.directory / "run.lock").write_bytes(b"\0\0")
        with pytest.raises(Busy, match="unknown"), state.run_lock("restore", wait=0):
            pass


@pytest.mark.parametrize(
    "journal",
    [
        Journal("before-create", True),
        Journal("restore", False, []),
        Journal("restore", True, ["partitions", "a\nb", os.fsdecode(b"\xff")]),
    ],
)
def test_a_journal_is_read_as_it_was_written(state: RunRecords, journal: Journal) -> None:
    assert state.journal() is None
    state.note(journal)
    assert RunRecords(state.directory.parent, "default").journal() == journal
    state.clear_journal()
    state.clear_journal()
    assert state.journal() is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"command": "x", "found_running": "maybe"}',
        b'{"command": "x", "found_running": true, "replaced": [5]}',
        b"[" * 100_000,
    ],
)
def test_a_journal_that_makes_no_sense_is_one_line_that_says_what_to_do(
    state: RunRecords, content: bytes
) -> None:
    # Never "there is none": VictoriaLogs may be down.
    path = state.directory / "journal.json"
    path.write_bytes(content)
    with pytest.raises(InvalidCopy) as caught:
        state.journal()
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert "make sure that VictoriaLogs runs, then remove that file" in str(caught.value)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    content=st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        *("pid", "created", "command", "since", "found_running", "replaced"),
                        *("boot", "taken", "service", "is_limited", "holder", "manifest_sha256"),
                    ]
                ),
                inner,
            )
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_content_of_the_state_is_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        state = records(Path(directory, "state"))
        for name in ("lease.json", "journal.json", "run.lock", "published.json"):
            (state.directory / name).write_bytes(content)
        with contextlib.suppress(InvalidCopy):
            state.lease_holder()
        assert state.published() is None
        with state.run_lock("recover", wait=0):
            try:
                state.journal()
            except InvalidCopy:
                return


def test_all_of_it_is_for_us_only(state: RunRecords) -> None:
    before = os.umask(0)
    try:
        fresh = records(state.directory.parent / "fresh")
        fresh.note(Journal("restore", True))
        fresh.take_lease(Holder.of(os.getpid(), "borgmatic"))
        with fresh.run_lock("restore"):
            pass
    finally:
        os.umask(before)
    for path in (fresh.directory.parent, *fresh.directory.parent.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize("where", ["", "default"])
def test_a_state_directory_that_others_can_write_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "state/default").mkdir(parents=True)
    (tmp_path / "state" / where).chmod(0o777)
    with pytest.raises(OperatorError, match=r"can be written by others.*chmod 700"):
        records(tmp_path / "state")


def test_a_lock_that_is_a_link_is_not_followed(state: RunRecords, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"mine")
    (state.directory / "run.lock").symlink_to(tmp_path / "outside")
    with pytest.raises(OperatorError, match="symbolic links"), state.run_lock("restore"):
        pass
    assert (tmp_path / "outside").read_bytes() == b"mine"
