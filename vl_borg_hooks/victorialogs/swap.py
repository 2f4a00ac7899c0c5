"""Put restored data in the place of what was there, by renames that can be undone.

In our working directory, on the data's own filesystem, `incoming/` holds what is put in place, and
`replaced/` what was there before. The journal has the names of what was there before the first
rename. So an undo brings that back, even if it is interrupted and begun again.

`kept/` holds data that is kept for the operator, each in a directory that is named after the time,
and after what it is, if it was not replaced: one rename keeps it, with all that has to be known about
it.
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
# How the name of a directory in `kept/` ends if it is not what a restore has replaced.
RESTORED = "-restored"
SERVED = "-served"
_WHAT = {RESTORED: "restored data", SERVED: "data that was served during a restore"}
_ROOT = 0


@dataclass(frozen=True)
class Kept:
    """Data that is kept at `path`. `source` is its name for a Swap."""

    path: str
    source: str

    @property
    def since(self) -> datetime | None:
        """When it was put there; None if its name doesn't say."""
        try:
            moment = datetime.strptime(self._name.partition("-")[0], _TIME)
        except ValueError:
            return None
        return moment.replace(tzinfo=timezone.utc)

    @property
    def what(self) -> str:
        """What it is, in words: replaced, restored, or served in between."""
        said = [what for end, what in _WHAT.items() if self._name.endswith(end)]
        return said[0] if said else "replaced data"

    @property
    def _name(self) -> str:
        return self.source.rpartition("/")[2]


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

    def undo(self) -> list[str]:
        """Bring back what was there, no matter how far a swap or an undo has come.

        What was put in place goes back to the source. What a server has stored in its place is kept:
        returns where.
        """
        kept: list[str] = []
        waiting = set(self._host.entries(self._source))
        replaced = self._host.entries(self.replaced)
        for name in present(self._host, self._data):
            # Put there by the swap, or made by a server that ran on it. An original that was not
            # moved yet, or has been brought back already, is neither.
            if name in replaced or name not in self._originals:
                kept += self._take_out(name, waiting)
        for name in replaced:
            self._host.rename(f"{self.replaced}/{name}", f"{self._data}/{name}")
        return kept

    def keep(self, directory: str, ending: str = "") -> str:
        """Keep what is in `directory`, which is ours, for the operator; return where.

        `ending` is RESTORED if it is not what was replaced.
        """
        path = self._new_kept(ending)
        self._host.rename(directory, path)
        return path

    def discard(self, kept: Kept) -> None:
        """Remove data that was kept; if that is interrupted, half of it is not offered any more."""
        discarded = f"{self._working}/{_DISCARDED}"
        self._host.remove_tree(discarded)
        self._host.rename(kept.path, discarded)
        self.clean_up()

    def clean_up(self) -> None:
        """Remove our working directory with all that is left in it, except data that is kept.

        If it is root's, all of it is left to root.
        """
        if is_roots(self._host, self._data):
            return
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

    def _take_out(self, name: str, waiting: set[str]) -> list[str]:
        """Take `name` out of the data; return where it is kept, if it is not in the source."""
        path = f"{self._data}/{name}"
        if name not in waiting:
            self._host.make_directory(self._source, 0o700)
            self._host.rename(path, f"{self._source}/{name}")
        elif name == PARTITIONS and _has_entries(self._host, path):
            # The source has its own, so a server that was started in between made these.
            kept = self._new_kept(SERVED)
            self._host.make_directory(kept, 0o700)
            self._host.rename(path, f"{kept}/{name}")
            return [kept]
        else:
            self._host.remove_tree(path)
        return []

    def _new_kept(self, ending: str) -> str:
        """Return a name for data to keep, which no other has; its parent exists."""
        parent = f"{self._working}/{_KEPT}"
        self._host.make_directory(parent, 0o700)
        return f"{parent}/{datetime.now(timezone.utc).strftime(_TIME)}{ending}"


def refuse_planted(host: Host, data_directory: str, *, unless_roots: bool = False) -> None:
    """Raise OperatorError if our working directory in `data_directory` is not ours.

    Who may write to the data could put a link there, or a directory of their own. One of root's is
    from a restore by root: with `unless_roots` it is left as it is.
    """
    path = f"{data_directory}/{WORKING_DIRECTORY}"
    owner = host.owner(path)
    if owner is None:
        return
    if not host.is_directory(path):
        raise OperatorError(f"{path} on {host.name} is a link or a file", hint="remove it")
    user = host.effective_user()
    if owner.user == user:
        return
    if owner.user == _ROOT:
        if unless_roots:
            return
        raise OperatorError(
            f"{path} on {host.name} belongs to root: it may hold logs that a restore by root keeps",
            hint="run this as root",
        )
    raise OperatorError(
        f"{path} on {host.name} belongs to user {owner.user}, and not to us",
        hint="see what is in it, and remove it",
    )


def is_roots(host: Host, data_directory: str) -> bool:
    """Say whether our working directory in `data_directory` is root's, and we are not root."""
    owner = host.owner(f"{data_directory}/{WORKING_DIRECTORY}")
    return owner is not None and owner.user == _ROOT and host.effective_user() != _ROOT


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
    """Return the data that restores in `data_directory` have kept, oldest first."""
    working = f"{data_directory}/{WORKING_DIRECTORY}"
    names = sorted(host.entries(f"{working}/{_KEPT}"))
    found = [Kept(f"{working}/{_KEPT}/{name}", f"{_KEPT}/{name}") for name in names]
    return [entry for entry in found if host.entries(entry.path)]


def _has_entries(host: Host, path: str) -> bool:
    return host.is_directory(path) and bool(host.entries(path))
