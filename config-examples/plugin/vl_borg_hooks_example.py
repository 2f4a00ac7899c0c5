"""An example plugin: a service manager, and two occasions to tell monitoring of the stop window."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pluggy

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.services import ServiceFactory, ServiceManager, State
from vl_borg_hooks.system.hosts import Host

hookimpl = pluggy.HookimplMarker("vl_borg_hooks")

# Read by node_exporter's textfile collector; an alert rule can then say `unless victorialogs_in_stop_window`.
METRIC = Path(
    os.environ.get("VL_STOP_WINDOW_METRIC", "/var/lib/node_exporter/victorialogs_stop_window.prom")
)


class Supervisor(ServiceManager):
    """A program of supervisord: `service: {supervisor: victorialogs}`."""

    def __init__(self, options: object, host: Host) -> None:
        if not isinstance(options, str):
            raise OperatorError("service: supervisor: should be the name of a program")
        self._program = options
        self._host = host

    @property
    def description(self) -> str:
        return f"supervisord program {self._program}"

    def state(self) -> State:
        # supervisorctl status exits with 0 for running and 3 for stopped.
        status = self._host.run(["supervisorctl", "status", self._program], ok=(0, 3))
        return State.RUNNING if status.exit_status == 0 else State.STOPPED

    def stop(self) -> None:
        self._host.run(["supervisorctl", "stop", self._program])

    def start(self) -> None:
        if self.state() is State.STOPPED:
            self._host.run(["supervisorctl", "start", self._program])


@hookimpl
def service_managers() -> Mapping[str, ServiceFactory]:
    return {"supervisor": Supervisor}


@hookimpl
def before_stop(target: Target) -> None:
    _write_metric(target.name, 1)


@hookimpl
def after_start(target: Target) -> None:
    _write_metric(target.name, 0)


def _write_metric(instance: str, value: int) -> None:
    METRIC.write_text(f'victorialogs_in_stop_window{{instance="{instance}"}} {value}\n')
