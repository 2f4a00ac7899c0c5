"""A VictoriaLogs that the config names no service manager for: it can't be stopped and started."""

from __future__ import annotations

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.services import ServiceManager, ServiceState
from vl_borg_hooks.system.hosts import Host
from vl_borg_hooks.victorialogs import lock


class Unmanaged(ServiceManager):
    """The VictoriaLogs on `data_directory`; the config does not say what starts and stops it."""

    def __init__(self, host: Host, data_directory: str) -> None:
        self._host = host
        self._data_directory = data_directory

    @property
    def description(self) -> str:
        """Say that there is no service manager."""
        return "no service manager"

    def check(self) -> None:
        """Raise OperatorError: what needs this can't be done."""
        raise OperatorError(
            "VictoriaLogs can't be stopped and started, because the config has no service: for it",
            hint="add service: to the config, such as systemd: victorialogs.service",
        )

    def state(self) -> ServiceState:
        """Return what the lock of the data directory says."""
        is_held = lock.is_held(self._host, self._data_directory)
        return ServiceState.RUNNING if is_held else ServiceState.STOPPED

    def stop(self) -> None:
        """Raise OperatorError."""
        self.check()

    def start(self) -> None:
        """Raise OperatorError."""
        self.check()

    def start_command(self) -> str:
        """Return what an operator does."""
        return "start VictoriaLogs as usual"
