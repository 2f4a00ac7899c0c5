"""The backup that VictoriaLogs' own documentation tells operators to make, as a small script.

Snapshots over HTTP, rsync of each, and their removal: "Backup and restore" in its README.md (v1.51.1),
for all days at once.
"""

from __future__ import annotations

from pathlib import Path

_SCRIPT = """\
#!/bin/sh
# {name} URL COPY
set -eu
url=$1 copy=$2
partition=$url/internal/partition
mkdir -p "$copy/partitions"
{flush}snapshots=$(curl -fsS -X POST "$partition/snapshot/create" | tr -d '[]"' | tr , ' ')
for snapshot in $snapshots; do
    day=${{snapshot%/snapshots/*}}
    rsync -a --delete "$snapshot/" "$copy/partitions/${{day##*/}}/"
    curl -fsS --data-urlencode "path=$snapshot" "$partition/snapshot/delete"
done
"""
_FLUSH = 'curl -fsS -X POST "$url/internal/force_flush"\n'


def write_script(path: Path, *, flush: bool = False) -> Path:
    """Write the script to `path` and return that; its arguments are the server's URL and the copy.

    With `flush`, the server makes what is in its buffers searchable first, which the documentation
    does not tell for a backup.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_SCRIPT.format(name=path.name, flush=_FLUSH if flush else ""))
    path.chmod(0o755)
    return path
