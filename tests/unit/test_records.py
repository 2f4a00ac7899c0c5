"""What a run leaves for the next: one at a time, nothing of a dead process, all of it private."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parts.waiting import wait_until
from tests.support import EXAMPLES
from vl_borg_hooks.errors import Busy, InvalidCopy, OperatorError
from vl_borg_hooks.runs.records import Holder, Journal, RunRecords

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
def other_run(state: RunRecords) -> Iterator[subprocess.Popen[str]]:
    """Have another process hold the run lock."""
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", HOLD, str(state.directory.parent)]
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
    assert caught.value.exit_status == 75
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
    holder = Holder.of(os.getpid(), "borgmatic")
    state.take_lease(holder)
    assert RunRecords(state.directory.parent, "default").lease_holder() == holder
    assert f"borgmatic (pid {os.getpid()}, since " in str(holder)
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
    holder = Holder.of(os.getpid(), "borgmatic")
    state.take_lease(replace(holder, created=holder.created - 60))
    assert state.lease_holder() is None


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
        b'{"pid": -1, "created": 0, "command": "", "since": ""}',
        b'{"pid": 1e30, "created": 0, "command": "", "since": ""}',
        b"\xff\xfe",
    ],
)
def test_a_lease_that_makes_no_sense_is_none(state: RunRecords, content: bytes) -> None:
    (state.directory / "lease.json").write_bytes(content)
    assert state.lease_holder() is None


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
                    ["pid", "created", "command", "since", "found_running", "replaced"]
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
        for name in ("lease.json", "journal.json", "run.lock"):
            (state.directory / name).write_bytes(content)
        state.lease_holder()
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
