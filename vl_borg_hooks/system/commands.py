"""External commands, run through `sh`: argument vectors, never a shell."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import tempfile
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import IO, Any

from vl_borg_hooks.errors import CommandFailed
from vl_borg_hooks.system.processes import die_with_parent, make_idle, threads_ended

# How long a command may take to end after SIGTERM, and then after SIGKILL. One that hangs in the
# kernel, on a dead disk, ends after neither and is left alone.
ENDING_SECONDS = 2
CHUNK_BYTES = 1 << 16
# Every exit status, and the number of every signal as sh has it: negative.
ANY_STATUS = tuple(range(-64, 256))


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
    stdin: IO[bytes] | None = None,
    dies_with_us: bool = False,
    outlives_us: bool = False,
    idle: bool = False,
) -> Completed:
    """Run `argv`, wait for it, and return what it left.

    `ok` are the exit statuses that are not failures; `timeout` is in seconds, after which the command
    is ended and, if it can't be, left behind. `on_output` receives stdout in pieces as it comes;
    `stdin` is a file that the command reads, from where it is now, none without it.
    `dies_with_us` makes the kernel end the command if we are killed; `outlives_us` gives it, and what
    it leaves running, a session of its own, which no signal to our process group reaches; `idle`
    gives it the processor and the disk only when nothing else needs them.

    Raises CommandFailed if the command is missing or fails, TookTooLong if it takes too long.
    """
    # To files, never to a pipe: a server that the command leaves running would keep it open.
    with (
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
        threads_ended(ENDING_SECONDS),
        _Reader(on_output) if on_output else contextlib.nullcontext() as reader,
    ):
        output = reader.sending if reader else stdout
        process = _start(
            argv, stdin, output, stderr, dies_with_us=dies_with_us, outlives_us=outlives_us
        )
        if reader:
            reader.begin()
        try:
            if idle:
                make_idle(process.pid)
            exit_status = _exit_status(process, timeout)
            if exit_status is None:
                raise TookTooLong(f"{shlex.join(argv)} took longer than {timeout:g} seconds")
        except BaseException:
            # If we are ended ourselves, nothing that we started may go on writing.
            _end(process)
            raise
        # stdout may hold file names, which must stay as they are; stderr is for people.
        completed = Completed(
            exit_status,
            _content(stdout, "surrogateescape"),
            _content(stderr, "backslashreplace"),
        )
    if completed.exit_status not in ok:
        raise CommandFailed(f"{shlex.join(argv)} failed: {completed.last_line}")
    return completed


def _start(
    argv: Sequence[str],
    stdin: IO[bytes] | None,
    stdout: IO[bytes],
    stderr: IO[bytes],
    *,
    dies_with_us: bool,
    outlives_us: bool,
) -> Any:
    """Start `argv` by sh and return the running command; raises CommandFailed."""
    # Imported here: it costs more than everything else that `after-create` needs.
    import sh

    words, encoding = _encodable(argv[1:])
    try:
        with open(os.devnull, "rb") as no_input:
            return sh.Command(argv[0])(
                *words,
                _bg=True,
                _bg_exc=False,
                _in=stdin or no_input,
                _out=stdout,
                _err=stderr,
                _env={**os.environ, "LC_ALL": "C"},
                _encoding=encoding,
                _ok_code=ANY_STATUS,
                _new_session=outlives_us,
                _preexec_fn=die_with_parent() if dies_with_us else None,
            )
    except sh.CommandNotFound:
        raise CommandFailed(
            f"the command {argv[0]} was not found", hint=f"install {argv[0]} or correct PATH"
        ) from None
    except sh.ForkException as error:
        # sh puts the child's whole traceback in it; its last line says what was wrong.
        reason = str(error).strip().splitlines()[-1].strip()
        raise CommandFailed(f"{shlex.join(argv)} could not be started: {reason}") from None


def _encodable(words: Sequence[str]) -> tuple[Sequence[str], str]:
    """Return `words` and the encoding with which sh gives the program their exact bytes.

    File names can be other than UTF-8. Python has those as surrogates, which sh can't encode.
    """
    try:
        "".join(words).encode("utf-8")
    except UnicodeEncodeError:
        return [os.fsencode(word).decode("latin-1") for word in words], "latin-1"
    return words, "utf-8"


class _Reader:
    """A pipe to write to; hands what is written to `on_output`, from `begin` on.

    Not left to sh, which hands over whole lines, full buffers or single bytes: rsync does not end a
    line while it copies, and prints its progress for every file.
    """

    def __init__(self, on_output: Callable[[str], None]) -> None:
        self._on_output = on_output
        receiving, sending = os.pipe()
        self._receiving = open(receiving, "rb", buffering=0)  # noqa: SIM115 - closed by the thread
        self.sending = open(sending, "wb", buffering=0)  # noqa: SIM115 - closed by begin
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Read in a thread, which must not exist yet when the command is forked."""
        self.sending.close()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._receiving:
            while piece := self._receiving.read(CHUNK_BYTES):
                # If the terminal is gone, the command goes on.
                with contextlib.suppress(OSError):
                    self._on_output(piece.decode("utf-8", "backslashreplace"))

    def __enter__(self) -> _Reader:  # noqa: PYI034 - Self is of Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.sending.close()
        if self._thread:
            # It ends when no process can write any more; one that the command has left running can.
            self._thread.join(ENDING_SECONDS)
        else:
            self._receiving.close()


def _exit_status(process: Any, timeout: float | None) -> int | None:
    """Return the exit status of `process`, or None if it has none after `timeout` seconds.

    Waits in a thread, since sh's own wait with a limit looks only every 0.1 s, and a command that
    hangs in the kernel must not block us.
    """
    waiting = threading.Thread(target=process.wait, daemon=True)
    waiting.start()
    waiting.join(timeout)
    return None if waiting.is_alive() else process.exit_code


def _end(process: Any) -> None:
    """End `process` by SIGTERM, then by SIGKILL, and go on even if neither ends it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(OSError):
            process.signal(number)
        if _exit_status(process, ENDING_SECONDS) is not None:
            return


def _content(file: IO[bytes], errors: str) -> str:
    """Return all that a command wrote to `file`."""
    file.seek(0)
    return file.read().decode("utf-8", errors)
