"""Who holds a lock or a lease, and until when."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system import processes

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# The holder in a file of an older version has its start by the clock, which may have been set since.
CLOCK_MAY_STEP_SECONDS = 60
# A lease that no process stands for, or only a person's shell, ends after a day: such a call has no end
# that can be seen. A first `borg create` takes many hours.
LONGEST_SECONDS = 24 * 3600
# In which systemd starts the main process of a service after what comes before it.
SERVICE_START_SECONDS = 60


@dataclass(frozen=True)
class Holder:
    """Who holds a lock or a lease: a process, all processes of a systemd service, or nobody we know.

    `created` excludes a later process with the same `pid`, and `taken` is when this was taken. Both
    are in seconds since the boot with the id `boot`, which no change of the clock moves. An older
    version wrote no `boot` and `taken`, and `created` in seconds since 1970. `group` is the
    process group, 0 if that is not known. `service` is the directory of the control group of a
    service; `pid` is 0 then, and also if nobody is known. `is_limited` says that it ends after
    LONGEST_SECONDS at the latest.
    """

    pid: int
    created: float
    command: str
    since: str
    boot: str = ""
    group: int = 0
    taken: float = 0
    service: str = ""
    is_limited: bool = False

    @classmethod
    def of(cls, pid: int, command: str, *, is_limited: bool = False) -> Holder:
        """Return process `pid` as a holder since now; raises OperatorError if it has ended."""
        process = processes.look(pid)
        if process is None:
            raise OperatorError(f"process {pid} has ended")
        return replace(
            cls._since_now(command),
            pid=pid,
            created=process.started,
            group=process.group,
            is_limited=is_limited,
        )

    @classmethod
    def of_service(cls, directory: Path) -> Holder:
        """Return all processes of the service with that control group as a holder since now."""
        return replace(cls._since_now(directory.name), service=str(directory))

    @classmethod
    def unknown(cls) -> Holder:
        """Return a holder that nothing is known of, since now."""
        return replace(cls._since_now("whoever called before-create"), is_limited=True)

    @classmethod
    def _since_now(cls, command: str) -> Holder:
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(0, 0, command, since, _boot(), taken=_since_boot())

    @property
    def age(self) -> float:
        """For how many seconds it has held this; 0 if an older version wrote it."""
        now = _since_boot()
        return now - self.taken if 0 < self.taken <= now and self.boot == _boot() else 0

    def is_same(self, other: Holder) -> bool:
        """Say whether this is the same process or service; of unknown ones nobody can tell."""
        if self.pid == 0:
            return self.service == other.service != ""
        return (self.pid, self.created, self.boot) == (other.pid, other.created, other.boot)

    def still_holds(self) -> Holder | None:
        """Return who still holds this: itself, or what it has left running; None if nobody does."""
        if self.boot and self.boot != _boot():
            return None
        if self.is_limited and self.age > LONGEST_SECONDS:
            return None
        if self.service:
            return self if self._service_goes_on() else None
        if self.pid == 0 or self.is_alive():
            return self
        return self._left_running()

    def _service_goes_on(self) -> bool:
        """Say whether another process of the service runs, or is about to be started."""
        # systemd removes the directory as soon as the service has ended.
        may_start = self.age < SERVICE_START_SECONDS and os.path.isdir(self.service)
        return may_start or processes.others_in(Path(self.service))

    def is_alive(self) -> bool:
        """Say whether that same process still runs."""
        process = processes.look(self.pid)
        return process is not None and not process.is_zombie and self._is(process)

    def _is(self, process: processes.Process) -> bool:
        if self.boot:
            return self.boot == _boot() and process.started == self.created
        import psutil

        return abs(psutil.boot_time() + process.started - self.created) < CLOCK_MAY_STEP_SECONDS

    def _left_running(self) -> Holder | None:
        """Return a process of its group that it has left running, None if there is none.

        If borgmatic is killed, its borg may go on. It is in the same process group (borgmatic starts it
        without another, and ends the whole group by a signal), and began after it. A later run can be
        in that group too, if one script starts both: we and those above us are not meant.
        """
        if not self.group or self.boot != _boot():
            return None
        leader = processes.look(self.group)
        if leader and leader.started > self.created:
            # Its id is used again, which the kernel allows only if its group is empty.
            return None
        ours = processes.ourselves()
        for process in processes.running():
            if (
                process.group == self.group
                and process.started >= self.created
                and process.pid not in ours
            ):
                command = f"what {self.command} has left running"
                return replace(self, pid=process.pid, created=process.started, command=command)
        return None

    def __str__(self) -> str:
        """`COMMAND (pid N, since TIME)`, with the longest time if it has one."""
        process = f"pid {self.pid}, " if self.pid else ""
        limit = f", for {LONGEST_SECONDS // 3600} hours at most" if self.is_limited else ""
        return f"{self.command} ({process}since {self.since}{limit})"


def _boot() -> str:
    """Return the id of this boot, which is another after each."""
    return BOOT_ID.read_text(encoding="ascii").strip()


def _since_boot() -> float:
    """Return the seconds since the boot, with those asleep, as the kernel counts them for a process."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
