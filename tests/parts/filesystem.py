"""A filesystem of a kind of its own, in a file, mounted for a test."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

MAKE = {
    "xfs": ("mkfs.xfs", "-q", "-m", "reflink=1"),
    "btrfs": ("mkfs.btrfs", "-q"),
    "ext4": ("mkfs.ext4", "-q"),
}
# The smallest XFS is 300 MB. The file is sparse.
BYTES = 512 << 20


@contextlib.contextmanager
def filesystem(kind: str, directory: Path) -> Iterator[Path]:
    """Mount a new filesystem of `kind` below `directory` and yield its root; needs root.

    subprocess.CalledProcessError if it can't be made or mounted.
    """
    image, root = directory / f"{kind}.img", directory / kind
    root.mkdir(parents=True)
    with open(image, "wb") as file:
        file.truncate(BYTES)
    subprocess.run([*MAKE[kind], str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(root)], check=True)
    try:
        yield root
    finally:
        # Lazily: a program of a failed test that is still in there must not keep it mounted.
        subprocess.run(["umount", "--lazy", str(root)], check=True)
        image.unlink()
