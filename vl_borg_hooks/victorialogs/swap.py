"""Put restored data in the place of what was there, by renames that can be undone.

In our working directory, on the data's own filesystem, `incoming/` holds what is put in place, and
`replaced/` what was there before. The journal has the names of what was there before the first
rename. So an undo brings that back, even if it is interrupted and begun again.
"""

from __future__ import annotations

from collections.abc import Sequence

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system.hosts import Host
from vl_borg_hooks.victorialogs.layout import NOT_REPLACED, WORKING_DIRECTORY


class Swap:
    """The swap in `data_directory` on `host`, which must be locked.

    `originals` are the names of what was there before the swap.
    """

    def __init__(self, host: Host, data_directory: str, originals: Sequence[str] = ()) -> None:
        self._host = host
        self._data = data_directory
        self._originals = originals
        self._working = f"{data_directory}/{WORKING_DIRECTORY}"
        self.incoming = f"{self._working}/incoming"
        self._replaced = f"{self._working}/replaced"

    def do(self) -> None:
        """Move what is there to `replaced/`, and what is in `incoming/` into its place."""
        self._host.make_directory(self._replaced, 0o700)
        for name in self._originals:
            self._host.rename(f"{self._data}/{name}", f"{self._replaced}/{name}")
        for name in self._host.entries(self.incoming):
            self._host.rename(f"{self.incoming}/{name}", f"{self._data}/{name}")

    def undo(self) -> None:
        """Bring back what was there, no matter how far a swap or an undo has come."""
        waiting = set(self._host.entries(self.incoming))
        replaced = self._host.entries(self._replaced)
        for name in present(self._host, self._data):
            # Put there by the swap, or made by a server that ran on it. An original that was not
            # moved yet, or has been brought back already, is neither.
            if name in replaced or name not in self._originals:
                self._discard(name, waiting)
        for name in replaced:
            self._host.rename(f"{self._replaced}/{name}", f"{self._data}/{name}")

    def clean_up(self) -> None:
        """Remove our working directory with all that is left in it, replaced data too."""
        self._host.remove_tree(self._working)

    def discard_leftovers(self) -> None:
        """Remove our working directory; to be called if there is no journal that it belongs to.

        Raises OperatorError if it has replaced data: the journal that named it is lost, so only the
        operator can know whether it is still needed.
        """
        if not self._host.is_directory(self._working):
            return
        kept = self._host.entries(self._replaced)
        if kept:
            raise OperatorError(
                f"{self._replaced} holds {', '.join(sorted(kept))}, set aside by a restore, and "
                "the journal of that restore is lost",
                hint=f"move it back to {self._data} with VictoriaLogs stopped, or remove it",
            )
        self._host.remove_tree(self._working)

    def _discard(self, name: str, waiting: set[str]) -> None:
        if name in waiting:
            self._host.remove_tree(f"{self._data}/{name}")
            return
        self._host.make_directory(self.incoming, 0o700)
        self._host.rename(f"{self._data}/{name}", f"{self.incoming}/{name}")


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
