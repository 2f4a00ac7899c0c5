"""The state of VictoriaLogs: as a run finds it, and as an error reports it."""

from __future__ import annotations

import contextlib
import time

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.victorialogs import lock
from vl_borg_hooks.victorialogs.http import Client

# How long a server that has only just started may take until it holds its lock.
COMES_UP_SECONDS = 2
POLL_SECONDS = 0.001
DOWN = "VICTORIALOGS IS DOWN"


def find_state(target: Target) -> ServiceState:
    """Return whether VictoriaLogs runs, by its service manager and by the lock, which must agree.

    Raises OperatorError if they do not: stopping that service would not stop that server.
    """
    state = target.service.state()
    if state is ServiceState.RUNNING and not _comes_up(target):
        raise OperatorError(
            f"{target.service.description} runs, but no process holds the lock of "
            f"{target.data_directory} on {target.host.name}",
            hint="check that data_path is what its -storageDataPath says",
        )
    if state is ServiceState.STOPPED:
        refuse_other_server(target)
    return state


def refuse_other_server(target: Target) -> None:
    """Raise OperatorError if a server holds the lock although the service is stopped."""
    if lock.is_held(target.host, target.data_directory):
        raise OperatorError(
            f"{target.service.description} is stopped, but a process holds the lock of "
            f"{target.data_directory} on {target.host.name}",
            hint="name under service: what really runs VictoriaLogs",
        )


def answering(target: Target) -> Client | None:
    """Return the client that can be asked, None unless a healthy server runs on the data.

    A server whose data was removed under it answers `/health`, and ends if it is asked for metrics.
    Raises OperatorError.
    """
    client = target.client
    if client is None or not lock.is_held(target.host, target.data_directory):
        return None
    return client if client.is_healthy() else None


def _comes_up(target: Target) -> bool:
    """Say whether a server holds its lock; wait some seconds for one that has only just started."""
    deadline = time.monotonic() + COMES_UP_SECONDS
    while not lock.is_held(target.host, target.data_directory):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def describe_state(target: Target) -> str:
    """Return the state of VictoriaLogs now, for an error; never raises."""
    try:
        running = lock.is_held(target.host, target.data_directory)
    except Exception:  # noqa: BLE001 - the failure that is told of must not be hidden by another
        maybe = ", IT MAY BE DOWN" if _was_running(target) else ""
        return f"the state of VictoriaLogs is unknown{maybe}"
    if running and target.stop_may_still_come:
        return "VictoriaLogs is running, but was asked to stop: check that it keeps running"
    if running:
        return "VictoriaLogs is running"
    if target.found is ServiceState.STOPPED:
        return "VictoriaLogs is stopped as it was found"
    return DOWN if _was_running(target) else "VictoriaLogs is stopped"


def _was_running(target: Target) -> bool:
    """Say whether VictoriaLogs should be running: it was found so, or a killed run left a journal."""
    if target.found is None:
        with contextlib.suppress(OperatorError):
            return target.records.has_journal
    return target.found is not ServiceState.STOPPED
