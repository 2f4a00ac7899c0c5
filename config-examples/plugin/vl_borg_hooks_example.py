"""An example plugin: a service manager, and a metric that shows the stop window to monitoring."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, RootModel

from vl_borg_hooks import config
from vl_borg_hooks.plugin import hookimpl
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.services import ServiceFactory, ServiceManager, ServiceState
from vl_borg_hooks.system.hosts import Host


class Program(RootModel[str]):
    """What the config has under `service: supervisor:`, the name of a program."""

    root: str = Field(pattern=r"^[\w:.-]+$")


class Supervisor(ServiceManager):
    """A program of supervisord: `service: {supervisor: victorialogs}`."""

    def __init__(self, options: object, host: Host) -> None:
        # Raises the error that names file and line.
        self._program = config.options(Program, options).root
        self._host = host

    @property
    def description(self) -> str:
        return f"supervisord program {self._program}"

    def state(self) -> ServiceState:
        # supervisorctl status exits with 0 for running and 3 for stopped.
        status = self._host.run(["supervisorctl", "status", self._program], ok=(0, 3))
        return ServiceState.RUNNING if status.exit_status == 0 else ServiceState.STOPPED

    def stop(self) -> None:
        self._host.run(["supervisorctl", "stop", self._program])

    def start(self) -> None:
        if self.state() is ServiceState.STOPPED:
            self._host.run(["supervisorctl", "start", self._program])


@hookimpl
def service_managers() -> Mapping[str, ServiceFactory]:
    return {"supervisor": Supervisor}


class MetricOptions(BaseModel):
    """What the config has under `plugins: stop_window_metric:`."""

    model_config = ConfigDict(extra="forbid")

    # Read by node_exporter's textfile collector; an alert rule can then say
    # `unless victorialogs_in_stop_window`.
    directory: Path = Path("/var/lib/node_exporter")


@hookimpl
def plugin_options() -> Mapping[str, type[BaseModel]]:
    return {"stop_window_metric": MetricOptions}


@hookimpl
def before_stop(target: Target) -> None:
    _write_metric(target, 1)


@hookimpl
def after_start(target: Target) -> None:
    _write_metric(target, 0)


def _write_metric(target: Target, value: int) -> None:
    """Write a file for each instance, by a rename: the collector never reads half of one."""
    directory = target.options(MetricOptions).directory
    new = directory / f".victorialogs_stop_window_{target.name}.new"
    new.write_text(f'victorialogs_in_stop_window{{instance="{target.name}"}} {value}\n')
    os.replace(new, directory / f"victorialogs_stop_window_{target.name}.prom")
