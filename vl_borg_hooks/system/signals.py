"""Signals that end us: raised as an exception, but held back while that is not safe."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from vl_borg_hooks.errors import OperatorError, unexpected

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal has asked us to end; `error` is what the operator reads.

    Not an Exception, so that code that goes on after an expected failure does not go on here.
    """

    def __init__(self, number: int) -> None:
        self.error = OperatorError(f"ended by {signal.Signals(number).name}", hint="run it again")
        super().__init__(self.error)


class _Pending:
    """Which signal came while signals were held back."""

    depth = 0
    number: int | None = None


def install() -> None:
    """Make every ending signal raise Interrupted, so that the stop window ends in order."""
    for number in ENDING:
        signal.signal(number, _handle)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Let no ending signal interrupt this block; raise Interrupted after it if one came."""
    _Pending.depth += 1
    try:
        yield
    finally:
        _Pending.depth -= 1
    if _Pending.depth == 0 and _Pending.number is not None:
        number, _Pending.number = _Pending.number, None
        raise Interrupted(number)


def failure(caught: BaseException) -> OperatorError:
    """Return what the operator reads of `caught`.

    If it came while another failure was on its way up, such as an error in a cleanup, and does not know
    the state of VictoriaLogs, it says what that one knew.
    """
    error = _error(caught)
    earlier = caught.__context__
    while earlier is not None and not error.victorialogs:
        known = _error(earlier)
        if known.victorialogs:
            error.what = f"{known.what}; and then {error.what}"
            error.instance = error.instance or known.instance
            error.victorialogs, error.hint = known.victorialogs, known.hint
        earlier = earlier.__context__
    return error


def _error(caught: BaseException) -> OperatorError:
    if isinstance(caught, Interrupted):
        return caught.error
    return caught if isinstance(caught, OperatorError) else unexpected(caught)


def _handle(number: int, frame: FrameType | None) -> None:
    if _Pending.depth:
        _Pending.number = number
        return
    raise Interrupted(number)
