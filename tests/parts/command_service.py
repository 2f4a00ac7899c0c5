"""A service manager of a few lines, for `service: command:`: start, stop and status of a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_SCRIPT = '''\
import os, pathlib, signal, subprocess, sys, time

pid_file = pathlib.Path({pid_file!r})
quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)


def is_running() -> bool:
    """A server that has ended but was not reaped yet is a zombie, and does not run."""
    try:
        return pathlib.Path("/proc", pid_file.read_text(), "stat").read_text().split()[2] != "Z"
    except OSError:
        return False


if sys.argv[1] == "start":
    with open({log!r}, "ab") as log:
        child = subprocess.Popen({argv!r}, start_new_session=True, stdout=log, stderr=log)
    pid_file.write_text(str(child.pid))
elif sys.argv[1] == "stop" and {stop_delay!r}:
    subprocess.Popen([sys.executable, __file__, "stop-late"], start_new_session=True, **quiet)
elif sys.argv[1] in ("stop", "stop-late"):
    time.sleep({stop_delay!r})
    if is_running():
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
else:
    sys.exit(0 if is_running() else 3)
'''


def write_service(script: Path, argv: Sequence[str], stop_delay: float = 0) -> Path:
    """Write the `script` that starts, stops and asks for the server `argv`; returns it.

    The server outlives the script: the test that starts it has to stop it. With
    `stop_delay`, the script does not wait for the stop, which begins so many seconds later.
    """
    script.write_text(
        _SCRIPT.format(
            pid_file=str(script.with_suffix(".pid")),
            log=str(script.with_suffix(".log")),
            argv=list(argv),
            stop_delay=stop_delay,
        )
    )
    return script
