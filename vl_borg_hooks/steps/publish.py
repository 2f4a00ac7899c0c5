"""The last step of a backup: prove that the staging copy is consistent, and say so."""

from __future__ import annotations

from datetime import datetime, timezone

from vl_borg_hooks.errors import InvalidCopy, OperatorError
from vl_borg_hooks.plugin.context import Backup
from vl_borg_hooks.plugin.manager import hookimpl
from vl_borg_hooks.staging import verify
from vl_borg_hooks.staging.known import Notes
from vl_borg_hooks.staging.manifest import Manifest
from vl_borg_hooks.staging.walk import walk
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.victorialogs import parts
from vl_borg_hooks.victorialogs.layout import PARTITIONS


@hookimpl(specname="publish")
def publish_copy(backup: Backup) -> Manifest:
    """Check the staging copy by VictoriaLogs' own metadata and write its manifest."""
    staging = backup.staging
    if backup.final is None:
        raise AssertionError("publish comes after the final pass")
    # Parts that no longer count: merged since the warm pass, or left by a server that was killed,
    # which removes them itself when it starts.
    for stray in list(parts.stray_parts(staging.data)):
        LocalHost().remove_tree(str(stray))
    sizes: dict[str, int] = {}
    notes = Notes()
    present = notes.taking(walk(staging.data, linked=True, known=backup.known))
    totals = staging.write_inventory(verify.noting(present, sizes))
    problems: list[str] = []
    unchanged = backup.known.partitions() if backup.known else {}
    partitions = verify.partitions(staging.data, problems, sizes, unchanged)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InvalidCopy(
            f"the staging copy is not consistent: {problems[0]}{more}",
            hint="run it again; if this stays, the data directory itself is damaged",
        )
    LocalHost().sync(str(staging.path))
    owner = backup.host.owner(f"{backup.data_directory}/{PARTITIONS}")
    manifest = Manifest(
        instance=backup.name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        data_path=backup.instance.data_path,
        victorialogs_version=_server_version(backup),
        owner=(owner.user, owner.group) if owner else None,
        rows=sum(partition.rows for partition in partitions),
        files=totals.files,
        bytes=totals.bytes,
        partitions=partitions,
        warm_seconds=backup.warm.seconds if backup.warm else None,
        final_seconds=backup.final.seconds,
        downtime_seconds=backup.downtime,
        final_pass="frozen" if backup.is_frozen else "stopped",
        linked=backup.on_one_filesystem,
        inventory_sha256=totals.sha256,
    )
    staging.publish(manifest)
    backup.notes = notes
    return manifest


def _server_version(backup: Backup) -> str:
    """Return what the server says its version is; a copy is no worse for not knowing."""
    try:
        return backup.client.version() if backup.client else ""
    except OperatorError:
        return ""
