"""Checks that everything is in place for a backup or a restore, before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin import hookimpl
from vl_borg_hooks.plugin.checks import Check, check
from vl_borg_hooks.plugin.context import Backup, Restore, Target
from vl_borg_hooks.runs.records import Expected
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.snapshots import offer
from vl_borg_hooks.stop_window import proof
from vl_borg_hooks.stop_window.beforehand import require_startable, require_url
from vl_borg_hooks.stop_window.found import answering, find_state, refuse_other_server
from vl_borg_hooks.system.hosts import Host, Owner
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.transfer import rsync
from vl_borg_hooks.victorialogs import limits
from vl_borg_hooks.victorialogs.http import Unanswered
from vl_borg_hooks.victorialogs.layout import PARTITIONS
from vl_borg_hooks.victorialogs.swap import kept_data, refuse_planted


@hookimpl
def backup_checks(backup: Backup) -> Iterator[Check]:
    """Check host, tools, data path and service manager; sets `backup.found`."""
    host = check("host", lambda: _host(backup))
    yield host
    yield from _tools(backup, reachable=host.ok)
    if not host.ok:
        return
    data_path = check("data path", lambda: _data_path(backup))
    yield data_path
    yield check("working directory", lambda: _working_directory(backup))
    url = check("url", lambda: _url(backup))
    is_managed = True
    if backup.instance.service:
        service = check("service manager", lambda: _service(backup))
        yield service
        is_managed = service.ok
    yield url
    if not (data_path.ok and is_managed):
        return
    state = check("VictoriaLogs", lambda: _found(backup))
    yield state
    if state.ok and backup.found is ServiceState.RUNNING:
        health = check("health", lambda: _health(backup))
        yield health
        if health.ok:
            yield check("consistency", lambda: choose(backup))
            if backup.consistency == "stop":
                yield check("next start", lambda: _next_start(backup))


@hookimpl
def restore_checks(restore: Restore) -> Iterator[Check]:
    """Check host, tools, service manager, owner, what is kept, and what VictoriaLogs would delete.

    Sets `restore.found` and `restore.owner`.
    """
    host = check("host", lambda: _host(restore))
    yield host
    yield from _tools(restore, reachable=host.ok)
    if not host.ok:
        return
    service = check("service manager", lambda: _service(restore))
    yield service
    # Of a service that is not there, the manager may say "stopped".
    is_found = False
    if service.ok:
        state = check("VictoriaLogs", lambda: found_by_service(restore))
        yield state
        is_found = state.ok
    url = check("url", lambda: _url(restore))
    yield url
    yield check("working directory", lambda: _working_directory(restore))
    yield check("owner", lambda: _owner(restore))
    yield check("replaced data", lambda: _nothing_kept(restore))
    if is_found and url.ok:
        if restore.found is ServiceState.RUNNING:
            yield check("health", lambda: _health_before_restore(restore))
        yield check("limits", lambda: limits_of(restore, restore.expected))


def _host(target: Target) -> str:
    target.host.check()
    return f"{target.host.name} can be used"


def _tools(target: Target, *, reachable: bool) -> Iterator[Check]:
    """Check each different host once; one that can't be used has been reported already."""
    hosts = dict.fromkeys((LocalHost(), target.host) if reachable else (LocalHost(),))
    for host in hosts:
        yield check(f"rsync on {host.name}", partial(_rsync_on, host))


def _rsync_on(host: Host) -> str:
    rsync.check_version(host)
    return f"rsync on {host.name} is new enough"


def _data_path(backup: Backup) -> str:
    if not backup.host.is_directory(f"{backup.data_directory}/{PARTITIONS}"):
        raise OperatorError(
            f"{backup.instance.data_path} is not a VictoriaLogs data directory: "
            f"it has no {PARTITIONS} directory",
            hint="data_path should be what -storageDataPath of VictoriaLogs says",
        )
    return f"{backup.instance.data_path} is a VictoriaLogs data directory"


def _working_directory(target: Target) -> str:
    refuse_planted(target.host, target.data_directory, unless_roots=isinstance(target, Backup))
    return f"{target.working_directory} is ours or root's, or not there"


def _service(target: Target) -> str:
    target.service.check()
    return f"{target.service.description} can be stopped and started"


def _url(target: Target) -> str:
    """Raise OperatorError if the password can't be read: it is needed to see VictoriaLogs serve."""
    if target.client is None:
        return "without url: in the config, the lock shows whether VictoriaLogs runs"
    return f"VictoriaLogs is asked at {target.client.url}"


