"""Copies that share their bytes with the source until one of the two changes (ioctl_ficlone(2)).

XFS and btrfs have them. Unlike a hard link, such a copy is a file of its own: nothing that happens to
the source, or to the copy, touches the other. rsync has no option for them, so they are made before
it runs: it then finds nothing left to copy, and copies what could not be shared.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Sequence

# From linux/fs.h; the same number on all architectures but MIPS, PowerPC, SPARC and Alpha, where the
# call fails and hard links are used.
FICLONE = 0x40049409
_TEMPORARY = ".vl-borg-hooks-new"


def is_possible(source: str, directory: str) -> bool:
    """Say whether file `source` can be shared with a file in `directory`, by trying."""
    trial = f"{directory}/{_TEMPORARY}"
    try:
        _share(source, trial)
    except OSError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(trial)
    return True


def share(source: str, destination: str, paths: Sequence[str]) -> None:
    """Make `paths`, files or directories in `source`, in `destination` too, sharing their bytes.

    What is there already is replaced. What can't be shared, or has just vanished, is left out: rsync
    copies it. Raises OSError if the filesystem can't share, or is full.
    """
    for path in paths:
        _share_any(f"{source}/{path}", f"{destination}/{path}")


def _share_any(source: str, destination: str) -> None:
    try:
        mode = os.lstat(source).st_mode
        if stat.S_ISDIR(mode):
            os.makedirs(destination, mode=0o700, exist_ok=True)
            with os.scandir(source) as entries:
                for entry in entries:
                    _share_any(entry.path, f"{destination}/{entry.name}")
        elif stat.S_ISREG(mode):
            os.makedirs(os.path.dirname(destination), mode=0o700, exist_ok=True)
            _share(source, destination)
    except OSError as error:
        # Vanished, or of another kind than a moment ago: rsync sees what is there then.
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
            raise


def _share(source: str, destination: str) -> None:
    """Make file `destination` with the bytes, permissions and time of `source`; raises OSError."""
    temporary = f"{destination}{_TEMPORARY}"
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    original = os.open(source, os.O_RDONLY | flags)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        shared = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600)
        try:
            fcntl.ioctl(shared, FICLONE, original)
            status = os.fstat(original)
            os.fchmod(shared, status.st_mode & 0o777)
            os.utime(shared, ns=(status.st_atime_ns, status.st_mtime_ns))
            os.rename(temporary, destination)
        except OSError:
            os.unlink(temporary)
            raise
        finally:
            os.close(shared)
    finally:
        os.close(original)
