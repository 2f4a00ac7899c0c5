"""External commands, run through `sh`: argument vectors, never a shell."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from vl_borg_hooks.errors import CommandFailed

# prctl(2) PR_SET_PDEATHSIG, from linux/prctl.h.
PR_SET_PDEATHSIG = 1
# How long a command that took too long may take to end on SIGTERM, and then on SIGKILL. One that
# hangs in the kernel, on a dead disk, ends on neither and is left to itself.
ENDING_SECONDS = 2
CHUNK_BYTES = 1 << 16


class TookTooLong(CommandFailed):
    """A command that had to be ended."""


@dataclass(frozen=True)
class Completed:
    """What a finished command left: its exit status and what it printed."""

    exit_status: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """The last line printed on stderr, else on stdout: mostly the reason of a failure."""
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return lines[-1].strip() if lines else f"exit status {self.exit_status}"


def run(
    argv: Sequence[str],
    *,
    ok: Collection[int] = (0,),
    timeout: float | None = None,
    on_output: Callable[[str], None] | None = None,
    dies_with_us: bool = False,
    idle: bool = False,
) -> Completed:
    """Run `argv`, wait for it, and return what it left.

    `ok` are the exit statuses that are no failure; `timeout` is in seconds, after which the command
    is ended and, where it can't be, left behind. `on_output` receives stdout in pieces as it comes; otherwise stdout goes
    to a file, never to a pipe, so that a server which the command leaves running can't keep us
    waiting for the pipe's end. `dies_with_us` has the kernel end the command when we are killed;
    `idle` gives it the processor and the disk only when nobody else wants them.

    Raises CommandFailed where the command is missing, fails, or takes too long.
    """
    # Imported here: it costs more than everything else that `after-create` needs.
    import sh

    try:
        command = sh.Command(argv[0])
    except sh.CommandNotFound:
        raise CommandFailed(
            f"the command {argv[0]} was not found", hint=f"install {argv[0]} or mend PATH"
        ) from None
    words, encoding = _encodable(argv[1:])
    with (
        open(os.devnull, "rb") as no_input,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
        _reading(on_output) as pipe,
    ):
        try:
            process = command(
                *words,
                _bg=True,
                _bg_exc=False,
                _in=no_input,
                _out=pipe or stdout,
                _err=stderr,
                _tty_out=False,
                _env={**os.environ, "LC_ALL": "C"},
                _encoding=encoding,
                _decode_errors="backslashreplace",
                _preexec_fn=die_with_parent() if dies_with_us else None,
            )
        except sh.ForkException as error:
            # sh puts the child's whole traceback in it; its last line says what was wrong.
            reason = str(error).strip().splitlines()[-1].strip()
            raise CommandFailed(f"{shlex.join(argv)} could not be started: {reason}") from None
        if pipe:
            pipe.close()
        if idle:
            make_idle(process.pid)
        try:
            exit_status = _exit_status(process, timeout)
        except BaseException:
            # We are being ended ourselves: nothing that we started may go on writing.
            _end(process)
            raise
        if exit_status is None:
            _end(process)
            raise TookTooLong(f"{shlex.join(argv)} took longer than {timeout:g} seconds")
        # What is printed may be file names, which must come back as they are; complaints are read.
        completed = Completed(
            exit_status,
            _content(stdout, "surrogateescape"),
            _content(stderr, "backslashreplace"),
        )
    if completed.exit_status not in ok:
        raise CommandFailed(f"{shlex.join(argv)} failed: {completed.last_line}")
    return completed


def _encodable(words: Sequence[str]) -> tuple[list[str], str]:
    """Return `words` and the encoding in which sh gives the program the bytes that they stand for.

    File names need not be UTF-8; Python then has them as surrogates, which sh can't encode.
    """
    try:
        for word in words:
            word.encode("utf-8")
    except UnicodeEncodeError:
        return [os.fsencode(word).decode("latin-1") for word in words], "latin-1"
    return list(words), "utf-8"


def make_idle(pid: int) -> None:
    """Put process or thread `pid` behind all others; if the kernel refuses, it runs as any other."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        process.ionice(psutil.IOPRIO_CLASS_IDLE)
        process.nice(19)


@contextlib.contextmanager
def _reading(on_output: Callable[[str], None] | None) -> Iterator[IO[bytes] | None]:
    """Yield the end of a pipe to write to, and hand what is written to `on_output`.

    Not left to sh, which takes it character by character where it is to come at once: rsync prints
    its progress for every file. The reader ends when all who could write have.
    """
    if on_output is None:
        yield None
        return
    receiving, sending = os.pipe()

    def read() -> None:
        with os.fdopen(receiving, "rb", buffering=0) as output:
            while piece := output.read(CHUNK_BYTES):
                # A terminal that is gone is no reason to end the command.
                with contextlib.suppress(OSError):
                    on_output(piece.decode("utf-8", "backslashreplace"))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with os.fdopen(sending, "wb") as writer:
        yield writer
    reader.join(ENDING_SECONDS)


def _exit_status(process: Any, timeout: float | None) -> int | None:
    """Return the exit status of `process`, or None where it has none after `timeout` seconds."""
    import sh

    statuses: list[int] = []

    def wait() -> None:
        try:
            process.wait()
            statuses.append(0)
        except sh.ErrorReturnCode as error:
            statuses.append(error.exit_code)

    if timeout is None:
        wait()
        return statuses[0]
    # In a thread, since sh's own wait with a limit looks only every 0.1 s, in the stop window too.
    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(timeout)
    return statuses[0] if statuses else None


def _end(process: Any) -> None:
    """End `process`, the hard way where it must be, and go on where even that doesn't help."""
    for end in (process.terminate, process.kill):
        with contextlib.suppress(OSError):
            end()
        if _exit_status(process, ENDING_SECONDS) is not None:
            return


def _content(file: IO[bytes], errors: str) -> str:
    """Return all that a command wrote to `file`."""
    file.seek(0)
    return file.read().decode("utf-8", errors)


def die_with_parent() -> Callable[[], None]:
    """Return what a child calls between fork and exec to be ended by the kernel with its parent."""
    import ctypes

    # Loaded before the fork: between fork and exec only async-signal-safe work is safe.
    prctl = ctypes.CDLL(None).prctl

    def ask_kernel() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask_kernel
