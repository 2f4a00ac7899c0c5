"""Small files: read without trust, and written so that a crash leaves the whole old or new one."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path

from vl_borg_hooks.errors import InvalidCopy, OperatorError


class NotRegular(OSError):
    """A directory, device, FIFO or socket in place of a file."""


def regular(path: str, flags: int) -> int:
    """Open for `open(..., opener=regular)`: does not follow a link or wait for a FIFO.

    Raises NotRegular, or OSError as open does.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise NotRegular(0, "is not a regular file")


def reason(error: Exception) -> str:
    """Return why a file could not be used, for a message that has its path already."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def read_json(path: Path, largest: int) -> object:
    """Return what the JSON file `path` holds, of at most `largest` bytes.

    Does not follow a link or wait for a FIFO. Raises InvalidCopy for anything wrong with it.
    """
    try:
        with open(path, "rb", opener=regular) as file:
            content = file.read(largest + 1)
    except NotRegular:
        raise InvalidCopy(f"{path}: is not a regular file") from None
    except (OSError, ValueError) as error:
        raise InvalidCopy(f"{path}: can't be read: {reason(error)}") from None
    if len(content) > largest:
        raise InvalidCopy(f"{path}: is larger than {largest} bytes")
    try:
        parsed: object = json.loads(content)
    except (ValueError, RecursionError):
        raise InvalidCopy(f"{path}: is not valid JSON") from None
    return parsed


def exists(path: Path) -> bool:
    """Say whether there is a file `path`; raises OperatorError if that can't be found out."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise OperatorError(f"{path}: can't be read: {error.strerror}") from None
    return True


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` by rename, readable by us only; it is on the disk on return.

    Raises OperatorError; `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with open(temporary, "wb", opener=private) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OperatorError(f"could not write {path}: {error.strerror}") from None


def replace(new: Path, path: Path) -> None:
    """Rename `new` to `path`; raises OperatorError."""
    try:
        os.replace(new, path)
    except OSError as error:
        raise OperatorError(f"could not write {path}: {error.strerror}") from None


def remove(path: Path) -> None:
    """Remove the file `path` for good, also after a power loss; no error if it is missing."""
    try:
        path.unlink()
        sync_directory(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OperatorError(f"could not remove {path}: {error.strerror}") from None


def private_directory(path: Path, *, holds: frozenset[str] = frozenset()) -> None:
    """Create directory `path`, for us only, if it is missing.

    If it is ours, open to others, and has nothing in it but what it `holds`, it is closed to them.
    Raises OperatorError if it can't be made, or if users other than root and us could write to it.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
        is_open = stat.S_IMODE(status.st_mode) != 0o700
        if is_open and status.st_uid == os.geteuid() and holds and holds >= {*os.listdir(path)}:
            path.chmod(0o700)
            return
    except OSError as error:
        raise OperatorError(f"could not create {path}: {error.strerror}") from None
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        raise OperatorError(
            f"{path} can be written by others", hint=f"run: chown root {path}; chmod 700 {path}"
        )


def nearest_existing(path: Path) -> Path:
    """Return `path`, or the nearest of its parents that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def same_filesystem(one: Path, other: Path) -> bool:
    """Say whether two paths are on one filesystem, or will be when they are made."""
    return nearest_existing(one).stat().st_dev == nearest_existing(other).stat().st_dev


def private(path: str, flags: int) -> int:
    """Open for `open(..., opener=private)`: a new file is for us only, and a link is not followed."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def sync_directory(path: Path) -> None:
    """Wait until the names in directory `path` are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
