"""Putting restored data in the place of what was there, by renames that can be undone.

On the data's own filesystem, in our working directory: `incoming/` holds what is to be put in
place, `replaced/` what it takes the place of. The journal has the names before the first rename, so
that an undo, as often as it is begun, leads back to what was there.
"""

from __future__ import annotations

from collections.abc import Sequence

from vl_borg_hooks.hosts import Host
from vl_borg_hooks.victorialogs.layout import NOT_REPLACED, WORKING_DIRECTORY


class Swap:
    """The swap of `names` into `data_directory` on `host`. The data directory must be locked."""

    def __init__(self, host: Host, data_directory: str, names: Sequence[str] = ()) -> None:
        self._host = host
        self._data = data_directory
        self._names = names
        self._working = f"{data_directory}/{WORKING_DIRECTORY}"
        self._incoming = f"{self._working}/incoming"
        self._replaced = f"{self._working}/replaced"

    def do(self) -> None:
        """Move what is there to `replaced/` and `names` from `incoming/` in its place."""
        self._host.make_directory(self._replaced, 0o700)
        for name in self._present():
            self._host.rename(f"{self._data}/{name}", f"{self._replaced}/{name}")
        for name in self._names:
            self._host.rename(f"{self._incoming}/{name}", f"{self._data}/{name}")

    def undo(self) -> None:
        """Bring back what was there, from wherever a swap or an undo was ended."""
        waiting = set(self._host.entries(self._incoming))
        replaced = self._host.entries(self._replaced)
        present = self._present()
        for name in present:
            # Ours, or made by a server that ran on what we had put in place. What an earlier undo
            # has brought back already is neither: it is no longer in `replaced/`, and ours of that
            # name is back in `incoming/`.
            ours = name in self._names and name not in waiting
            if ours or name in replaced:
                self._discard(name, waiting)
        for name in replaced:
            self._host.rename(f"{self._replaced}/{name}", f"{self._data}/{name}")

    def clean_up(self) -> None:
        """Remove our working directory with all that is left in it."""
        self._host.remove_tree(self._working)

    def _discard(self, name: str, waiting: set[str]) -> None:
        if name in waiting:
            self._host.remove_tree(f"{self._data}/{name}")
            return
        self._host.make_directory(self._incoming, 0o700)
        self._host.rename(f"{self._data}/{name}", f"{self._incoming}/{name}")

    def _present(self) -> list[str]:
        return [name for name in self._host.entries(self._data) if name not in NOT_REPLACED]
