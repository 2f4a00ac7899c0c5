"""What a run works on: the objects that hooks are called with."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vl_borg_hooks.services import ServiceManager, State
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.system.hosts import Host, Owner
from vl_borg_hooks.victorialogs.http import Client
from vl_borg_hooks.victorialogs.layout import WORKING_DIRECTORY

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance
    from vl_borg_hooks.staging.known import Known, Notes
    from vl_borg_hooks.transfer import PassResult
    from vl_borg_hooks.transfer.progress import Reporter
    from vl_borg_hooks.victorialogs.changes import Delta, Listing


@dataclass(kw_only=True)
class Target:
    """One instance, its host and its service manager, as a run found them."""

    instance: Instance
    host: Host
    service: ServiceManager
    reporter: Reporter
    # The file that the instance was read from, for the guard to read again.
    config_path: Path
    found: State = State.STOPPED
    # time.monotonic() of the stop command; None before it.
    stopped_at: float | None = None
    # Whether a stop was asked for and the lock has not shown yet that it took place.
    stop_is_open: bool = False
    # Whether VictoriaLogs was told to stop and has not in time: it may stop at any moment.
    may_stop: bool = False
    # Seconds from the stop command to healthy again; None until that was measured.
    downtime: float | None = None

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.instance.name

    @property
    def data_directory(self) -> str:
        """The data path as a path on `host`."""
        return self.instance.data_directory

    @property
    def client(self) -> Client | None:
        """VictoriaLogs over HTTP, None where the config has no `url`."""
        if not self.instance.url:
            return None
        auth = self.instance.http_auth
        return Client(self.instance.url, (auth.username, auth.password()) if auth else None)

    @property
    def working_directory(self) -> str:
        """Our own directory on the data's filesystem, on `host`."""
        return f"{self.data_directory}/{WORKING_DIRECTORY}"


@dataclass(kw_only=True)
class Backup(Target):
    """The backup of one instance."""

    staging: StagingCopy
    warm: PassResult | None = None
    final: PassResult | None = None
    # What the data directory held before the last warm pass; None where there was none.
    listing: Listing | None = None
    # What it held before the warm pass before that; None where there was but one in this run.
    listed_before: Listing | None = None
    # What the final pass has to copy and remove; None where it has to look at everything.
    delta: Delta | None = None
    # Whether hard links can be made on the data's filesystem, and whether they have been made.
    can_freeze: bool = False
    is_frozen: bool = False
    # What the last published copy held, None where that is not known; and what publish notes of
    # this one for the next run.
    known: Known | None = None
    # Whether it was found to be all as it was then, so that only what is new has to be copied; and
    # when all of it was last compared with the data, in seconds since 1970.
    is_as_published: bool = False
    compared: float = 0
    notes: Notes | None = None

    @property
    def frozen(self) -> str:
        """Where, on `host`, hard links keep what the final pass has to copy."""
        return f"{self.working_directory}/frozen"

    @property
    def on_one_filesystem(self) -> bool:
        """Whether the staging copy can share its files with the data, as hard links."""
        data = self.host.local_path(self.data_directory)
        try:
            return data is not None and data.stat().st_dev == self.staging.data.stat().st_dev
        except OSError:
            return False

    def remaining_downtime(self) -> float | None:
        """Return how many seconds of `max_downtime` are left, None outside the stop window."""
        if self.stopped_at is None or self.downtime is not None:
            return None
        passed = time.monotonic() - self.stopped_at
        return max(self.instance.max_downtime - passed, 0.001)


@dataclass(kw_only=True)
class Restore(Target):
    """The restore of one instance from `copy`, a staging or extracted copy."""

    copy: StagingCopy
    start_if_stopped: bool = False
    # Whom the restored files must belong to; None for whoever runs this.
    owner: Owner | None = None
    placed: PassResult | None = None

    @property
    def incoming(self) -> str:
        """Where the copy is put, on `host`, until VictoriaLogs is stopped."""
        return f"{self.working_directory}/incoming"
