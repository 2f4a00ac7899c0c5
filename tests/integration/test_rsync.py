"""One run of the real rsync: what is copied, what is not, and what its failures become."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from tests.support import FAKE_SSH, make_data, tree
from vl_borg_hooks.errors import CommandFailed
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.system.ssh import SshHost
from vl_borg_hooks.transfer import PassResult, rsync
from vl_borg_hooks.transfer.progress import Reporter
from vl_borg_hooks.victorialogs.layout import NOT_COPIED

LOCAL = LocalHost()


def mirror(
    source: Path, destination: Path, *, vanishing: bool = False, timeout: float | None = None
) -> PassResult:
    return rsync.copy(
        (LOCAL, str(source)),
        (LOCAL, str(destination)),
        name="warm pass",
        reporter=Reporter("default"),
        exclude=NOT_COPIED,
        vanishing=vanishing,
        timeout=timeout,
    )


def expected(data: Path) -> dict[str, tuple[str, object]]:
    """Return the tree of `data` as a copy of it should be."""
    return {path: what for path, what in tree(data).items() if path != "flock.lock"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    (tmp_path / "copy").mkdir()
    return tmp_path / "copy"


def test_a_pass_makes_the_copy_equal_and_counts_what_it_did(data: Path, copy: Path) -> None:
    result = mirror(data, copy)
    files = [what for kind, what in expected(data).values() if kind == "file"]
    assert tree(copy) == expected(data)
    assert result.files == len(files)
    assert result.bytes == sum(len(content) for content in files if isinstance(content, bytes))
    assert result.seconds > 0
    again = mirror(data, copy)
    assert (again.files, again.bytes) == (0, 0)


def test_what_is_gone_goes_from_the_copy_too(data: Path, copy: Path) -> None:
    mirror(data, copy)
    part = next((data / "partitions/20261121/datadb").glob("18A*"))
    part.rename(data / "partitions/20261122/datadb/moved")
    (data / "partitions/20261121/datadb/parts.json").unlink()
    (copy / "stray").mkdir()
    (copy / "stray/x").touch()
    (copy / ".rsync.tmp.aBcDeF").touch()
    mirror(data, copy)
    assert tree(copy) == expected(data)


def test_times_and_permissions_are_kept(data: Path, copy: Path) -> None:
    parts = data / "partitions/20261121/datadb/parts.json"
    parts.chmod(0o640)
    os.utime(parts, ns=(1, 1_600_000_000_123_456_789))
    mirror(data, copy)
    status = (copy / parts.relative_to(data)).stat()
    assert status.st_mode & 0o777 == 0o640
    assert status.st_mtime_ns == 1_600_000_000_123_456_789


def test_what_is_no_part_of_a_copy_is_not_copied_and_looks_alike_is(data: Path, copy: Path) -> None:
    for path in (
        "lost+found/x",
        ".vl-borg-hooks/incoming/partitions/x",
        "partitions/20261121/snapshots/one/x",
        # These only look like them.
        "partitions/20261121/datadb/lost+found/x",
        "partitions/snapshots/x",
        "other/flock.lock",
        "other/.vl-borg-hooks/x",
    ):
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        (data / path).touch()
    mirror(data, copy)
    copied = set(tree(copy))
    assert not {path for path in copied if path.startswith((".vl-borg-hooks", "lost+found"))}
    assert "flock.lock" not in copied
    assert not (copy / "partitions/20261121/snapshots").exists()
    assert {
        "partitions/20261121/datadb/lost+found/x",
        "partitions/snapshots/x",
        "other/flock.lock",
        "other/.vl-borg-hooks/x",
    } <= copied


def test_names_of_any_kind_are_copied(data: Path, copy: Path) -> None:
    (data / "odd").mkdir()
    for name in (b"a\nb", b"\xff\xfe", b"-rf", b"$(x)", b" ", b"a'b\"c", b"\\#011"):
        (data / "odd" / os.fsdecode(name)).write_bytes(name)
    mirror(data, copy)
    assert tree(copy) == expected(data)


def test_a_parts_file_replaced_in_the_same_second_by_one_of_the_same_size_is_copied(
    data: Path, copy: Path
) -> None:
    path = data / "partitions/20261121/datadb/parts.json"
    second = 1_700_000_000_000_000_000
    os.utime(path, ns=(second, second + 1))
    mirror(data, copy)
    content = path.read_bytes()
    new = path.with_name("new")
    new.write_bytes(content.replace(b"18A", b"19A"))
    os.utime(new, ns=(second, second + 2))
    new.rename(path)
    mirror(data, copy)
    assert (copy / path.relative_to(data)).read_bytes() == path.read_bytes() != content


def test_a_hard_link_in_the_copy_is_replaced_and_not_written_through(
    data: Path, copy: Path, tmp_path: Path
) -> None:
    mirror(data, copy)
    name = "partitions/20261121/datadb/parts.json"
    outside = tmp_path / "outside"
    os.link(copy / name, outside)
    before = outside.read_bytes()
    (data / name).write_bytes(b"[]")
    mirror(data, copy)
    assert (copy / name).read_bytes() == b"[]"
    assert outside.read_bytes() == before


def test_a_link_in_the_copy_is_replaced_and_not_followed(
    data: Path, copy: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").touch()
    (copy / "partitions").symlink_to(tmp_path / "outside")
    mirror(data, copy)
    assert tree(copy) == expected(data)
    assert os.listdir(tmp_path / "outside") == ["kept"]


FAKE = """\
#!/bin/sh
echo 'file has vanished: "/x/partitions/y"' >&2
echo 'rsync warning: some files vanished before they could be transferred (code 24)' >&2
exit {status}
"""


def use_fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    """Have a fake rsync come first, for what a real one does only by chance."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/rsync").write_text(content)
    (tmp_path / "bin/rsync").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")


