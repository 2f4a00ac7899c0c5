"""A Borg that waits in the middle of `borg create` until it may go on."""

from __future__ import annotations

from pathlib import Path
from typing import final

from tests.parts.waiting import wait_until

# A dry run is how we look at what would be archived: that is no archive.
_SCRIPT = """\
#!/bin/sh
case " $* " in *" --dry-run "*) ;; *" create "*)
    touch {reads}
    while [ ! -e {may_go_on} ]; do sleep 0.1; done
esac
exec borg "$@"
"""


@final
class SlowBorg:
    """The program is at `path`, in a directory that is there."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "slow-borg"
        self._reads, self._may_go_on = directory / "reads", directory / "may-go-on"
        self.path.write_text(_SCRIPT.format(reads=self._reads, may_go_on=self._may_go_on))
        self.path.chmod(0o755)

    def wait_until_it_reads(self) -> None:
        """TimeoutError if no archive is begun."""
        wait_until(self._reads.exists, 60, "borg reads")

    def go_on(self) -> None:
        """Let it make its archive, and all after that."""
        self._may_go_on.touch()
