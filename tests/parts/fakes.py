"""What stands in for the world in unit tests: a clock, a service manager, the hooks, a server."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import final

import pytest
from pydantic import BaseModel

from tests.support import write_config
from vl_borg_hooks.config import LoadedConfig, load
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin import manager
from vl_borg_hooks.plugin.checks import Check
from vl_borg_hooks.plugin.context import Backup, Copied, Release, Restore, Target
from vl_borg_hooks.plugin.relay import Hooks
from vl_borg_hooks.services import ServiceFactory, ServiceManager, ServiceState
from vl_borg_hooks.staging.manifest import Manifest
from vl_borg_hooks.stop_window import guard
from vl_borg_hooks.system.hosts import Owner
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.transfer import PassResult
from vl_borg_hooks.victorialogs import lock
from vl_borg_hooks.victorialogs.http import Client, Unanswered


@final
class Clock:
    """Takes the place of the module `time` where we wait: to sleep takes no time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._due: list[tuple[float, Callable[[], object]]] = []

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return time.time_ns()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for entry in [entry for entry in self._due if entry[0] <= self.now]:
            self._due.remove(entry)
            entry[1]()

    def after(self, seconds: float, do: Callable[[], object]) -> None:
        """Have `do` called once that many seconds were slept."""
        self._due.append((self.now + seconds, do))

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have the modules that wait for VictoriaLogs use this clock."""
        stop_window = ("window", "found", "beforehand", "proof")
        for module in (
            *(f"stop_window.{name}" for name in stop_window),
            *("system.local", "plugin.context"),
        ):
            monkeypatch.setattr(f"vl_borg_hooks.{module}.time", self)


class FakeService(ServiceManager):
    """A VictoriaLogs that holds the real lock of `data` while it runs, in this process."""

    def __init__(self, data: Path, *, running: bool = False) -> None:
        self._lock = data / "flock.lock"
        self._descriptor: int | None = None
        # What was asked of the service manager, and in which state it says that VictoriaLogs is, if
        # that is not the truth.
        self.asked: list[str] = []
        self.says: ServiceState | OperatorError | None = None
        # What the next starts fail with, and every stop.
        self.refusals: list[str] = []
        self.stop_fails = ""
        # What a stop does that is asked for; by default it takes effect at once.
        self.on_stop: Callable[[], object] = self.die
        self.words = ""
        # What was not clean about its end.
        self.end = ""
        if running:
            self.live()

    @property
    def description(self) -> str:
        return "the fake service"

    @property
    def running(self) -> bool:
        return self._descriptor is not None

    def live(self) -> None:
        """Run from now on, whoever has started it."""
        if self._descriptor is None:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._descriptor = descriptor

    def die(self) -> None:
        """Run no more, for whatever reason."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def state(self) -> ServiceState:
        if isinstance(self.says, OperatorError):
            raise self.says
        return self.says or (ServiceState.RUNNING if self.running else ServiceState.STOPPED)

    def stop(self) -> None:
        self.asked.append("stop")
        if self.stop_fails:
            raise OperatorError(self.stop_fails)
        self.on_stop()

    def start(self) -> None:
        self.asked.append("start")
        if self.refusals:
            raise OperatorError(self.refusals.pop(0))
        self.live()

    def last_words(self) -> str:
        return self.words

    def ask_how_it_ended(self) -> Callable[[], str]:
        return lambda: self.end

    def start_command(self) -> str:
        return "fakectl start"


