"""Hosts: this machine and another do the same, and every argument gets there unchanged."""

from __future__ import annotations

import json
import os
import pwd
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import FAKE_SSH, umask
from vl_borg_hooks.errors import CommandFailed, OperatorError
from vl_borg_hooks.system.hosts import FileLocked, Host, Owner, Tree
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.system.ssh import SOCKETS, SshHost

SHOW = "import json, sys; print(json.dumps(sys.argv[1:]))"
HOSTILE = [
    "two words",
    "",
    'it\'s "quoted"',
    "a\nb\n",
    "$(echo x) `id` $HOME",
    "*?[a-z]~",
    "-rf",
    "--",
    "a;b|c&d>e<f#g!h\\i",
    "ünïcode",
]


@pytest.fixture
def ssh(tmp_path: Path) -> SshHost:
    """A host whose ssh runs here, as sshd would run it there."""
    program = tmp_path / "fake ssh"
    program.write_text(FAKE_SSH)
    program.chmod(0o755)
    return SshHost("user@host", (str(program), "-p", "22"))


@pytest.fixture(params=["this machine", "another"])
def host(request: pytest.FixtureRequest, ssh: SshHost) -> Host:
    return ssh if request.param == "another" else LocalHost()


def test_every_argument_arrives_unchanged(host: Host) -> None:
    printed = host.run([sys.executable, "-c", SHOW, *HOSTILE])
    assert json.loads(printed.stdout) == HOSTILE


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(alphabet=st.characters(exclude_characters="\0", codec="utf-8")), max_size=4)
)
def test_any_argument_survives_the_shell_there(arguments: list[str]) -> None:
    command = SshHost("host").argv(["printf", r"%s\0", "-", *arguments])[-1]
    printed = subprocess.run(["sh", "-c", command], capture_output=True, check=True)
    assert printed.stdout.decode().split("\0")[:-1] == ["-", *arguments]


def test_ssh_never_asks_never_hangs_and_takes_no_host_for_an_option() -> None:
    argv = SshHost("u@h", ("ssh", "-i", "key file")).argv(["true"])
    assert argv[0] == "ssh"
    assert argv[-3:] == ["--", "u@h", "true"]
    for option in ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=10"):
        assert argv[argv.index(option) - 1] == "-o"
    # ssh takes the first of two values, so ours; other options of the operator's are kept.
    assert argv.index("BatchMode=yes") < argv.index("-i")
    assert argv[argv.index("-i") + 1] == "key file"


def test_an_address_with_brackets_is_one_that_ssh_can_resolve() -> None:
    # rsync needs the brackets; ssh takes [::1] for a name.
    host = SshHost("user@[::1]")
    assert host.rsync_location("/x") == "user@[::1]:/x/"
    assert "user@::1" in host.argv(["true"])


def test_a_host_that_cannot_be_reached_is_told_apart() -> None:
    host = SshHost("127.0.0.1", ("ssh", "-F", "/dev/null", "-p", "1"))
    with pytest.raises(CommandFailed) as caught:
        host.run(["true"])
    assert str(caught.value).startswith("127.0.0.1 could not be reached over ssh: ")
    assert "Connection refused" in str(caught.value)
    assert "try: ssh -F /dev/null -p 1 127.0.0.1 true" in str(caught.value)


def test_a_command_that_fails_there_says_where(ssh: SshHost) -> None:
    with pytest.raises(CommandFailed, match=r"^ls /no/such failed on user@host: .*No such file"):
        ssh.run(["ls", "/no/such"])
    assert ssh.run(["sh", "-c", "exit 3"], ok=(3,)).exit_status == 3


def test_an_ssh_that_is_missing_is_one_line() -> None:
    with pytest.raises(CommandFailed, match="the command no-such-ssh was not found"):
        SshHost("h", ("no-such-ssh",)).run(["true"])
    for beside in (SshHost.connected, lambda host: host.flock("/data/flock.lock")):
        with (
            pytest.raises(
                CommandFailed,
                match=r"the command no-such-ssh (could not be started: No such|was not found)",
            ),
            beside(SshHost("h", ("no-such-ssh",))),
        ):
            pass


