"""Processes that run beside us, or after us; what we wait for is run by commands."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TypeAlias, TypeVar

from vl_borg_hooks.errors import CommandFailed

# sd_booted(3): systemd runs the system if, and only if, this directory exists.
SYSTEMD_RUNS = Path("/run/systemd/system")
CGROUP = Path("/proc/self/cgroup")
# Where the hierarchy that systemd manages is mounted: that of version 2, or its own.
CGROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified")
# How long what has to end may take; in the kernel, on a dead disk, it may take for ever.
ENDING_SECONDS = 2
THREADS = Path("/proc/self/task")
THREADS_POLL_SECONDS = 0.0005
# prctl(2) PR_SET_PDEATHSIG, from linux/prctl.h.
PR_SET_PDEATHSIG = 1

# From linux/pidfd.h: the ioctl, what it is asked for, and the first size of its structure, which
# begins with a mask and ends with the exit code.
PIDFD_GET_INFO = 0xC040FF0B
PIDFD_INFO_EXIT = 1 << 3
PIDFD_INFO_BYTES = 64

Outcome = TypeVar("Outcome")
# A process that runs beside us.
Beside: TypeAlias = "subprocess.Popen[str]"


def beside(
    argv: Sequence[str],
    *,
    talks: bool = False,
    dies_with_us: bool = False,
    outlives_us: bool = False,
    directory: str | None = None,
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
    errors: IO[bytes] | None = None,
) -> Beside:
    """Start `argv` to run beside us; with `talks`, its three streams are pipes, else nothing.

    `dies_with_us` makes the kernel end it if we are killed; only for while we have no other thread.
    `outlives_us` gives it its own session, so that what ends us does not end it.
    `directory` is its current one, if not ours; `environment` is added to ours; stdout goes to `output` and stderr to `errors` if that is given.
    Raises CommandFailed if it can't be started.
    """
    # Not by sh. It gives each command threads that watch it until it ends. They wake up every second,
    # ten times a second if the command can be written to, and an answer comes as a call in such a
    # thread. These commands run as long as we do, or longer, also while VictoriaLogs is stopped. They
    # must cost nothing in that time, and we have to wait for the answer of one.
    streams = subprocess.PIPE if talks else subprocess.DEVNULL
    try:
        return subprocess.Popen(
            argv,
            stdin=streams,
            stdout=output or streams,
            stderr=errors or streams,
            text=True,
            errors="backslashreplace",
            env={**os.environ, **(environment or {})},
            cwd="/" if outlives_us else directory,
            start_new_session=outlives_us,
            preexec_fn=die_with_parent() if dies_with_us else None,  # noqa: PLW1509 - see above
        )
    except OSError as error:
        raise CommandFailed(
            f"the command {argv[0]} could not be started: {error.strerror}",
            hint=f"install {argv[0]} or correct PATH",
        ) from None


def systemd_runs() -> bool:
    """Say whether we can have systemd run something: it runs the system, and we are root."""
    return SYSTEMD_RUNS.is_dir() and os.geteuid() == 0


def our_service() -> str:
    """Return the systemd service that we run in, empty if there is none."""
    services = [name for name in _cgroup().split("/") if name.endswith(".service")]
    return services[-1] if services else ""


def service_directory() -> Path | None:
    """Return the directory of the control group of the systemd service that runs us.

    None if no service does, but for example a session, or if that can't be seen.
    """
    group = _cgroup()
    while group.rpartition(".")[2] not in ("service", "scope", "slice", ""):
        group = group.rpartition("/")[0]
    if not group.endswith(".service"):
        return None
    for mounted in CGROUPS:
        directory = Path(mounted + group)
        if os.getpid() in _in_group(directory):
            return directory
    return None


def others_in(directory: Path) -> bool:
    """Say whether processes other than us and those above us are in that control group."""
    return not _in_group(directory) <= ourselves()


def is_in(pid: int, directory: Path) -> bool:
    """Say whether process `pid` is in that control group."""
    return pid in _in_group(directory)


def _in_group(directory: Path) -> set[int]:
    """Return the ids of the processes in a control group and those below it; empty if it is gone."""
    found: set[int] = set()
    with contextlib.suppress(OSError, ValueError):
        for listed in directory.rglob("cgroup.procs"):
            found.update(map(int, listed.read_text(encoding="ascii").split()))
    return found


def _cgroup() -> str:
    """Return our control group, as systemd has it; empty if that is not known."""
    found = ""
    with contextlib.suppress(OSError):
        for line in CGROUP.read_text(encoding="utf-8", errors="replace").splitlines():
            # cgroups(7): the hierarchy that systemd manages is that of version 2, or this one.
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "name=systemd"):
                found = max(found, path, key=len)
    return found


def outside_our_service() -> list[str]:
    """Return the call that runs a command outside of the systemd service that we run in.

    systemd ends all that a service has left running when the service ends. Empty if we are in no
    service, or can't have systemd run anything.
    """
    if not systemd_runs() or not our_service():
        return []
    described = "--description=started by vl-borg-hooks"
    return ["systemd-run", "--scope", "--quiet", "--collect", described, "--"]


def output(process: Beside, seconds: float) -> str:
    """Return what `process`, which `talks`, prints until it ends; nothing if it does not in time."""
    with process:
        try:
            return process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            return ""


def wait(process: Beside, seconds: float) -> None:
    """Wait until `process` has ended, for `seconds` at most. It must not print more than a pipe holds."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def end(process: Beside) -> None:
    """Kill `process` if it still runs; one that hangs in the kernel is left behind."""
    if process.poll() is None:
        process.kill()
        wait(process, ENDING_SECONDS)