class FakeHooks(Hooks):
    """Records which hook was called for which instance; what is asked of a step is done at once."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        # What is done beside that, by hook, or by hook and instance: `publish default`.
        self.doing: dict[str, Callable[[], object]] = {}
        # What the checks find, and what the occasions that end something were told.
        self.checks: dict[str, list[Check]] = {}
        self.told: dict[str, BaseException | None] = {}
        # Which copy was put in place, by instance.
        self.placed: dict[str, Path] = {}
        self.services: dict[str, ServiceManager] = {}

    @property
    def names(self) -> list[str]:
        """The hooks that were called, in order."""
        return [hook for hook, _ in self.calls]

    def failing(self, hook: str, error: BaseException) -> None:
        """Have `hook` raise `error`."""

        def fail() -> None:
            raise error

        self.doing[hook] = fail

    def _call(self, hook: str, instance: str) -> None:
        self.calls.append((hook, instance))
        for name in (hook, f"{hook} {instance}"):
            self.doing.get(name, lambda: None)()

    def service_managers(self) -> list[Mapping[str, ServiceFactory]]:
        return [{"fake": lambda options, host: self.services[str(options)]}]

    def plugin_options(self) -> list[Mapping[str, type[BaseModel]]]:
        return []

    def before_backup(self, backup: Backup) -> None:
        self._call("before_backup", backup.name)

    def backup_checks(self, backup: Backup) -> list[Check]:
        self._call("backup_checks", backup.name)
        return self.checks.get(backup.name, [])

    def make_copy(self, backup: Backup) -> Copied:
        self._call("make_copy", backup.name)
        return Copied(final=PassResult(1, 2, 0.3))

    def before_stop(self, target: Target) -> None:
        self._call("before_stop", target.name)

    def stop_service(self, target: Target) -> None:
        self._call("stop_service", target.name)
        target.service.stop()

    def start_service(self, target: Target) -> None:
        self._call("start_service", target.name)
        target.service.start()

    def is_healthy(self, target: Target) -> bool:
        # Asked very often: only the first of several questions is a call.
        if not self.calls or self.calls[-1] != ("is_healthy", target.name):
            self.calls.append(("is_healthy", target.name))
        self.doing.get("is_healthy", lambda: None)()
        return lock.is_held(target.host, target.data_directory)

    def after_start(self, target: Target) -> None:
        self._call("after_start", target.name)

    def publish(self, backup: Backup, copied: Copied) -> Manifest:
        self._call("publish", backup.name)
        manifest = a_manifest(backup.name)
        backup.staging.publish(manifest)
        return manifest

    def after_backup(
        self,
        backup: Backup,
        copied: Copied | None,
        manifest: Manifest | None,
        error: BaseException | None,
    ) -> None:
        self.told[backup.name] = error
        self._call("after_backup", backup.name)

    def after_release(self, release: Release) -> None:
        self._call("after_release", release.instance.name)

    def before_restore(self, restore: Restore) -> None:
        self._call("before_restore", restore.name)

    def restore_checks(self, restore: Restore) -> list[Check]:
        self._call("restore_checks", restore.name)
        return self.checks.get(restore.name, [])

    def put_in_place(self, restore: Restore) -> PassResult:
        self._call("put_in_place", restore.name)
        self.placed[restore.name] = restore.copy.path
        return PassResult(1, 2, 0.3)

    def prove_restore(self, restore: Restore) -> None:
        self._call("prove_restore", restore.name)

    def after_restore(self, restore: Restore, error: BaseException | None) -> None:
        self.told[restore.name] = error
        self._call("after_restore", restore.name)


class FakeHost(LocalHost):
    """This machine, but for what the test says of it."""

    def __init__(
        self,
        *,
        free: int = 1 << 40,
        user: int = 0,
        owners: Mapping[str, Owner] | None = None,
        users: Mapping[str, Owner] | None = None,
    ) -> None:
        self.free = free
        self.user = user
        # By the end of the path; who is not here owns nothing.
        self.owners = owners or {}
        self.users = users or {}

    def watch(self, process: int) -> None:
        return None

    def free_bytes(self, path: str) -> int:
        return self.free

    def effective_user(self) -> int:
        return self.user

    def owner(self, path: str) -> Owner | None:
        found = [owner for end, owner in self.owners.items() if path.endswith(end)]
        return found[0] if found else None

    def user_ids(self, user: str, group: str) -> Owner | None:
        return self.users.get(f"{user}:{group}")


class FakeClient(Client):
    """A server with these command-line flags."""

    def __init__(
        self, flags: Mapping[str, str] | None = None, version: str = "v1.51.1", rows: int = 0
    ) -> None:
        super().__init__("http://127.0.0.1:1")
        self.rows = rows
        # None for a server that does not answer.
        self.flags = flags
        # None for a server that does not say which days it has attached.
        self.days: set[str] | None = None
        self.detached: list[str] = []
        # Whether /health answers, when only that is asked; None for whenever anything does.
        self.serves: bool | None = None
        self._version = version

    def require_healthy(self) -> None:
        if self.flags is None:
            raise Unanswered(f"{self.url}/health did not answer")

    def is_healthy(self, seconds: float = 0) -> bool:
        return self.flags is not None if self.serves is None else self.serves

    def stored_rows(self) -> int:
        if self.flags is None:
            raise OperatorError(f"{self.url}/metrics did not answer")
        return self.rows

    def attached_days(self) -> set[str]:
        if self.days is None:
            raise OperatorError(f"{self.url}/internal/partition/list answered with 401")
        return self.days

    def detach(self, day: str) -> None:
        self.detached.append(day)

    def flag(self, name: str) -> str:
        if self.flags is None:
            raise OperatorError(f"{self.url}/metrics did not answer")
        return self.flags.get(name, "")

    def version(self) -> str:
        if self.flags is None:
            raise OperatorError(f"{self.url}/metrics did not answer")
        return self._version

    def flush(self) -> None:
        if self.flags is None:
            raise OperatorError(f"{self.url}/internal/force_flush did not answer")


def a_manifest(instance: str = "default") -> Manifest:
    """The manifest of a copy that holds nothing."""
    return Manifest(
        instance=instance,
        created="2026-11-22T00:00:00+00:00",
        data_path="/var/lib/victoria-logs",
        victorialogs_version="v1.51.1",
        owner=None,
        rows=0,
        files=0,
        bytes=0,
        partitions=[],
        final_pass="stopped",
        linked=False,
        warm_seconds=None,
        final_seconds=0.1,
        downtime_seconds=0.2,
        inventory_sha256="",
    )


def installed(
    monkeypatch: pytest.MonkeyPatch,
    directory: Path,
    names: Sequence[str] = ("default",),
    **options: object,
) -> tuple[FakeHooks, LoadedConfig]:
    """Return fake hooks, which actions find as the only ones, and a config for the instances."""
    hooks = FakeHooks()
    monkeypatch.setattr(manager, "load", lambda built_in, installed=True: hooks)
    instances = []
    for name in names:
        data = directory / f"{name}-data"
        (data / "partitions").mkdir(parents=True, exist_ok=True)
        (data / "flock.lock").touch()
        hooks.services[name] = FakeService(data)
        staging = directory / f"{name}-staging"
        instances.append(
            {
                "name": name,
                "data_path": str(data),
                "staging_path": str(staging),
                "service": {"fake": name},
                **options,
            }
        )
    state = str(directory / "state")
    return hooks, load(write_config(directory / "config.yaml", instances, state_path=state))


def no_guard(monkeypatch: pytest.MonkeyPatch, calls: list[tuple[str, str]]) -> None:
    """Have the guard be armed by an entry in `calls`, and by nothing else."""
    monkeypatch.setattr(guard, "arm", lambda target: calls.append(("guard", target.name)))


def with_client(monkeypatch: pytest.MonkeyPatch, client: Client | None) -> None:
    """Have every target ask `client`."""
    monkeypatch.setattr(Target, "client", client)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of data directory `path`, as a server does that nobody here manages."""
    service = FakeService(path, running=True)
    try:
        yield
    finally:
        service.die()