def test_vanished_files_are_normal_only_while_the_server_runs(
    data: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake(tmp_path, monkeypatch, FAKE.format(status=24))
    mirror(data, copy, vanishing=True)
    with pytest.raises(CommandFailed) as caught:
        mirror(data, copy)
    assert str(caught.value) == (
        'the warm pass failed: file has vanished: "/x/partitions/y" '
        "(rsync exit status 24, files vanished while they were copied)"
    )


@pytest.mark.parametrize("status", [1, 11, 12, 20, 23, 30, 99])
def test_any_other_status_is_a_failure_of_every_pass(
    data: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    use_fake(tmp_path, monkeypatch, FAKE.format(status=status))
    for vanishing in (False, True):
        with pytest.raises(CommandFailed, match=f"rsync exit status {status}, "):
            mirror(data, copy, vanishing=vanishing)


def test_files_that_really_vanish_are_normal_while_the_server_runs(data: Path, copy: Path) -> None:
    churn = data / "partitions/20261121/datadb/churn"
    churn.mkdir()
    stop = threading.Event()

    def merge() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for part in range(40):
                (churn / f"{number}-{part}").touch()
            for part in range(40):
                (churn / f"{number}-{part}").unlink()

    merger = threading.Thread(target=merge)
    merger.start()
    try:
        for _ in range(10):
            mirror(data, copy, vanishing=True)
    finally:
        stop.set()
        merger.join()
    mirror(data, copy)
    assert tree(copy) == expected(data)


def test_a_source_that_is_missing_is_one_line_in_rsyncs_own_words(
    copy: Path, tmp_path: Path
) -> None:
    with pytest.raises(CommandFailed) as caught:
        mirror(tmp_path / "nothing", copy)
    message = str(caught.value)
    assert message.startswith("the warm pass failed: rsync: ")
    assert "No such file or directory" in message
    assert "rsync exit status 23" in message
    assert "\n" not in message


def test_a_source_that_cannot_be_read_is_a_failure_and_not_a_smaller_copy(
    data: Path, copy: Path
) -> None:
    mirror(data, copy)
    unreadable = data / "partitions/20261121/indexdb"
    if os.geteuid() != 0:
        unreadable.chmod(0)
        with pytest.raises(CommandFailed, match="Permission denied"):
            mirror(data, copy)
        unreadable.chmod(0o755)
        return
    # Nothing is forbidden to root; but the directory of a process that has ended can't be read.
    mounted = subprocess.run(["mount", "--bind", "/proc/self/task", unreadable], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed")
    try:
        with pytest.raises(CommandFailed) as caught:
            mirror(data, copy)
    finally:
        subprocess.run(["umount", "--lazy", unreadable], check=True)
    assert str(unreadable) in str(caught.value)
    assert "rsync exit status 23" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (copy / "partitions/20261121/indexdb/parts.json").exists()


@pytest.mark.timeout(60)
def test_a_pass_that_takes_too_long_is_given_up(
    data: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake(tmp_path, monkeypatch, "#!/bin/sh\nexec sleep 50\n")
    with pytest.raises(CommandFailed, match=r"^the warm pass took longer than 0.2 seconds$"):
        mirror(data, copy, timeout=0.2)


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_an_rsync_that_is_missing_is_said_to_be(
    data: Path,
    copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    timeout: float | None,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandFailed, match="rsync was not found"):
        mirror(data, copy, timeout=timeout)


@pytest.mark.parametrize("name", ["plain", "with space", "it's", 'say "x"', "both '\" "])
def test_the_ssh_command_arrives_as_it_is_whatever_is_in_it(
    data: Path, tmp_path: Path, name: str
) -> None:
    program = tmp_path / name
    arguments = tmp_path / "arguments"
    # As sshd does: the words after the host, joined, go to a shell.
    program.write_text(
        f'#!/bin/sh\nfor a in "$@"; do printf \'%s\\0\' "$a"; done > {shlex.quote(str(arguments))}\n'
        'while [ "$1" != host ]; do shift; done\nshift\nexec sh -c "$*"\n'
    )
    program.chmod(0o755)
    host = SshHost("user@host", (str(program), "-i", 'key file\'s "x"'))
    for source, destination in (
        ((host, str(data)), (LOCAL, str(tmp_path / "pulled here"))),
        ((LOCAL, str(data)), (host, str(tmp_path / "pushed 'there' $(x)"))),
    ):
        rsync.copy(
            source,
            destination,
            name="warm pass",
            reporter=Reporter("default"),
            exclude=NOT_COPIED,
        )
        assert tree(Path(destination[1])) == expected(data)
        sent = arguments.read_bytes().decode().split("\0")
        assert sent[sent.index("-i") + 1] == 'key file\'s "x"'


def test_a_host_that_cannot_be_reached_is_one_line(copy: Path) -> None:
    host = SshHost("127.0.0.1", ("ssh", "-F", "/dev/null", "-p", "1"))
    with pytest.raises(CommandFailed) as caught:
        rsync.copy((host, "/x"), (LOCAL, str(copy)), name="warm pass", reporter=Reporter("x"))
    assert "Connection refused" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_owners_are_set_where_that_is_asked(data: Path, copy: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving files away needs root")
    rsync.copy(
        (LOCAL, str(data)),
        (LOCAL, str(copy)),
        name="restore pass",
        reporter=Reporter("default"),
        owner="12345:54321",
    )
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in copy.rglob("*")}
    assert owners == {(12345, 54321)}


@pytest.mark.parametrize(
    ("version", "refused"),
    [
        ("rsync  version 3.1.2  protocol version 31", True),
        ("rsync  version 2.6.9  protocol version 29", True),
        ("openrsync: protocol version 27", True),
        ("rsync  version 3.1.3  protocol version 31", False),
        ("rsync  version v3.4.1-12-gabc  protocol version 32", False),
        ("rsync  version 10.0.0  protocol version 40", False),
    ],
)
def test_an_rsync_that_is_too_old_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, *, refused: bool
) -> None:
    use_fake(tmp_path, monkeypatch, f"#!/bin/sh\necho '{version}'\n")
    if refused:
        with pytest.raises(CommandFailed, match=r"install rsync 3.1.3 or newer"):
            rsync.check_version(LOCAL)
    else:
        rsync.check_version(LOCAL)


def test_an_rsync_that_is_missing_there_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ssh"
    program.write_text(FAKE_SSH.replace("exec sh", "PATH=/nowhere exec /bin/sh"))
    program.chmod(0o755)
    with pytest.raises(CommandFailed, match="rsync was not found on u@h; install rsync there"):
        rsync.check_version(SshHost("u@h", (str(program),)))


@pytest.mark.parametrize("where", ["here", "another host"])
def test_a_list_of_what_to_copy_is_read_and_has_no_name_that_a_killed_run_could_leave(
    data: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    # As ssh, which is given options, a host and the command.
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nwhile [ "$1" != rsync ]; do shift; done\nexec "$@"\n')
    ssh.chmod(0o755)
    source = LOCAL if where == "here" else SshHost("u@h", (str(ssh),))
    temporary, seen, tools = (tmp_path / name for name in ("temporary", "seen", "tools"))
    temporary.mkdir()
    tools.mkdir()
    real = shutil.which("rsync")
    (tools / "rsync").write_text(f'#!/bin/sh\nls -A {temporary} >{seen}\nexec {real} "$@"\n')
    (tools / "rsync").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    names = ["partitions/20261121", "partitions/a\nb"]
    (data / names[1]).write_text("a name of any kind")
    rsync.copy(
        (source, str(data)), (LOCAL, str(copy)), name="p", reporter=Reporter("default"), only=names
    )
    assert (copy / names[1]).read_text() == "a name of any kind"
    assert (copy / names[0]).is_dir()
    assert not (copy / "partitions/20261122").exists()
    assert seen.read_text() == ""
    assert not list(temporary.iterdir())


def test_a_socket_in_the_data_is_no_reason_to_hang(data: Path, copy: Path) -> None:
    before = os.getcwd()
    os.chdir(data)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("s")
    finally:
        os.chdir(before)
    os.mkfifo(data / "fifo")
    mirror(data, copy)
    assert "fifo" not in tree(copy)
