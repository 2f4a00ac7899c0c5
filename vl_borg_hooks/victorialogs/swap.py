"""Put restored data in the place of what was there, by renames that can be undone.

In our working directory, on the data's own filesystem, `incoming/` holds what is put in place, and
`replaced/` what was there before. The journal has the names of what was there before the first
rename. So an undo brings that back, even if it is interrupted and begun again.

`kept/` holds data that was replaced and is kept for the operator, each in a directory that is named
after the time: one rename keeps it, with all that has to be known about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system.hosts import Host
from vl_borg_hooks.victorialogs.layout import (
    DELETE_TASKS,
    NOT_REPLACED,
    PARTITIONS,
    WORKING_DIRECTORY,
)

INCOMING = "incoming"
_REPLACED = "replaced"
_KEPT = "kept"
_DISCARDED = "discarded"
_TIME = "%Y%m%dT%H%M%S.%fZ"


@dataclass(frozen=True)
class Kept:
    """Data that was replaced and is kept at `path`. `source` is its name for a Swap."""

    path: str
    source: str

    @property
    def since(self) -> datetime | None:
        """When it was replaced; None if its name doesn't say."""
        try:
            moment = datetime.strptime(self.source.rpartition("/")[2], _TIME)
        except ValueError:
            return None
        return moment.replace(tzinfo=timezone.utc)


class Swap:
    """The swap in `data_directory` on `host`, which must be locked.

    `originals` are the names of what was there before the swap; `source` is what is put in place:
    `incoming`, or data that was kept.
    """

    def __init__(
        self,
        host: Host,
        data_directory: str,
        originals: Sequence[str] = (),
        source: str = INCOMING,
    ) -> None:
        self._host = host
        self._data = data_directory
        self._originals = originals
        self._working = f"{data_directory}/{WORKING_DIRECTORY}"
        self.incoming = f"{self._working}/{INCOMING}"
        self.replaced = f"{self._working}/{_REPLACED}"
        self._source = f"{self._working}/{source}"

    @property
    def is_done(self) -> bool:
        """Whether all of the source is in place."""
        return not self._host.entries(self._source)

    def do(self) -> None:
        """Move what is there to `replaced/`, and what is in the source into its place."""
        self._host.make_directory(self.replaced, 0o700)
        for name in self._originals:
            self._host.rename(f"{self._data}/{name}", f"{self.replaced}/{name}")
        for name in self._host.entries(self._source):
            self._host.rename(f"{self._source}/{name}", f"{self._data}/{name}")

    def undo(self) -> None:
        """Bring back what was there, no matter how far a swap or an undo has come.

        What was put in place goes back to the source. What a server has stored in its place is kept.
        """
        waiting = set(self._host.entries(self._source))
        replaced = self._host.entries(self.replaced)
        for name in present(self._host, self._data):
            # Put there by the swap, or made by a server that ran on it. An original that was not
            # moved yet, or has been brought back already, is neither.
            if name in replaced or name not in self._originals:
                self._take_out(name, waiting)
        for name in replaced:
            self._host.rename(f"{self.replaced}/{name}", f"{self._data}/{name}")

    def keep(self, directory: str) -> str:
        """Keep what is in `directory`, which is ours, for the operator; return where."""
        path = self._new_kept()
        self._host.rename(directory, path)
        return path

    def discard(self, kept: Kept) -> None:
        """Remove data that was kept; if that is interrupted, half of it is not offered any more."""
        discarded = f"{self._working}/{_DISCARDED}"
        self._host.remove_tree(discarded)
        self._host.rename(kept.path, discarded)
        self.clean_up()

    def clean_up(self) -> None:
        """Remove our working directory with all that is left in it, except data that is kept."""
        kept = kept_data(self._host, self._data)
        if not kept:
            self._host.remove_tree(self._working)
            return
        sources = {entry.source for entry in kept}
        for name in self._host.entries(self._working):
            if name != _KEPT:
                self._host.remove_tree(f"{self._working}/{name}")
        for name in self._host.entries(f"{self._working}/{_KEPT}"):
            if f"{_KEPT}/{name}" not in sources:
                self._host.remove_tree(f"{self._working}/{_KEPT}/{name}")

    def discard_leftovers(self) -> None:
        """Remove what is left in our working directory, if there is no journal that it belongs to.

        Raises OperatorError if it has replaced data: the journal that named it is lost, so only the
        operator can know whether it is still needed.
        """
        if not self._host.is_directory(self._working):
            return
        replaced = self._host.entries(self.replaced)
        if replaced:
            raise OperatorError(
                f"{self.replaced} holds {', '.join(sorted(replaced))}, set aside by a restore, and "
                "the journal of that restore is lost",
                hint=f"move it back to {self._data} with VictoriaLogs stopped, or remove it",
            )
        self.clean_up()

    def _take_out(self, name: str, waiting: set[str]) -> None:
        path = f"{self._data}/{name}"
        if name not in waiting:
            self._host.make_directory(self._source, 0o700)
            self._host.rename(path, f"{self._source}/{name}")
        elif name == PARTITIONS and _has_entries(self._host, path):
            # The source has its own, so a server that was started in between made these.
            kept = self._new_kept()
            self._host.make_directory(kept, 0o700)
            self._host.rename(path, f"{kept}/{name}")
        else:
            self._host.remove_tree(path)

    def _new_kept(self) -> str:
        """Return a name for data to keep, which no other has; its parent exists."""
        parent = f"{self._working}/{_KEPT}"
        self._host.make_directory(parent, 0o700)
        return f"{parent}/{datetime.now(timezone.utc).strftime(_TIME)}"


def refuse_planted(host: Host, data_directory: str) -> None:
    """Raise OperatorError if our working directory in `data_directory` is not ours.

    Who may write to the data could put a link there, or a directory of their own.
    """
    path = f"{data_directory}/{WORKING_DIRECTORY}"
    owner = host.owner(path)
    if owner is None:
        return
    if not host.is_directory(path):
        raise OperatorError(f"{path} on {host.name} is a link or a file", hint="remove it")
    if owner.user != host.effective_user():
        raise OperatorError(
            f"{path} on {host.name} belongs to user {owner.user}, and not to us",
            hint="see what is in it, and remove it",
        )


def present(host: Host, data_directory: str) -> list[str]:
    """Return the names in `data_directory` that a restore replaces."""
    return [name for name in host.entries(data_directory) if name not in NOT_REPLACED]


def holds_data(host: Host, directory: str) -> bool:
    """Say whether a data directory holds anything to lose: not what a new server makes there."""
    return any(
        _has_entries(host, f"{directory}/{name}") if name == PARTITIONS else name != DELETE_TASKS
        for name in present(host, directory)
    )


def kept_data(host: Host, data_directory: str) -> list[Kept]:
    """Return the data that was replaced in `data_directory` and is kept, oldest first."""
    working = f"{data_directory}/{WORKING_DIRECTORY}"
    names = sorted(host.entries(f"{working}/{_KEPT}"))
    found = [Kept(f"{working}/{_KEPT}/{name}", f"{_KEPT}/{name}") for name in names]
    return [entry for entry in found if host.entries(entry.path)]


def _has_entries(host: Host, path: str) -> bool:
    return host.is_directory(path) and bool(host.entries(path))
