"""Run by systemd in place of the guard: becomes the guard, with the environment of the run.

systemd gives a unit its own environment. The run's may hold passwords, which everybody can read in the
properties of a unit. So it comes through a pipe: `launch.py PIPE ARGV...`, run by path, without the
package.
"""

from __future__ import annotations

import os
import sys

# Each variable ends with a NUL, and an empty one ends them all.
END = b"\0\0"
NOTIFY = "NOTIFY_SOCKET"


def main(pipe: str, argv: list[str]) -> None:
    """Replace this process with `argv`, in the environment that comes through the FIFO `pipe`."""
    content = b""
    with open(pipe, "rb", buffering=0) as file:
        while not content.endswith(END):
            piece = file.read(1 << 16)
            if not piece:
                sys.exit("the run that started this guard has ended")
            content += piece
    pairs = (entry.split(b"=", 1) for entry in content.split(b"\0") if entry)
    environment = {os.fsdecode(name): os.fsdecode(value) for name, value in pairs}
    # systemd waits for what is sent to this.
    os.execve(argv[0], argv, {**environment, NOTIFY: os.environ[NOTIFY]})  # noqa: S606 - our own


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
