"""The hash of a file's content: XXH3 of 128 bits.

It is made to find damage: it reads as fast as memory does. It does not keep out somebody who makes a
file with the same hash on purpose. They could write another inventory too. What proves who wrote an
archive is Borg's own authentication.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import xxhash

from vl_borg_hooks.errors import InvalidCopy
from vl_borg_hooks.system import files

CHUNK_BYTES = 1 << 20
_HASH = re.compile(r"[0-9a-f]{32}")


def is_hash(text: str) -> bool:
    """Say whether `text` is what `hash_file` can return."""
    return _HASH.fullmatch(text) is not None


def hash_file(
    path: str | Path,
    *,
    is_cancelled: Callable[[], bool] = lambda: False,
    on_read: Callable[[int], None] = lambda _: None,
) -> str:
    """Return the hash of what is in the file `path`, which is not a link; empty if cancelled.

    `on_read` is called after each piece, with its bytes. Raises InvalidCopy if it can't be read.
    """
    digest = xxhash.xxh3_128()
    try:
        descriptor = files.regular(str(path), os.O_RDONLY)
        try:
            while chunk := os.read(descriptor, CHUNK_BYTES):
                if is_cancelled():
                    return ""
                digest.update(chunk)
                on_read(len(chunk))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InvalidCopy(f"{path}: can't be read: {files.reason(error)}") from None
    return digest.hexdigest()


def stamp(statuses: dict[str, os.stat_result]) -> int:
    """Return a number that changes if one of the files of a directory may have changed.

    `statuses` are by name, in sorted order. It is made of their names, sizes, inodes and ctimes:
    nobody can set a ctime back, and every write sets it.
    """
    digest = xxhash.xxh3_64()
    for name, status in statuses.items():
        digest.update(f"{name}/{status.st_size}/{status.st_ino}/{status.st_ctime_ns}/".encode())
    # As a signed number of 64 bits.
    return digest.intdigest() - (1 << 63)
