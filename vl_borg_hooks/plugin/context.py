"""What hooks are called with: the instance that a run works on, and what the run has found."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import BaseModel

from vl_borg_hooks.config import OptionsError
from vl_borg_hooks.services.unmanaged import Unmanaged
from vl_borg_hooks.transfer.progress import Reporter
from vl_borg_hooks.victorialogs.layout import WORKING_DIRECTORY

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig
    from vl_borg_hooks.runs.records import Expected, RunRecords
    from vl_borg_hooks.services import ServiceFactory, ServiceManager, ServiceState
    from vl_borg_hooks.staging.copy import StagingCopy
    from vl_borg_hooks.staging.last_published import LastPublished
    from vl_borg_hooks.staging.manifest import Manifest
    from vl_borg_hooks.system.hosts import Host, Owner
    from vl_borg_hooks.transfer import PassResult
    from vl_borg_hooks.victorialogs.http import Client, Flush

Options = TypeVar("Options", bound=BaseModel)


@dataclass(frozen=True)
class Additions:
    """What the plugins add to the config.

    `services` are the service managers by the name that they have under `service:`; `options` are
    the plugins' own sections under `plugins:`, validated, by the model that the plugin gave.
    """

    services: Mapping[str, ServiceFactory]
    options: Mapping[type[BaseModel], BaseModel]

    def of(self, model: type[Options]) -> Options:
        """Return the section of the config that belongs to `model`."""
        found = self.options[model]
        if not isinstance(found, model):
            raise TypeError(f"{found} is not a {model.__name__}")
        return found


@dataclass
class Stop:
    """The stop of VictoriaLogs that a run has asked for."""

    # time.monotonic() of the stop command; None before it.
    asked_at: float | None = None
    # Whether it was asked for, and the lock has not shown yet that VictoriaLogs has stopped.
    is_open: bool = False
    # Whether the stop command failed: a stop may come of it or not.
    has_failed: bool = False
    # Whether VictoriaLogs did not stop in time: it may stop at any moment.
    is_late: bool = False
    # What was not clean about it, as the service manager says: rows may have been lost.
    unclean: str = ""
    # Whether `url` answered while VictoriaLogs was stopped: it is another server's.
    url_is_anothers: bool = False


class Target:
    """One instance, its host and its service manager. Raises ConfigError for a wrong `service:`."""

    # Which command works on it, for the journal: `recover` says what was cut short.
    command = ""
    # Whether VictoriaLogs is stopped to start on other data than it runs on.
    replaces_data = False

    def __init__(
        self, loaded: LoadedConfig, instance: Instance, additions: Additions, records: RunRecords
    ) -> None:
        self.instance = instance
        self.host: Host = instance.host
        self.service = _service(loaded, instance, additions.services, self.host)
        self.records = records
        self.reporter = Reporter(instance.name)
        # The file that the instance was read from, for the guard to read again.
        self.config_path = loaded.path.absolute()
        # The state of VictoriaLogs when this run began; None until the checks have found out.
        self.found: ServiceState | None = None
        self.stop = Stop()
        # Days that were detached before the stop, and that a start attaches. Set by the checks.
        self.detached: list[str] = []
        # Seconds from the stop command to healthy again; None until that was measured.
        self.downtime: float | None = None
        self._additions = additions

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.instance.name

    @property
    def data_directory(self) -> str:
        """The data path as a path on `host`."""
        return self.instance.data_directory

    @cached_property
    def client(self) -> Client | None:
        """VictoriaLogs over HTTP, None if the config has no `url`.

        The password is read once. Raises OperatorError if it, or `tls: ca_file:`, can't be read.
        """
        instance = self.instance
        if not instance.url:
            return None
        from vl_borg_hooks.victorialogs.http import Client

        return Client(
            instance.url,
            authorization=instance.http_auth.header() if instance.http_auth else "",
            keys=instance.auth_keys.read(),
            ca_file=instance.tls.ca_file if instance.tls else "",
            host=self.host if instance.url_over_ssh else None,
        )

    @property
    def working_directory(self) -> str:
        """Our own directory on the data's filesystem, on `host`."""
        return f"{self.data_directory}/{WORKING_DIRECTORY}"

    @property
    def stop_may_still_come(self) -> bool:
        """Whether VictoriaLogs was asked to stop, and may still stop after we have started it."""
        return self.stop.is_open and not self.service.starts_after_stop

    def options(self, model: type[Options]) -> Options:
        """Return the section of the config that a plugin has given `model` for."""
        return self._additions.of(model)

    def remaining_downtime(self) -> float | None:
        """Return how many seconds of `max_downtime` are left, None outside the stop window."""
        if self.stop.asked_at is None or self.downtime is not None:
            return None
        passed = time.monotonic() - self.stop.asked_at
        return max(self.instance.max_downtime - passed, 0.001)


