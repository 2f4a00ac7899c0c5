"""One run of rsync."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Sequence

from vl_borg_hooks.errors import CommandFailed
from vl_borg_hooks.system import commands
from vl_borg_hooks.system.hosts import Host
from vl_borg_hooks.transfer import PassResult
from vl_borg_hooks.transfer.progress import Parser, Reporter

# rsync(1), EXIT VALUES.
VANISHED = 24
STATUSES = {
    1: "syntax or usage error",
    2: "protocol incompatibility",
    3: "errors selecting input or output files or directories",
    5: "error starting the client-server protocol",
    10: "error in socket I/O",
    11: "error in file I/O",
    12: "error in the rsync protocol data stream: the connection broke",
    13: "errors with program diagnostics",
    14: "error in interprocess communication",
    20: "ended by a signal",
    21: "error waiting for a child process",
    22: "out of memory",
    23: "partial transfer: some files were not copied",
    VANISHED: "files vanished while they were copied",
    25: "the limit of deletions was reached",
    30: "timeout in sending or receiving data",
    35: "timeout waiting for the connection",
    127: "rsync was not found there",
    255: "ssh could not connect",
}
# --modify-window=-1, which compares times to the nanosecond, came with 3.1.3 (its NEWS). Without
# it a parts.json that was replaced in the same second by one of the same size is not copied.
OLDEST = (3, 1, 3)
# After so many seconds without a byte, a connection is given up as dead.
STALLED_SECONDS = 120

ARGUMENTS = (
    "rsync",
    # Contents, links as links, permissions, times. Owners are not kept: borgmatic's own systemd
    # unit drops CAP_CHOWN, and a restore sets them from what VictoriaLogs runs as.
    "--recursive",
    "--links",
    "--perms",
    "--times",
    # A setuid file of another user would become one of the user that we run as, root mostly.
    "--chmod=ug-s,-t",
    "--modify-window=-1",
    # VictoriaLogs' files are written once under new names: there is no old version to
    # make a delta from, and --inplace would write through hard links.
    "--whole-file",
    # Paths go to the other side over the protocol, not through its shell.
    "--secluded-args",
    # The whole file list first: rsync can then say how much is left.
    "--no-inc-recursive",
    "--no-human-readable",
    "--info=progress2,stats2",
    "--outbuf=None",
)
_FILES = re.compile(r"^Number of regular files transferred: (\d+)", re.MULTILINE)
_BYTES = re.compile(r"^Total transferred file size: (\d+)", re.MULTILINE)
_VERSION = re.compile(r"version v?(\d+)\.(\d+)\.(\d+)")


def copy(
    source: tuple[Host, str],
    destination: tuple[Host, str],
    *,
    name: str,
    reporter: Reporter,
    exclude: Sequence[str] = (),
    only: Sequence[str] | None = None,
    checksum: bool = False,
    all_new: bool = False,
    owner: str = "",
    bwlimit: str = "",
    idle: bool = False,
    vanishing: bool = False,
    timeout: float | None = None,
) -> PassResult:
    """Make directory `destination` equal to `source`; at most one of the two is remote.

    `name` is what messages call this pass; `exclude` are rsync patterns, which are neither copied
    nor deleted. With `only`, just these paths in `source` are copied, and nothing is deleted.
    With `checksum`, files are compared by their content, and not by size and time.
    `all_new` says that nothing of it is there yet, for the progress.
    `owner` is `USER:GROUP` for all that is written. `idle` makes rsync use only
    time that nothing else needs; `vanishing` says that files may vanish from the source meanwhile.
    After `timeout` seconds the pass is given up.

    Raises CommandFailed.
    """
    argv = [*ARGUMENTS, *(f"--exclude={pattern}" for pattern in exclude)]
    if checksum:
        argv.append("--checksum")
    if bwlimit:
        argv.append(f"--bwlimit={bwlimit}")
    if owner:
        argv += ["--owner", "--group", f"--chown={owner}"]
    transport = source[0].transport() or destination[0].transport()
    if transport:
        argv += [f"--rsh={_rsh(transport)}", f"--timeout={STALLED_SECONDS}"]
    started = time.monotonic()
    parser = Parser(all_new=all_new or only is not None)
    with reporter.progress(name) as report, tempfile.TemporaryFile() as listed:
        if only is None:
            argv.append("--delete")
        else:
            listed.write(b"".join(os.fsencode(path) + b"\0" for path in only))
            listed.seek(0)
            argv += ["--files-from=-", "--from0"]
            if vanishing:
                argv.append("--ignore-missing-args")
        argv += ["--", *(host.rsync_location(path) for host, path in (source, destination))]
        try:
            completed = commands.run(
                argv,
                ok=commands.ANY_STATUS,
                timeout=timeout,
                on_output=lambda text: report(parser.feed(text)),
                stdin=listed,
                dies_with_us=True,
                idle=idle,
            )
        except commands.TookTooLong:
            raise CommandFailed(f"the {name} took longer than {timeout:g} seconds") from None
    if completed.exit_status not in ((0, VANISHED) if vanishing else (0,)):
        raise CommandFailed(f"the {name} failed: {_reason(completed)}")
    return PassResult(
        files=_number(_FILES, parser.text),
        bytes=_number(_BYTES, parser.text),
        seconds=time.monotonic() - started,
    )


def check_version(host: Host) -> None:
    """Raise CommandFailed if `host` has no rsync, or one that is too old."""
    printed = host.run(["rsync", "--version"], ok=(0, 127))
    if printed.exit_status == 127:
        raise CommandFailed(f"rsync was not found on {host.name}", hint="install rsync there")
    found = _VERSION.search(printed.stdout)
    if not found or tuple(map(int, found.groups())) < OLDEST:
        version = found[0] if found else "an unknown version"
        raise CommandFailed(
            f"rsync on {host.name} is {version}",
            hint=f"install rsync {'.'.join(map(str, OLDEST))} or newer",
        )


def _reason(completed: commands.Completed) -> str:
    """Return why rsync failed: its first complaint, because the later ones only follow from it."""
    complaints = [line.strip() for line in completed.stderr.splitlines() if line.strip()]
    meaning = STATUSES.get(completed.exit_status, "unknown")
    status = f"rsync exit status {completed.exit_status}, {meaning}"
    return f"{complaints[0]} ({status})" if complaints else status


def _rsh(argv: Sequence[str]) -> str:
    """Return `argv` as one string that rsync splits at spaces, with quotes (do_cmd in its main.c)."""
    return " ".join(
        "'" + word.replace("'", "''") + "'" if re.search(r"[\s'\"]", word) else word
        for word in argv
    )


def _number(pattern: re.Pattern[str], text: str) -> int:
    found = pattern.search(text)
    return int(found[1]) if found else 0
