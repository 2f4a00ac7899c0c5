"""rsync: its arguments, its exit codes, its progress."""

from __future__ import annotations

from dataclasses import dataclass

from vl_borg_hooks.transfer.progress import human_bytes


@dataclass(frozen=True)
class PassResult:
    """What one pass did: the files and bytes that it copied, and how long it took."""

    files: int
    bytes: int
    seconds: float

    def after(self, earlier: PassResult) -> PassResult:
        """Return what the two did together."""
        return PassResult(
            self.files + earlier.files,
            self.bytes + earlier.bytes,
            self.seconds + earlier.seconds,
        )

    def __str__(self) -> str:
        """`N files, SIZE in SECONDS`."""
        return f"{self.files} files, {human_bytes(self.bytes)} in {self.seconds:.2f} s"
