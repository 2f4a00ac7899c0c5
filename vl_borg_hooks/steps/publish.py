"""The last step of a backup: prove that the staging copy is consistent, and publish it."""

from __future__ import annotations

from datetime import datetime, timezone

from vl_borg_hooks.errors import InvalidCopy, OperatorError
from vl_borg_hooks.plugin import hookimpl
from vl_borg_hooks.plugin.context import Backup, Copied
from vl_borg_hooks.staging import verify
from vl_borg_hooks.staging.last_published import Notes
from vl_borg_hooks.staging.manifest import Manifest
from vl_borg_hooks.staging.walk import walk
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.victorialogs import parts
from vl_borg_hooks.victorialogs.layout import PARTITIONS


@hookimpl(specname="publish")
def publish_copy(backup: Backup, copied: Copied) -> Manifest:
    """Check the staging copy by VictoriaLogs' own metadata and publish it; raises InvalidCopy."""
    staging, last = backup.staging, copied.last_published
    # Parts that no parts.json lists: merged since the warm pass, or left by a killed server.
    # VictoriaLogs removes such parts itself when it starts, and empty partitions.
    for stray in [*parts.stray_parts(staging.data), *parts.empty_partitions(staging.data)]:
        LocalHost().remove_tree(str(stray))
    sizes: dict[str, int] = {}
    notes = Notes()
    present = notes.taking(walk(staging.data, linked=True, before=last))
    totals = staging.write_inventory(verify.noting(present, sizes))
    problems: list[str] = []
    unchanged = last.partitions() if last else {}
    partitions = verify.partitions(staging.data, problems, sizes, unchanged)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InvalidCopy(
            f"the staging copy is not consistent: {problems[0]}{more}",
            hint="run it again; if it fails again, the data directory itself is damaged",
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
        warm_seconds=copied.warm.seconds if copied.warm else None,
        final_seconds=copied.final.seconds,
        downtime_seconds=backup.downtime,
        final_pass=copied.final_pass,
        linked=copied.linked,
        inventory_sha256=totals.sha256,
        unclean_stop=backup.stop.unclean,
    )
    staging.publish(manifest)
    notes.keep(backup.records.directory, totals.sha256, copied.compared)
    return manifest


def _server_version(backup: Backup) -> str:
    """Return the version that the server reports, empty if it does not answer."""
    try:
        return backup.client.version() if backup.client else ""
    except OperatorError:
        return ""
