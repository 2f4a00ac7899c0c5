"""rsync: its arguments, its exit codes, its progress. Links in place of copies."""

from __future__ import annotations

from dataclasses import dataclass

from vl_borg_hooks.transfer.progress import human_bytes


@dataclass(frozen=True)
class PassResult:
    """What one pass did: the files and bytes that it copied, and those that it linked, and how long.

    What is linked shares its bytes with the source, as hard links or as reflinks.
    """

    files: int
    bytes: int
    seconds: float
    linked_files: int = 0
    linked_bytes: int = 0

    def after(self, earlier: PassResult) -> PassResult:
        """Return what the two did together."""
        return PassResult(
            self.files + earlier.files,
            self.bytes + earlier.bytes,
            self.seconds + earlier.seconds,
            self.linked_files + earlier.linked_files,
            self.linked_bytes + earlier.linked_bytes,
        )

    def __str__(self) -> str:
        """`linked N files, SIZE, and copied N files, SIZE, in SECONDS`."""
        done = []
        if self.linked_files:
            done.append(f"linked {self.linked_files:,} files, {human_bytes(self.linked_bytes)},")
        if self.files or not self.linked_files:
            done.append(f"copied {self.files:,} files, {human_bytes(self.bytes)},")
        return f"{' and '.join(done)} in {self.seconds:.2f} s"
