"""What a restore replaces, in one sentence, and the operator's word for it."""

from __future__ import annotations

import sys
from datetime import datetime

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.stop_window.found import answering
from vl_borg_hooks.victorialogs import stored
from vl_borg_hooks.victorialogs.swap import holds_data


def replaced(target: Target, rows: int | None, copy: str, *, discard: bool) -> str:
    """Say what is there, and that `rows` rows of `copy` come in its place; empty if there is nothing.

    `rows` is None if that is not known; with `discard`, what was replaced is not kept.
    """
    host, data = target.host, target.data_directory
    if not holds_data(host, data):
        return ""
    days = stored.days(host, data)
    which = f"days {days[0]} to {days[-1]}" if len(days) > 1 else f"day {days[0]}" if days else "it"
    then = "removed after the proof" if discard else "kept until you remove it"
    coming = "an unknown number" if rows is None else f"{rows:,}"
    return (
        f"{_rows_there(target)}, {coming} are in {copy}: {which} will be replaced; what is replaced "
        f"is {then}"
    )


def brings_deleted_back(target: Target, created: str) -> bool:
    """Say whether rows were deleted after a copy was `created`: the copy still has them."""
    try:
        moment = datetime.fromisoformat(created).timestamp()
    except (ValueError, OverflowError):
        return False
    return stored.deleted_since(target.host, target.data_directory, moment)


def ask(target: Target, statement: str, *, yes: bool) -> None:
    """Go on only with the operator's word for `statement`: raises OperatorError without it."""
    if not statement:
        return
    if yes:
        target.reporter.warn(statement)
        return
    if not sys.stdin.isatty():
        raise OperatorError(statement, hint="nothing was changed; to replace it, add --yes")
    # Not by input(), which asks on stdout: that is for results. Nor by the log, which may be quiet.
    question = f"{target.name}: {statement}\nReplace it? [y/N] "
    print(question, end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise OperatorError("not restored, as you wish: nothing was changed")


def _rows_there(target: Target) -> str:
    try:
        if client := answering(target):
            return f"{client.stored_rows():,} rows are served"
        rows = sum(stored.rows_by_day(target.host, target.data_directory).values())
    except OperatorError:
        return f"an unknown number of rows is in {target.instance.data_path}"
    return f"{rows:,} rows are in {target.instance.data_path}"