def watch(pid: int) -> Callable[[], int | None] | None:
    """Return what tells how process `pid`, which need not be ours, has ended; None if nothing can.

    That returns its exit status, the negative number of the signal that killed it, or None if it has
    not ended, if its parent has not asked for its status yet, or on Linux 6.13 and 6.14, which know
    the question and not the answer.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        _pidfd_info(descriptor)
    except OSError:
        os.close(descriptor)
        return None

    def ended() -> int | None:
        try:
            mask, status = _pidfd_info(descriptor)
        except OSError:
            return None
        return os.waitstatus_to_exitcode(status) if mask & PIDFD_INFO_EXIT else None

    weakref.finalize(ended, os.close, descriptor)
    return ended


def _pidfd_info(descriptor: int) -> tuple[int, int]:
    """Return the mask of `struct pidfd_info` and its exit code; raises OSError."""
    info = bytearray(PIDFD_INFO_BYTES)
    struct.pack_into("=Q", info, 0, PIDFD_INFO_EXIT)
    fcntl.ioctl(descriptor, PIDFD_GET_INFO, info)
    (mask,) = struct.unpack_from("=Q", info, 0)
    (status,) = struct.unpack_from("=i", info, PIDFD_INFO_BYTES - 4)
    return mask, status


@contextlib.contextmanager
def threads_ended(seconds: float) -> Iterator[None]:
    """Wait, after the block, until the threads that it has started are gone, for `seconds` at most.

    sh forks, and only the thread that forks goes on in the child: if another one holds a lock of
    Python's at that moment, the child waits for it for ever. sh itself leaves a timer that it has
    cancelled. The kernel is asked, because before Python 3.13 a thread that was joined may still be there.
    """
    before = set(os.listdir(THREADS))
    try:
        yield
    finally:
        deadline = time.monotonic() + seconds
        while not before.issuperset(os.listdir(THREADS)) and time.monotonic() < deadline:
            time.sleep(THREADS_POLL_SECONDS)


def make_idle(pid: int) -> None:
    """Give process or thread `pid` the lowest priority; if the kernel refuses, it keeps its own."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        process.ionice(psutil.IOPRIO_CLASS_IDLE)
        process.nice(19)


def idly(work: Callable[[Callable[[], bool]], Outcome]) -> Outcome:
    """Do `work` when nothing else needs the processor and the disk, and return what it returns.

    It is called with what says whether it has to end, as when a signal ends us. It runs in a separate
    thread, because a thread that was made idle stays idle.
    """
    # Imported here: `after-create`, which is called often, does not need it.
    from concurrent.futures import Future

    future: Future[Outcome] = Future()
    ended = threading.Event()

    def do() -> None:
        make_idle(threading.get_native_id())
        try:
            future.set_result(work(ended.is_set))
        except BaseException as error:  # noqa: BLE001 - it is raised where we wait
            future.set_exception(error)

    thread = threading.Thread(target=do, daemon=True)
    with threads_ended(ENDING_SECONDS):
        try:
            thread.start()
            thread.join()
        finally:
            ended.set()
    return future.result()


def die_with_parent() -> Callable[[], None]:
    """Return what a child calls between fork and exec, so that the kernel ends it with its parent."""
    import ctypes

    # Loaded before the fork: between fork and exec only async-signal-safe work is safe.
    return partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass(frozen=True)
class Process:
    """A process as it is now; `started` is in seconds since the boot."""

    pid: int
    parent: int
    group: int
    session: int
    started: float
    is_zombie: bool
    name: str


def look(pid: int) -> Process | None:
    """Return process `pid`, None if there is none."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return None
    # proc(5): the name is the second field, in brackets, and may have any character in it.
    before, _, after = content.rpartition(")")
    fields = after.split()
    return Process(
        pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        started=int(fields[19]) / os.sysconf("SC_CLK_TCK"),
        is_zombie=fields[0] == "Z",
        name=before.partition("(")[2],
    )


def running() -> Iterator[Process]:
    """Yield all processes that have not ended."""
    for name in os.listdir("/proc"):
        process = look(int(name)) if name.isdigit() else None
        if process and not process.is_zombie:
            yield process


def ourselves() -> set[int]:
    """Return the ids of us and of all processes above us."""
    found: set[int] = set()
    process = look(os.getpid())
    while process and process.pid not in found:
        found.add(process.pid)
        process = look(process.parent)
    return found
