"""Passwords and keys, from a file or from the environment."""

from __future__ import annotations

import os
import stat

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system import files
from vl_borg_hooks.system.log import logger

LARGEST_SECRET = 1 << 16


def read(path: str) -> str:
    """Return the secret in the file `path`, without the end of its line; raises OperatorError.

    A link is followed: containers have links to their secrets. Does not wait for a FIFO, nor read a
    device. Warns if every user of this machine can read it.
    """
    try:
        with open(path, "rb", opener=_not_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OperatorError(f"{path} is not a regular file", hint="name a file there")
            content = file.read(LARGEST_SECRET + 1)
    except OSError as error:
        raise OperatorError(f"could not read {path}: {files.reason(error)}") from None
    if len(content) > LARGEST_SECRET:
        raise OperatorError(f"{path} is larger than {LARGEST_SECRET} bytes: it is not a secret")
    # Containers have their secrets on a read-only filesystem of their own, readable for all in there.
    if status.st_mode & stat.S_IROTH and not os.statvfs(path).f_flag & os.ST_RDONLY:
        logger.warning(
            "%s can be read by every user of this machine: run: chmod o-r %s", path, path
        )
    try:
        secret = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise OperatorError(f"{path} is not UTF-8 text") from None
    return _checked(secret, path)


def from_environment(name: str) -> str:
    """Return the secret in the variable `name`; raises OperatorError."""
    if name not in os.environ:
        raise OperatorError(f"there is no ${name} in the environment")
    return _checked(os.environ[name], f"${name}")


def _checked(secret: str, where: str) -> str:
    if not secret:
        raise OperatorError(f"{where} is empty")
    if any(character in "\r\n\0" for character in secret):
        raise OperatorError(f"{where} has more than one line, or a NUL")
    return secret


def _not_waiting(path: str, flags: int) -> int:
    """Open for `open(..., opener=_not_waiting)`: does not wait for the writer of a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
