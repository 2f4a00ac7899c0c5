"""One file of each kind that VictoriaLogs has in its data directory.

Source: lib/logstorage/filenames.go of VictoriaLogs, and directories written by v1.26.0 and v1.51.1.
"""

from __future__ import annotations

from vl_borg_hooks.victorialogs.layout import (
    DATADB,
    DELETE_TASKS,
    INDEXDB,
    PART_METADATA,
    PARTITIONS,
    PARTS_FILE,
)

_DAY = f"{PARTITIONS}/20260102"
# The files of a part, beside its PART_METADATA.
DATA_PART_FILES = (
    "bloom.bin0",
    "column_idxs.bin",
    "column_names.bin",
    "columns_header.bin",
    "columns_header_index.bin",
    "index.bin",
    "message_bloom.bin",
    "message_values.bin",
    "metaindex.bin",
    "timestamps.bin",
    "values.bin0",
)
INDEX_PART_FILES = ("index.bin", "items.bin", "lens.bin", "metaindex.bin")

# Paths in the data directory. All that a copy must not lack is called as one of these.
SAMPLE = (
    f"{_DAY}/{DATADB}/{PARTS_FILE}",
    *(f"{_DAY}/{DATADB}/18EAFAB146E0F8AC/{name}" for name in (PART_METADATA, *DATA_PART_FILES)),
    f"{_DAY}/{INDEXDB}/{PARTS_FILE}",
    *(f"{_DAY}/{INDEXDB}/18EAFAB146DF62CB/{name}" for name in (PART_METADATA, *INDEX_PART_FILES)),
    DELETE_TASKS,
)
