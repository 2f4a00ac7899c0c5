"""A check: one thing that has to be in place for a backup or a restore, and whether it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vl_borg_hooks.errors import OperatorError


@dataclass(frozen=True)
class Check:
    """The result of one check.

    `name` is what was looked at, in two or three words. `what` says what was found; if it is not
    `ok`, `hint` says what to do.
    """

    name: str
    ok: bool
    what: str
    hint: str = ""


def check(name: str, look: Callable[[], str]) -> Check:
    """Return the check `name`: ok with what `look` returns, failed if it raises OperatorError."""
    try:
        return Check(name, True, look())
    except OperatorError as error:
        return Check(name, False, error.what, error.hint)
