"""A filesystem too small for what a test puts on it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import final


@final
class SmallDisk:
    """A tmpfs of `size` bytes, mounted at `path` (made if missing) during the context.

    subprocess.CalledProcessError if mounting is not allowed.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size

    @staticmethod
    def why_not() -> str:
        """Why it can't be had on this machine, or an empty string if nothing speaks against it."""
        return "" if os.geteuid() == 0 else "mounting a filesystem needs root"

    def __enter__(self) -> SmallDisk:
        self.path.mkdir(parents=True, exist_ok=True)
        options = f"size={self.size},mode=755"
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)]
        subprocess.run(mount, check=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Lazily: a program of a failed test that is still in there must not keep it mounted.
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)
