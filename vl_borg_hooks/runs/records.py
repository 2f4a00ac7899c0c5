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
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from vl_borg_hooks.errors import Busy, InvalidCopy, OperatorError
from vl_borg_hooks.runs.holder import Holder
from vl_borg_hooks.system import files
from vl_borg_hooks.system.log import logger

LARGEST_STATE_FILE = 1 << 20
POLL_SECONDS = 0.05
# When a run ends, its guard holds the lock for a moment to look at the journal.
LOCK_WAIT_SECONDS = 8
# What the run lock names as the command of the guard, and of `recover`.
RECOVERY = "recover"
# Releases a lease, whoever holds it.
FORCE_RELEASE = "vl-borg-hooks after-create --force"


@dataclass(frozen=True)
class Expected:
    """What VictoriaLogs has to serve after a restore: the rows of each partition, by its name.

    `bytes` is about the size of all parts. `deletions` says that it has still to delete some of
    these rows.
    """

    rows: dict[str, int]
    bytes: int
    deletions: bool = False


@dataclass(frozen=True)
class Journal:
    """What a run has begun and has to finish.

    `command` began it; `found_running` says whether VictoriaLogs was running then; `replaced` are the
    names of what a restore replaces in the data directory, None before it begins to replace and after
    it has proved or undone that. Only of a restore: `source` is the name of what it puts in place,
    in our working directory, `expected` what has to be served then, and `discard` says that what was
    replaced is removed after the proof. `detached` are the days that have to be detached after the
    start.
    """

    command: str
    found_running: bool
    replaced: list[str] | None = None
    source: str = ""
    expected: Expected | None = None
    discard: bool = False
    detached: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Published:
    """A copy that was published for the borgmatic `holder`: checksums of its manifest, its config."""

    holder: Holder
    manifest_sha256: str
    config_sha256: str


@dataclass(frozen=True)
class Making:
    """A snapshot of `day` that was asked for at `since` (since 1970); `known` are those before it.

    `after` is the number of the last one that the server had made for us; 0 if it had made none.
    """

    day: str
    since: float
    known: list[str]
    after: int = 0


