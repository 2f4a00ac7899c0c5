"""What a run leaves for the next one: its lock, the journal of the stop window, the lease.

All of it is in `state_path`, one directory per instance, outside of what Borg archives.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from vl_borg_hooks.errors import Busy, InvalidCopy, OperatorError
from vl_borg_hooks.system import files

LARGEST_STATE_FILE = 1 << 20
POLL_SECONDS = 0.05
# When a run ends, its guard holds the lock for a moment to look at the journal. If the run was
# killed, the guard brings VictoriaLogs back first.
LOCK_WAIT_SECONDS = 8


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock or a lease; `created` excludes a later one with the same id."""

    pid: int
    created: float
    command: str
    since: str

    @classmethod
    def of(cls, pid: int, command: str) -> Holder:
        """Return process `pid` as a holder since now; raises OperatorError if it has ended."""
        import psutil

        try:
            created = psutil.Process(pid).create_time()
        except psutil.Error:
            raise OperatorError(f"process {pid} has ended") from None
        return cls(pid, created, command, datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def is_alive(self) -> bool:
        """Say whether that same process still runs."""
        import psutil

        try:
            process = psutil.Process(self.pid)
            return (
                # psutil's clock arithmetic may differ in the last digits between two processes.
                abs(process.create_time() - self.created) < 1
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except (psutil.Error, ValueError, OverflowError):
            # There is no such process, or no process can have that id.
            return False

    def __str__(self) -> str:
        """`COMMAND (pid N, since TIME)`."""
        return f"{self.command} (pid {self.pid}, since {self.since})"


@dataclass(frozen=True)
class Journal:
    """What a run has begun and has to finish.

    `command` began it; `found_running` says whether VictoriaLogs was running then; `replaced` are the
    names of what a restore replaces in the data directory, None before it begins to replace and after
    it has proved the result. `detached` are the days that have to be detached after the start.
    """

    command: str
    found_running: bool
    replaced: list[str] | None = None
    detached: list[str] = field(default_factory=list)


class RunRecords:
    """What the runs on one instance leave for the next: a directory below `state_path`."""

    def __init__(self, state_directory: Path, name: str) -> None:
        self._state_directory = state_directory
        self.directory = state_directory / name

    def create(self) -> None:
        """Make the directory if it is missing, for us only; raises OperatorError."""
        files.private_directory(self._state_directory)
        files.private_directory(self.directory)

    @contextlib.contextmanager
    def run_lock(self, command: str, *, wait: float | None = LOCK_WAIT_SECONDS) -> Iterator[None]:
        """Hold the lock that makes us the only run on this instance; the kernel frees it when we end.

        Waits up to `wait` seconds, without limit if None. Raises Busy, which names the holder.
        """
        self.create()
        path = self._run_lock
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OperatorError(f"could not open {path}: {error.strerror}") from None
        try:
            self._take(descriptor, wait)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(Holder.of(os.getpid(), command))).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def run_that_is_on(self) -> str:
        """Return the current run, in words; empty if there is none."""
        try:
            descriptor = os.open(self._run_lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _named(descriptor)
        finally:
            os.close(descriptor)
        return ""

    @property
    def _run_lock(self) -> Path:
        return self.directory / "run.lock"

    def _take(self, descriptor: int, wait: float | None) -> None:
        if wait is None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy(
                        f"another run holds this instance: {_named(descriptor)}",
                        hint="wait until it has ended",
                    ) from None
                time.sleep(POLL_SECONDS)

    @property
    def _journal(self) -> Path:
        return self.directory / "journal.json"

    def note(self, journal: Journal) -> None:
        """Write `journal` to the disk; to be called before the work that it describes begins."""
        files.write_atomically(self._journal, json.dumps(asdict(journal)).encode())

    def journal(self) -> Journal | None:
        """Return what a run left unfinished, None if it left nothing; raises InvalidCopy.

        Call it only with the run lock held: otherwise a run may still be in its stop window.
        """
        if not self.has_journal:
            return None
        hint = "make sure that VictoriaLogs runs, then remove that file"
        try:
            fields = files.read_json(self._journal, LARGEST_STATE_FILE)
            return TypeAdapter(Journal).validate_python(fields)
        except InvalidCopy as error:
            raise InvalidCopy(error.what, hint=hint) from None
        except ValidationError:
            raise InvalidCopy(f"{self._journal}: is not a journal", hint=hint) from None

    @property
    def has_journal(self) -> bool:
        """Whether a run is in its stop window, or was killed in it."""
        return self._journal.exists()

    def clear_journal(self) -> None:
        """Remove the journal: VictoriaLogs is as it was found, and nothing is left to finish."""
        files.remove(self._journal)

    def note_asked_to_stop(self, server: int, seconds: float) -> None:
        """Note that process `server` was asked to stop, which may take `seconds`.

        Outlives the journal: the next run may come before that stop.
        """
        content = json.dumps({"server": server, "until": time.time() + seconds})
        files.write_atomically(self._asked_to_stop, content.encode())

    def asked_to_stop(self) -> int | None:
        """Return the process that a run has asked to stop and that may still do so, or None."""
        try:
            noted = json.loads(self._asked_to_stop.read_bytes())
            return int(noted["server"]) if time.time() < noted["until"] else None
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def forget_asked_to_stop(self) -> None:
        """Forget it: that process has stopped. In the stop window, so nothing is waited for."""
        with contextlib.suppress(OSError):
            self._asked_to_stop.unlink()

    @property
    def _asked_to_stop(self) -> Path:
        return self.directory / "asked-to-stop.json"

    @property
    def _lease(self) -> Path:
        return self.directory / "lease.json"

    def lease_holder(self) -> Holder | None:
        """Return the running process that archives the staging copy, None if there is none."""
        try:
            holder = _parse_holder(self._lease.read_bytes())
        except FileNotFoundError:
            return None
        return holder if holder and holder.is_alive() else None

    def take_lease(self, holder: Holder) -> None:
        """Claim the published staging copy for `holder`."""
        files.write_atomically(self._lease, json.dumps(asdict(holder)).encode())

    def release_lease(self) -> None:
        """Remove the lease of the staging copy; no error if there is none."""
        files.remove(self._lease)


def _named(descriptor: int) -> str:
    """Return the holder that a lock file names, as text."""
    return str(_parse_holder(os.pread(descriptor, LARGEST_STATE_FILE, 0)) or "unknown")


def _parse_holder(content: bytes) -> Holder | None:
    """Return the holder that `content` names, None for anything else."""
    try:
        fields = json.loads(content)
        return Holder(
            int(fields["pid"]),
            float(fields["created"]),
            str(fields["command"]),
            str(fields["since"]),
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
