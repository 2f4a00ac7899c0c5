"""Stopping, starting and asking VictoriaLogs, through the service manager of the config."""

from __future__ import annotations

from collections.abc import Mapping

from vl_borg_hooks.plugin import hookimpl
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.services import ServiceFactory, command, systemd
from vl_borg_hooks.victorialogs import lock


@hookimpl
def service_managers() -> Mapping[str, ServiceFactory]:
    """Return `systemd` and `command`."""
    return {"systemd": systemd.from_config, "command": command.from_config}


@hookimpl
def stop_service(target: Target) -> bool:
    """Ask the service manager of the config to stop VictoriaLogs."""
    target.service.stop()
    return True


@hookimpl
def start_service(target: Target) -> bool:
    """Ask the service manager of the config to start VictoriaLogs."""
    target.service.start()
    return True


@hookimpl
def is_healthy(target: Target) -> bool:
    """Say whether a server holds the data's lock, and with a `url`, whether `/health` is OK too.

    `url` is asked first: it refuses at no cost until the server serves.
    """
    if target.client and not target.stop.url_is_anothers and not target.client.is_healthy():
        return False
    return lock.is_held(target.host, target.data_directory)