def _health(target: Target) -> str:
    """Raise OperatorError if `url` is not that of the VictoriaLogs that is to be stopped."""
    require_url(target)
    return "VictoriaLogs is healthy" if target.client else "VictoriaLogs holds its lock"


def _health_before_restore(restore: Restore) -> str:
    """Raise OperatorError if `url` is another server's; warn of a VictoriaLogs that is ill.

    That may be why it is restored.
    """
    try:
        return _health(restore)
    except Unanswered as error:
        restore.reporter.warn(
            f"{error.what}; if the restore then can't prove itself, stop VictoriaLogs and add --start"
        )
        return error.what


def choose(backup: Backup) -> str:
    """Set how the copy becomes consistent; raises OperatorError if it can't be as the config says.

    With `consistency: auto`, that is by snapshots if VictoriaLogs offers them, else by a stop.
    """
    wanted, client = backup.instance.consistency, backup.client
    backup.consistency_why = f"consistency: {wanted} in the config"
    if wanted == "stop" or client is None:
        return "the final pass is made while VictoriaLogs is stopped"
    try:
        offer.require_offered(backup, client)
        offer.require_hard_links(backup)
    except OperatorError as error:
        if wanted == "snapshot":
            raise
        backup.consistency_why = error.what
        return f"VictoriaLogs is stopped for the final pass: {error.what}"
    backup.consistency = "snapshot"
    if wanted == "auto":
        backup.consistency_why = "VictoriaLogs offers snapshots"
    return "VictoriaLogs is not stopped, because the final pass is made from snapshots"


def _next_start(backup: Backup) -> str:
    require_startable(backup)
    return "nothing keeps VictoriaLogs from starting again after a stop"


def _found(target: Target) -> str:
    target.found = state = find_state(target)
    return f"VictoriaLogs is {state.value}"


def found_by_service(target: Target) -> str:
    """Set `target.found` to what the service manager says, for a restore; raises OperatorError.

    If the data is lost, the lock file is lost too.
    """
    target.found = state = target.service.state()
    if state is ServiceState.STOPPED:
        refuse_other_server(target)
    return f"VictoriaLogs is {state.value}"


def _owner(restore: Restore) -> str:
    restore.owner = _needed_owner(restore)
    return f"the restored files will belong to {restore.owner or 'the user that runs this'}"


def _needed_owner(restore: Restore) -> Owner | None:
    """Return who the restored files must belong to, None if that is the user that runs this.

    The first of these that is known: `restore: owner:`, the owner of the data that is there, the
    user that the service manager runs VictoriaLogs as, the owner of the data directory, the owner of
    the data that was backed up. Raises OperatorError if that is another user and we are not root.
    """
    host = restore.host
    owner = (
        configured_owner(restore)
        or host.owner(f"{restore.data_directory}/{PARTITIONS}")
        or restore.service.owner()
        or host.owner(restore.data_directory)
        or (Owner(*restore.manifest.owner) if restore.manifest.owner else None)
    )
    user = host.effective_user()
    if user == 0 or owner is None:
        return owner
    if owner.user != user:
        raise OperatorError(
            f"the restored files must belong to user {owner.user}, but user {user} runs this",
            hint="run it as root or as that user",
        )
    return None


def configured_owner(restore: Restore) -> Owner | None:
    """Return who `restore: owner:` names, None if it is not set; raises OperatorError."""
    configured = restore.instance.restore.owner
    if configured is None:
        return None
    user, _, group = configured.partition(":")
    owner = restore.host.user_ids(user, group)
    if owner is None:
        raise OperatorError(
            f"{restore.host.name} does not know {configured}, which restore: owner: names"
        )
    return owner


def limits_of(target: Target, expected: Expected) -> str:
    """Return what the running server would delete of `expected`, as too old or too much; warn of it.

    Raises OperatorError if nothing would be left, or if a healthy server does not say. A stopped
    server is asked after the start, and a broken one too: it is a reason to restore.
    """
    client = answering(target)
    if client is None:
        return "what VictoriaLogs keeps is not known before it was started"
    found = limits.read(client, target.host, target.data_directory)
    dropped = proof.dropped_by(found, expected)
    if dropped:
        target.reporter.warn(dropped)
    return dropped or "VictoriaLogs keeps all that is in the copy"


def _nothing_kept(restore: Restore) -> str:
    """Raise OperatorError if data of an earlier restore is kept: which is which must stay clear."""
    for kept in kept_data(restore.host, restore.data_directory):
        raise OperatorError(
            f"{kept.what} of an earlier restore is still kept in {kept.path}",
            hint="return to it (vl-borg-hooks restore --rollback) or remove it (vl-borg-hooks "
            "restore --discard-replaced) first",
        )
    return "no data of an earlier restore is kept"
