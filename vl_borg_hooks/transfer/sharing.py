"""Files of a copy that share their bytes with the source: as reflinks, or as hard links.

A reflink (ioctl_ficlone(2), on XFS and btrfs) shares bytes until one of the two files changes. It is a
file of its own: nothing that happens to the source, or to the copy, touches the other. A hard link is
a second name of one file. rsync has no option for the first, and does not say how much it has linked.
So both are made before it runs: it then finds nothing left to copy, and copies what can't be shared.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

# From linux/fs.h; the same number on all architectures but MIPS, PowerPC, SPARC and Alpha, where the
# call fails and hard links are used.
FICLONE = 0x40049409
_TEMPORARY = ".vl-borg-hooks-new"
# rsync gives its copies none of them. A hard link would have them.
_SPECIAL_BITS = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX

# Makes file `destination` of file `source`, in the place of what is there, and returns whether it
# had to; raises OSError.
Way: TypeAlias = Callable[[str, str, os.stat_result], bool]


def reflink(source: str, destination: str, status: os.stat_result) -> bool:
    """Make file `destination` with the bytes, permissions and time of `source`; raises OSError."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    original = os.open(source, os.O_RDONLY | flags)
    try:
        with _replacing(destination) as temporary:
            shared = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600)
            try:
                fcntl.ioctl(shared, FICLONE, original)
                status = os.fstat(original)
                os.fchmod(shared, status.st_mode & 0o777)
                os.utime(shared, ns=(status.st_atime_ns, status.st_mtime_ns))
            finally:
                os.close(shared)
    finally:
        os.close(original)
    return True


def hard_link(source: str, destination: str, status: os.stat_result) -> bool:
    """Make `destination` a name of file `source`, unless it is one; raises OSError."""
    if status.st_mode & _SPECIAL_BITS:
        return False
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.lstat(destination), status):
            return False
    with _replacing(destination) as temporary:
        os.link(source, temporary, follow_symlinks=False)
    return True


def is_possible(way: Way, source: str, directory: str) -> bool:
    """Say whether file `source` can be shared with a file in `directory`, by trying."""
    trial = f"{directory}/{_TEMPORARY}-trial"
    try:
        way(source, trial, os.lstat(source))
    except OSError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(trial)
    return True


def share(
    way: Way,
    source: str,
    destination: str,
    paths: Sequence[str],
    on_file: Callable[[int], None],
) -> None:
    """Make `paths`, files or directories in `source`, in `destination` too, sharing their bytes.

    What is there already is replaced. What can't be shared, or has just vanished, is left out: rsync
    copies it. `on_file` is called after each file, with its size. Raises OSError if the filesystem
    can't share, or is full.
    """
    for path in paths:
        # If a file is in the place of a directory, rsync removes it.
        with contextlib.suppress(NotADirectoryError):
            inside = ""
            for name in os.path.dirname(path).split("/"):
                inside = f"{inside}/{name}"
                _make_directory(f"{destination}{inside}")
            _share(way, f"{source}/{path}", f"{destination}/{path}", on_file)


def size(source: str, paths: Sequence[str], is_ended: Callable[[], bool]) -> int:
    """Return the bytes of all files at `paths` in `source`; what has just vanished is left out.

    0 if it `is_ended` before all of them are known.
    """
    total = 0
    for path in paths:
        if is_ended():
            return 0
        total += _size(f"{source}/{path}")
    return total


def _size(path: str) -> int:
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            return status.st_size
        with os.scandir(path) as entries:
            return sum(
                _size(entry.path)
                if entry.is_dir(follow_symlinks=False)
                else entry.stat(follow_symlinks=False).st_size
                for entry in entries
            )
    return 0


def _share(way: Way, source: str, destination: str, on_file: Callable[[int], None]) -> None:
    try:
        status = os.lstat(source)
        if stat.S_ISDIR(status.st_mode):
            _make_directory(destination)
            with os.scandir(source) as entries:
                for entry in entries:
                    _share(way, entry.path, f"{destination}/{entry.name}", on_file)
        elif stat.S_ISREG(status.st_mode) and way(source, destination, status):
            on_file(status.st_size)
    except OSError as error:
        # Vanished, or of another kind than a moment ago: rsync sees what is there then.
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
            raise


def _make_directory(path: str) -> None:
    """Make directory `path`, also in the place of a link, which nothing may be written through."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if os.path.islink(path):
            os.unlink(path)
            os.mkdir(path, 0o700)


@contextlib.contextmanager
def _replacing(destination: str) -> Iterator[str]:
    """Yield the name to make a file under, which then takes the place of `destination`."""
    temporary = f"{destination}{_TEMPORARY}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        yield temporary
        os.rename(temporary, destination)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
