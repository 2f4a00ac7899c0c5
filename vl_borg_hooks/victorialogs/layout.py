"""Names in VictoriaLogs' data directory.

Source: lib/logstorage/filenames.go, storage.go and datadb.go of VictoriaLogs, v1.26.0 and newer.
"""

from __future__ import annotations

import re

# Held with flock(LOCK_EX) by a running server until it exits; empty, so there is nothing to copy.
LOCK_FILE = "flock.lock"
PARTITIONS = "partitions"
DATADB = "datadb"
INDEXDB = "indexdb"
PARTS_FILE = "parts.json"
PART_METADATA = "metadata.json"
# Snapshots that newer versions keep inside each partition: hard links to parts, kept by the server.
SNAPSHOTS = "snapshots"
# Which rows are still to be deleted; in the data directory itself, if the version can delete.
DELETE_TASKS = "delete_tasks.json"
# Ours, in the data directory because it must be on the data's own filesystem. VictoriaLogs ignores
# unknown entries beside partitions/.
WORKING_DIRECTORY = ".vl-borg-hooks"

PARTITION_NAME = re.compile(r"\d{8}")

# In rsync's notation, from the data directory: what is never part of a copy.
NOT_COPIED = (
    f"/{LOCK_FILE}",
    f"/{WORKING_DIRECTORY}/",
    "/lost+found/",
    f"/{PARTITIONS}/*/{SNAPSHOTS}/",
    # Newer versions skip them, older ones don't start.
    f"/{PARTITIONS}/.*",
)
# What a restore leaves in place in the data directory.
NOT_REPLACED = frozenset({LOCK_FILE, WORKING_DIRECTORY, "lost+found"})