class Backup(Target):
    """The backup of one instance."""

    command = "before-create"

    def __init__(
        self, loaded: LoadedConfig, instance: Instance, additions: Additions, records: RunRecords
    ) -> None:
        super().__init__(loaded, instance, additions, records)
        # Imported here: `after-create`, which is called often, does not need it.
        from vl_borg_hooks.staging.copy import StagingCopy

        self.staging = StagingCopy(Path(instance.staging_path))
        # The manifest of the staging copy as this run found it; None if it was not published.
        self.last_manifest: Manifest | None = None
        # How the copy becomes consistent, and why so: see `consistency` in the config. Set by the
        # checks.
        self.consistency: Literal["stop", "snapshot"] = "stop"
        self.consistency_why = ""
        # The first flush of this run, for a proof that begins with one; None if there was none.
        self.flush: Flush | None = None

    @property
    def on_one_filesystem(self) -> bool:
        """Whether the staging copy can share its bytes with the data, as reflinks or hard links."""
        data = self.host.local_path(self.data_directory)
        try:
            return data is not None and data.stat().st_dev == self.staging.data.stat().st_dev
        except OSError:
            return False


class Restore(Target):
    """The restore of one instance from `copy`, a staging or extracted copy."""

    command = "restore"
    replaces_data = True

    def __init__(
        self,
        loaded: LoadedConfig,
        instance: Instance,
        additions: Additions,
        records: RunRecords,
        copy: StagingCopy,
        manifest: Manifest,
        *,
        start_if_stopped: bool = False,
        discard_replaced: bool = False,
    ) -> None:
        super().__init__(loaded, instance, additions, records)
        self.copy = copy
        self.manifest = manifest
        self.start_if_stopped = start_if_stopped
        # Whether the data that is replaced is removed after the proof, instead of kept.
        self.discard_replaced = discard_replaced
        # Who the restored files must belong to; None for the user that runs this. Set by the checks.
        self.owner: Owner | None = None

    @cached_property
    def expected(self) -> Expected:
        """What VictoriaLogs has to serve afterwards, except what it deletes itself."""
        # Imported here: `after-create`, which is called often, does not need them.
        from vl_borg_hooks.runs.records import Expected
        from vl_borg_hooks.system.local import LocalHost
        from vl_borg_hooks.victorialogs import stored

        return Expected(
            rows={partition.name: partition.rows for partition in self.manifest.partitions},
            bytes=self.manifest.bytes,
            deletions=stored.has_deletions(LocalHost(), str(self.copy.data)),
        )


@dataclass(frozen=True, kw_only=True)
class Copied:
    """How the staging copy was made: what `make_copy` returns."""

    # The last pass that was made while VictoriaLogs was running; None if there was none.
    warm: PassResult | None = None
    # The pass that made the copy consistent.
    final: PassResult
    # When that was: see `final_pass` in the config.
    final_pass: Literal["frozen", "stopped", "snapshot"] = "stopped"
    # Whether the copy may share files with the data, as hard links.
    linked: bool = False
    # The last published copy, if it was looked at: what has not changed is not read again.
    last_published: LastPublished | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Release:
    """The release of the staging copy of `instance`, after borgmatic has ended."""

    instance: Instance
    additions: Additions

    def options(self, model: type[Options]) -> Options:
        """Return the section of the config that a plugin has given `model` for."""
        return self.additions.of(model)


def _service(
    loaded: LoadedConfig,
    instance: Instance,
    services: Mapping[str, ServiceFactory],
    host: Host,
) -> ServiceManager:
    """Return the service manager that the config names for `instance`; raises ConfigError."""
    if not instance.service:
        return Unmanaged(host, instance.data_directory)
    index = loaded.config.instances.index(instance)
    ((kind, options),) = instance.service.items()
    location = ("instances", index, "service", kind)
    if kind not in services:
        raise loaded.error(
            location, f"is not a service manager; there are: {', '.join(sorted(services))}"
        )
    try:
        return services[kind](options, host)
    except OptionsError as error:
        raise loaded.errors(error.below(location)) from None