def test_a_host_is_the_same_as_another_of_its_kind_at_the_same_place(ssh: SshHost) -> None:
    hosts: list[Host] = [LocalHost(), ssh, SshHost("other"), LocalHost(), SshHost("other")]
    assert list(dict.fromkeys(hosts)) == [LocalHost(), ssh, SshHost("other")]


def test_only_what_is_on_this_machine_has_a_local_path(ssh: SshHost) -> None:
    assert LocalHost().local_path("/a b") == Path("/a b")
    assert ssh.local_path("/a b") is None
    assert LocalHost().transport() == []
    assert ssh.transport()[0] == ssh.ssh_command[0]


def test_a_host_that_has_what_it_needs_is_fine(host: Host) -> None:
    host.check()


def test_a_host_without_flock_is_told_before_it_is_needed(tmp_path: Path) -> None:
    program = tmp_path / "ssh"
    program.write_text(FAKE_SSH.replace("exec sh", "PATH=/nowhere exec /bin/sh"))
    program.chmod(0o755)
    with pytest.raises(OperatorError, match="flock --version failed on h"):
        SshHost("h", (str(program),)).check()


NAMES = ["plain", "with space", "it's", "-dash", "new\nline", "$(x)"]


@pytest.mark.parametrize("name", NAMES)
def test_files_are_made_renamed_and_removed(host: Host, tmp_path: Path, name: str) -> None:
    root = f"{tmp_path}/root"
    assert host.entries(root) == []
    assert host.owner(root) is None
    host.make_directory(f"{root}/a/{name}", 0o700)
    host.make_directory(f"{root}/a/{name}", 0o700)
    assert host.entries(f"{root}/a") == [name]
    assert host.is_directory(f"{root}/a/{name}")
    host.make_file(f"{root}/a/{name}/file")
    assert not host.is_directory(f"{root}/a/{name}/file")
    assert stat.S_IMODE(os.stat(f"{root}/a/{name}/file").st_mode) & 0o444 == 0o444
    host.rename(f"{root}/a/{name}", f"{root}/{name}")
    assert sorted(host.entries(root)) == sorted(["a", name])
    host.remove_tree(f"{root}/{name}")
    host.remove_tree(f"{root}/{name}")
    assert host.entries(root) == ["a"]


