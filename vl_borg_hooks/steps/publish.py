"""The last step of a backup: prove that the staging copy is consistent, and publish it."""

from __future__ import annotations

import time
from datetime import datetime, timezone

from vl_borg_hooks.errors import InvalidCopy, OperatorError, printable
from vl_borg_hooks.plugin import hookimpl
from vl_borg_hooks.plugin.context import Backup, Copied
from vl_borg_hooks.staging import verify
from vl_borg_hooks.staging.last_published import LastPublished, Notes
from vl_borg_hooks.staging.manifest import Manifest
from vl_borg_hooks.staging.walk import hashed, walk
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.victorialogs import parts
from vl_borg_hooks.victorialogs.layout import PARTITIONS


@hookimpl(specname="publish")
def publish_copy(backup: Backup, copied: Copied) -> Manifest:
    """Check the staging copy by VictoriaLogs' own metadata and publish it; raises InvalidCopy."""
    staging = backup.staging
    last = copied.last_published or _look_at_copy(backup)
    looked_at = last.looked_at if last else time.time()
    # Parts that no parts.json lists: merged since the warm pass, or left by a killed server.
    # VictoriaLogs removes such parts itself when it starts, and empty partitions.
    for stray in [*parts.stray_parts(staging.data), *parts.empty_partitions(staging.data)]:
        LocalHost().remove_tree(str(stray))
    sizes: dict[str, int] = {}
    notes = Notes()
    damaged: list[str] = []
    problems: list[str] = []
    passes = copied.final.after(copied.warm) if copied.warm else copied.final
    started = time.monotonic()
    # About all that has to be read is what is new.
    total = passes.bytes + passes.linked_bytes
    with backup.reporter.counting("the copy", "hashed", total) as on_read:
        found = walk(staging.data, linked=True, before=last)
        present = hashed(staging.data, found, damaged, on_read)
        totals = staging.write_inventory(verify.noting(notes.taking(present), sizes))
    backup.reporter.say(
        f"the copy: {totals.files:,} files looked at, the new ones hashed, in "
        f"{time.monotonic() - started:.2f} s"
    )
    unchanged = last.partitions() if last else {}
    partitions = verify.partitions(staging.data, problems, sizes, unchanged)
    if damaged or problems:
        again = "run it again; if it fails again, the data directory itself is damaged"
        repair = (
            f": extract the file from an older archive and put it in place in "
            f"{backup.instance.data_path}, with VictoriaLogs stopped; or, to back it up as it is, "
            f"remove {staging.inventory_path}"
        )
        raise InvalidCopy(
            f"the staging copy is not consistent: {_first([*damaged, *problems])}",
            hint=again + (repair if damaged else ""),
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
        consistency=backup.consistency,
        consistency_why=printable(backup.consistency_why),
    )
    staging.use_new_inventory()
    staging.publish(manifest)
    notes.keep(backup.records.directory, totals.sha256, looked_at)
    return manifest


def _look_at_copy(backup: Backup) -> LastPublished | None:
    """Return what is known of the last published copy, looked at now, None if nothing is known."""
    last = LastPublished.of(backup.staging, backup.last_manifest, backup.records.directory)
    if last:
        with backup.reporter.counting("the last copy", "read again") as on_read:
            last.look(every=backup.instance.reread_seconds, on_read=on_read)
    return last


def _first(problems: list[str]) -> str:
    return problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _server_version(backup: Backup) -> str:
    """Return the version that the server reports, empty if it does not answer."""
    try:
        return backup.client.version() if backup.client else ""
    except OperatorError:
        return ""