@dataclass(frozen=True)
class SnapshotRecord:
    """Snapshots that a run has made, by the server's paths, and those that it has asked for."""

    made: list[str]
    making: list[Making]


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
    def run_lock(
        self, command: str, *, wait: float | None = LOCK_WAIT_SECONDS, for_recovery: float = 0
    ) -> Iterator[None]:
        """Hold the lock that makes us the only run on this instance; the kernel frees it when we end.

        Waits up to `wait` seconds, without limit if None. A guard frees it after each try to bring
        VictoriaLogs back: that is waited for up to `for_recovery` seconds. Raises Busy, which names
        the holder, or OperatorError if that is a recovery.
        """
        self.create()
        path = self._run_lock
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OperatorError(f"could not open {path}: {error.strerror}") from None
        try:
            self._take(descriptor, wait, for_recovery)
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
            return str(_holder(descriptor) or "unknown")
        finally:
            os.close(descriptor)
        return ""

    @property
    def _run_lock(self) -> Path:
        return self.directory / "run.lock"

    def _take(self, descriptor: int, wait: float | None, for_recovery: float) -> None:
        if wait is None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return
        began = time.monotonic()
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                waited = time.monotonic() - began
                if waited >= wait:
                    holder = _holder(descriptor)
                    if holder is None or holder.command != RECOVERY:
                        raise Busy(
                            f"another run holds this instance: {holder or 'unknown'}",
                            hint="wait until it has ended",
                            seconds=holder.age if holder else 0,
                        ) from None
                    if not told:
                        logger.warning("waiting for %s, which brings VictoriaLogs back", holder)
                        told = True
                    if waited >= for_recovery:
                        # Not Busy: what it tries to bring back is not backed up until that is done.
                        raise OperatorError(
                            f"VictoriaLogs is still being brought back by {holder}",
                            hint=f"see what that reports: journalctl -u 'vl-borg-hooks-guard-*', or "
                            f"{self.directory}/guard.log",
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
        """Whether a run is in its stop window, or was killed in it; raises OperatorError."""
        return files.exists(self._journal)

    def clear_journal(self) -> None:
        """Remove the journal: VictoriaLogs is as it was found, and nothing is left to finish."""
        files.remove(self._journal)

    def note_asked_to_stop(self, server: int, seconds: float) -> None:
        """Note that process `server` was asked to stop, which may take `seconds`.

        Outlives the journal: the next run may come before that stop.
        """
        content = json.dumps({"server": server, "until": time.time() + seconds})
        files.write_atomically(self._asked_to_stop, content.encode())

    def asked_to_stop(self, server: int) -> float:
        """Return for how many seconds process `server` may still stop because a run asked it to.

        0 if no run did, or if it has had its time.
        """
        try:
            noted = json.loads(self._asked_to_stop.read_bytes())
            return max(float(noted["until"]) - time.time(), 0) if noted["server"] == server else 0
        except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
            return 0

    def forget_asked_to_stop(self) -> None:
        """Forget it: that process has stopped, or will not. In the stop window, so no fsync."""
        with contextlib.suppress(OSError):
            self._asked_to_stop.unlink()

    @property
    def _asked_to_stop(self) -> Path:
        return self.directory / "asked-to-stop.json"

    @property
    def _lease(self) -> Path:
        return self.directory / "lease.json"

    def lease_holder(self) -> Holder | None:
        """Return who archives the staging copy, None if nobody does.

        That can be what a killed borgmatic has left running. Raises InvalidCopy if the lease can't be
        read: Borg may be reading the staging copy.
        """
        lease = self.lease()
        return lease.still_holds() if lease else None

    def lease(self) -> Holder | None:
        """Return who took the lease last, None if it was released; raises InvalidCopy."""
        if not files.exists(self._lease):
            return None
        hint = f"make sure that no borgmatic runs, then: {FORCE_RELEASE}"
        try:
            fields = files.read_json(self._lease, LARGEST_STATE_FILE)
        except InvalidCopy as error:
            raise InvalidCopy(error.what, hint=hint) from None
        holder = _parsed(fields)
        if holder is None:
            raise InvalidCopy(f"{self._lease}: is not a lease", hint=hint)
        return holder

    def take_lease(self, holder: Holder) -> None:
        """Claim the published staging copy for `holder`."""
        files.write_atomically(self._lease, json.dumps(asdict(holder)).encode())

    def release_lease(self) -> None:
        """Remove the lease of the staging copy; no error if there is none."""
        files.remove(self._lease)

    @property
    def _snapshots(self) -> Path:
        return self.directory / "snapshots.json"

    def note_snapshots(self, record: SnapshotRecord) -> None:
        """Note which snapshots there are to delete; to be called before they are made."""
        if record.made or record.making:
            files.write_atomically(self._snapshots, json.dumps(asdict(record)).encode())
        else:
            files.remove(self._snapshots)

    @property
    def has_snapshots(self) -> bool:
        """Whether a run has made snapshots that are not deleted yet; raises OperatorError."""
        return files.exists(self._snapshots)

    def snapshots(self) -> SnapshotRecord | None:
        """Return which snapshots a run has left, None if it left none; raises InvalidCopy."""
        if not self.has_snapshots:
            return None
        hint = "delete the snapshots that a run has left in partitions/*/snapshots, then remove that file"
        try:
            fields = files.read_json(self._snapshots, LARGEST_STATE_FILE)
            return TypeAdapter(SnapshotRecord).validate_python(fields)
        except InvalidCopy as error:
            raise InvalidCopy(error.what, hint=hint) from None
        except ValidationError:
            raise InvalidCopy(f"{self._snapshots}: is no record of snapshots", hint=hint) from None

    @property
    def _published(self) -> Path:
        return self.directory / "published.json"

    def note_published(self, published: Published) -> None:
        """Note what has been published, and for whom."""
        files.write_atomically(self._published, json.dumps(asdict(published)).encode())

    def published(self) -> Published | None:
        """Return what was published last for a borgmatic, None if that is not known."""
        try:
            fields = files.read_json(self._published, LARGEST_STATE_FILE)
            return TypeAdapter(Published).validate_python(fields)
        except (InvalidCopy, ValidationError):
            return None


def _holder(descriptor: int) -> Holder | None:
    """Return the holder that a lock file names, None if it names none."""
    try:
        return _parsed(json.loads(os.pread(descriptor, LARGEST_STATE_FILE, 0)))
    except (ValueError, RecursionError):
        return None


def _parsed(fields: object) -> Holder | None:
    """Return the holder that `fields` describe, None for anything else."""
    try:
        return TypeAdapter(Holder).validate_python(fields)
    except ValidationError:
        return None