def test_a_file_that_is_there_is_left_as_it_is(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    os.utime(tmp_path / "file", (1, 1))
    host.make_file(f"{tmp_path}/file")
    assert (tmp_path / "file").read_bytes() == b"content"
    assert (tmp_path / "file").stat().st_mtime == 1


@pytest.mark.parametrize("kind", ["file", "directory", "full directory", "dangling link"])
def test_nothing_is_renamed_over_what_is_there(host: Host, tmp_path: Path, kind: str) -> None:
    source, destination = tmp_path / "source", tmp_path / "destination"
    source.mkdir()
    if kind == "file":
        destination.write_bytes(b"x")
    elif kind == "dangling link":
        source.rmdir()
        source.touch()
        destination.symlink_to("nothing")
    else:
        destination.mkdir()
        if kind == "full directory":
            (destination / "x").touch()
    with pytest.raises(OperatorError):
        host.rename(str(source), str(destination))
    assert source.exists()
    assert os.path.lexists(destination)
    assert destination.is_symlink() == (kind == "dangling link")


def test_a_link_to_a_directory_is_no_directory(host: Host, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("directory")
    assert host.is_directory(f"{tmp_path}/directory")
    assert not host.is_directory(f"{tmp_path}/link")
    assert not host.is_directory(f"{tmp_path}/nothing")


@pytest.mark.parametrize("kind", ["file", "link", "directory with a link"])
def test_a_tree_of_any_kind_is_removed_and_no_link_is_followed(
    host: Host, tmp_path: Path, kind: str
) -> None:
    outside, path = tmp_path / "outside", tmp_path / "path"
    outside.mkdir()
    (outside / "kept").touch()
    if kind == "file":
        path.touch()
    elif kind == "link":
        path.symlink_to(outside)
    else:
        path.mkdir()
        (path / "link").symlink_to(outside)
    host.remove_tree(str(path))
    assert not os.path.lexists(path)
    assert (outside / "kept").exists()


def test_what_lies_below_a_file_is_missing_or_an_error_and_no_crash(
    host: Host, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    below = f"{tmp_path}/file/partitions"
    assert not host.is_directory(below)
    for ask in (host.owner, host.entries, host.free_bytes):
        try:
            ask(below)
        except OperatorError:
            continue


CONTENTS = [b"", b"[]", b"two\nlines\n", b"nul\0within", b"\xff\xfe", b"==> x <==\n"]


def whole_tree(host: Host, root: Path) -> Tree:
    return host.tree(str(root), depth=4, contents=["listed"], without=["left out"])


def test_a_tree_tells_names_times_and_contents(host: Host, tmp_path: Path) -> None:
    started = time.time_ns()
    (tmp_path / "left out" / "listed").mkdir(parents=True)
    for number, content in enumerate(CONTENTS):
        directory = tmp_path / "a" / f"{number}\n \udcff"
        directory.mkdir(parents=True)
        (directory / "listed").write_bytes(content)
        os.utime(directory, ns=(1, 1_700_000_000_000_000_000 + number))
    tree = whole_tree(host, tmp_path)
    assert "a" in tree.names("")
    assert sorted(tree.names("a")) == [f"{number}\n \udcff" for number in range(len(CONTENTS))]
    for number, content in enumerate(CONTENTS):
        path = f"a/{number}\n \udcff"
        assert tree.names(path) == ["listed"]
        assert tree.modified(path) == 1_700_000_000_000_000_000 + number
        assert tree.content(f"{path}/listed") == content
    assert tree.taken == 0 or tree.taken >= started


def test_what_is_not_in_a_tree_is_missing(host: Host, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "listed").write_bytes(b"x")
    tree = whole_tree(host, tmp_path)
    assert tree.names("empty") == []
    for ask in (tree.names, tree.modified, tree.content):
        with pytest.raises(FileNotFoundError):
            ask("no/such")


def test_a_directory_that_is_a_link_is_read_as_what_it_links_to(host: Host, tmp_path: Path) -> None:
    (tmp_path / "real" / "a").mkdir(parents=True)
    (tmp_path / "real" / "a" / "listed").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    assert host.entries(f"{tmp_path}/link") == ["a"]
    tree = whole_tree(host, tmp_path / "link")
    assert tree.names("") == ["a"]
    assert tree.content("a/listed") == b"x"


def test_a_tree_over_ssh_is_fetched_in_one_round_trip(ssh: SshHost, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "listed").write_bytes(b"before")
    tree = whole_tree(ssh, tmp_path)
    (tmp_path / "a" / "listed").write_bytes(b"after")
    assert tree.names("a") == ["listed"]
    assert tree.content("a/listed") == b"before"


def test_a_lock_that_another_process_has_is_told_from_one_that_cannot_be_had(
    host: Host, tmp_path: Path
) -> None:
    path = f"{tmp_path}/it's locked"
    with pytest.raises(OperatorError, match="could not") as caught, host.flock(f"{path}/x"):
        pass
    assert not isinstance(caught.value, FileLocked)
    Path(path).touch()
    with host.flock(path), pytest.raises(FileLocked), host.flock(path):
        pass


def test_to_lock_a_file_does_not_make_it(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="No such file"), LocalHost().flock(f"{tmp_path}/x"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_links_are_made_of_files_and_of_all_in_a_directory(host: Host, tmp_path: Path) -> None:
    root, target = tmp_path / "root", tmp_path / "target"
    (root / "a b" / "deep").mkdir(parents=True)
    target.mkdir()
    for path in ("file", "a b/one", "a b/deep/two", "other"):
        (root / path).write_text(path)
    (root / "a b" / "link").symlink_to("/etc/passwd")
    host.link_files(str(root), [], str(target))
    assert list(target.iterdir()) == []
    host.link_files(str(root), ["file", "a b"], str(target))
    assert sorted(os.listdir(target)) == ["a b", "file"]
    for path in ("file", "a b/one", "a b/deep/two"):
        assert (target / path).samefile(root / path)
    assert os.readlink(target / "a b" / "link") == "/etc/passwd"


def test_what_cannot_be_linked_is_an_error(host: Host, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(OperatorError, match="no such"):
        host.link_files(str(tmp_path), ["no such"], f"{tmp_path}/target")


def test_owners_are_told_and_set(host: Host, tmp_path: Path) -> None:
    us = Owner(os.geteuid(), os.getegid())
    path = f"{tmp_path}/file"
    host.make_file(path)
    assert host.owner(path) == us
    host.set_owner(path, us)
    if os.geteuid() == 0:
        host.set_owner(path, Owner(12345, 54321))
        assert host.owner(path) == Owner(12345, 54321)
        os.symlink("/etc/passwd", f"{tmp_path}/link")
        host.set_owner(f"{tmp_path}/link", Owner(12345, 54321))
        assert os.stat("/etc/passwd").st_uid == 0
        assert os.lstat(f"{tmp_path}/link").st_uid == 12345
    else:
        with pytest.raises(OperatorError):
            host.set_owner(path, Owner(0, 0))


def test_users_and_groups_are_known_by_name_and_by_number(host: Host) -> None:
    root = pwd.getpwuid(0)
    assert host.user_ids("root", "") == Owner(0, root.pw_gid)
    assert host.user_ids("root", "daemon") == Owner(0, 1)
    assert host.user_ids("0", "") == Owner(0, root.pw_gid)
    assert host.user_ids("root", "7") == Owner(0, 7)
    assert host.user_ids("12345", "54321") == Owner(12345, 54321)
    assert host.user_ids("no-such-user", "") is None
    assert host.user_ids("no-such-user", "root") is None
    assert host.user_ids("root", "no-such-group") is None
    assert host.effective_user() == os.geteuid()


def test_free_bytes_are_those_of_the_filesystem_that_a_missing_path_would_be_on(
    host: Host, tmp_path: Path
) -> None:
    status = os.statvfs(tmp_path)
    expected = status.f_bavail * status.f_frsize
    assert abs(host.free_bytes(f"{tmp_path}/not/yet there") - expected) < 1 << 30


def test_locations_end_with_the_slash_that_means_content() -> None:
    assert LocalHost().rsync_location("/a b") == "/a b/"
    assert LocalHost().rsync_location("/a/") == "/a/"
    assert LocalHost().rsync_location("/") == "/"
    assert SshHost("u@h").rsync_location("/a b") == "u@h:/a b/"


def test_a_name_that_is_no_utf8_can_be_renamed(host: Host, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"a\xff")).touch()
    (name,) = [name for name in host.entries(str(tmp_path)) if name.startswith("a")]
    host.rename(f"{tmp_path}/{name}", f"{tmp_path}/renamed")
    assert (tmp_path / "renamed").exists()


@pytest.mark.parametrize("mask", [0o022, 0o077, 0])
def test_the_umask_does_not_decide_who_sees_into_our_directories(
    host: Host, tmp_path: Path, mask: int
) -> None:
    there = tmp_path / "there"
    there.mkdir(mode=0o750)
    with umask(mask):
        host.make_directory(f"{there}/a/b/c", 0o755)
        host.make_directory(f"{there}/a/d", 0o700)
        host.make_directory(str(there), 0o700)
    modes = [stat.S_IMODE((there / path).stat().st_mode) for path in ("a", "a/b", "a/b/c", "a/d")]
    assert modes == [0o755, 0o755, 0o755, 0o700]
    assert stat.S_IMODE(there.stat().st_mode) == 0o750


def test_what_a_killed_run_has_left_of_a_connection_is_removed_by_the_next(
    ssh: SshHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    ended = subprocess.Popen(["true"])
    ended.wait()
    kept = ["vl-borg-hooks-ssh-1-x", "vl-borg-hooks-ssh-x", "of-others"]
    for name in (f"{SOCKETS}{ended.pid}-abc", *kept):
        (tmp_path / "tmp" / name).mkdir(parents=True)
        (tmp_path / "tmp" / name / "ssh").touch()
    # Whoever can write there can't make us wait for a FIFO, nor remove what is another user's.
    kept += [f"{SOCKETS}{ended.pid}-fifo", f"{SOCKETS}{ended.pid}-of-others"]
    os.mkfifo(tmp_path / "tmp" / kept[-2])
    (tmp_path / "tmp" / kept[-1]).mkdir()
    os.chown(tmp_path / "tmp" / kept[-1], 12345, 12345)
    with ssh.connected():
        pass
    assert sorted(os.listdir(tmp_path / "tmp")) == sorted(kept)
