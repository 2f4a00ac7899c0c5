"""`restore --to`: a data directory of its own, with no server, no service manager and no config."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.parts.disk import SmallDisk
from tests.support import make_copy, make_data, make_restore, run_command_line, tree, write_config
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.steps import elsewhere
from vl_borg_hooks.system.local import LocalHost

# Does what rsync or sync does, and then what DOES says; LAST is its last argument, the destination.
PROGRAM = """\
#!/bin/sh
for LAST; do :; done
"{real}" "$@" || exit
[ "$1" = --version ] || {{ {does}; }}
"""


class Place:
    """Copies of instances, and a directory for one of them that is not there yet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.extracted = root / "extracted"
        self.new = root / "machine" / "victoria-logs"
        self.environment = {"XDG_CONFIG_HOME": str(root / "none"), "HOME": str(root / "none")}

    def copy(self, name: str = "default") -> StagingCopy:
        return make_copy(self.extracted / name, instance=name)

    def restore(self, *arguments: str | Path) -> CompletedProcess[str]:
        command = ("restore", "--from", self.extracted, "--to", self.new, *arguments)
        return run_command_line(*command, environment=self.environment)

    def replace(self, program: str, does: str) -> None:
        """From now on, `program` also `does` something."""
        directory = self.root / "bin"
        directory.mkdir(exist_ok=True)
        script = directory / program
        script.write_text(PROGRAM.format(real=shutil.which(program), does=does))
        script.chmod(0o755)
        self.environment["PATH"] = f"{directory}:{os.environ['PATH']}"

    def assert_restored(self, copy: StagingCopy) -> None:
        assert tree(self.new) == tree(copy.data)
        assert [path.name for path in self.new.parent.iterdir()] == [self.new.name]

    def assert_nothing_there(self) -> None:
        assert not self.new.exists() or not list(self.new.iterdir())
        left = list(self.new.parent.iterdir()) if self.new.parent.exists() else []
        assert left in ([], [self.new])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("there", [False, True])
def test_a_data_directory_is_made_with_no_config_and_no_server(
    place: Place, *, there: bool
) -> None:
    copy = place.copy()
    if there:
        place.new.mkdir(parents=True)
    done = place.restore("--dry-run")
    assert done.returncode == 0, done.stderr
    assert "default: would restore 42 rows, " in done.stderr
    place.assert_nothing_there()
    done = place.restore()
    assert done.returncode == 0, done.stderr
    assert f"into {place.new}" in done.stderr
    assert "does not reach back to 20261121 deletes older days" in done.stderr
    place.assert_restored(copy)


def test_a_link_to_another_disk_leads_to_the_data(place: Place) -> None:
    copy = place.copy()
    place.new.parent.mkdir()
    disk = place.root / "disk" / "logs"
    place.new.symlink_to(disk)
    assert place.restore().returncode == 0
    assert place.new.is_symlink()
    assert tree(disk) == tree(copy.data)


@pytest.mark.parametrize("kind", ["data", "one file", "file"])
def test_nothing_that_is_there_is_replaced(place: Place, kind: str) -> None:
    place.copy()
    place.new.parent.mkdir()
    if kind == "data":
        make_data(place.new)
    elif kind == "one file":
        place.new.mkdir()
        (place.new / "notes").touch()
    else:
        place.new.touch()
    before = tree(place.new.parent)
    for more in ([], ["--dry-run"]):
        done = place.restore("--yes", *more)
        assert done.returncode == 1
        assert f"{place.new} is not " in done.stderr
        assert done.stderr.count("\n") == 1
    assert tree(place.new.parent) == before


def test_no_place_is_in_the_data_of_a_server_or_in_the_copy(place: Place) -> None:
    copy = place.copy()
    data = make_data(place.root / "live")
    before = tree(data), tree(copy.path)
    place.new = data / "partitions" / "new"
    done = place.restore()
    assert (done.returncode, tree(data)) == (1, before[0])
    assert f"is in VictoriaLogs' data directory {data}" in done.stderr
    place.new = copy.data / "new"
    done = place.restore()
    assert (done.returncode, tree(copy.path)) == (1, before[1])
    assert "is in the copy itself" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_mount_point_is_refused_with_what_to_do(place: Place) -> None:
    place.copy()
    with SmallDisk(place.new, 1 << 20):
        done = place.restore()
    assert done.returncode == 1
    assert "is a mount point, which no rename can replace; name a directory in it" in done.stderr
    place.assert_nothing_there()


@pytest.mark.parametrize("program", ["rsync", "sync"])
def test_killed_it_leaves_nothing_under_the_final_name_and_the_next_run_works(
    place: Place, program: str
) -> None:
    copy = place.copy()
    place.replace(program, "kill -KILL $PPID")
    assert place.restore().returncode == -9
    assert not place.new.exists()
    assert list(place.new.parent.iterdir())
    place.replace(program, ":")
    assert place.restore().returncode == 0
    place.assert_restored(copy)


@pytest.mark.parametrize("program", ["rsync", "sync"])
@pytest.mark.parametrize("does", ["kill -TERM $PPID; sleep 5", "exit 11"])
def test_failed_or_ended_it_leaves_nothing(place: Place, program: str, does: str) -> None:
    place.copy()
    place.replace(program, does)
    done = place.restore()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    place.assert_nothing_there()


def test_what_was_placed_is_checked_by_content(place: Place) -> None:
    place.copy()
    damaged = "$LAST/partitions/20261121/datadb/18A0000000000000/values.bin0"
    place.replace("rsync", f'printf X | dd of="{damaged}" conv=notrunc 2>/dev/null')
    done = place.restore()
    assert done.returncode == 1
    assert "what was placed is not what was backed up" in done.stderr
    place.assert_nothing_there()


def test_what_came_to_the_place_meanwhile_stays(place: Place) -> None:
    place.copy()
    place.replace("sync", f'mkdir -p "{place.new}/mine"')
    done = place.restore()
    assert done.returncode == 1
    assert "Directory not empty" in done.stderr
    assert tree(place.new.parent).keys() == {"victoria-logs", "victoria-logs/mine"}


def test_a_second_run_does_not_disturb_the_first(place: Place) -> None:
    copy = place.copy()
    working = place.new.with_name(".victoria-logs.vl-borg-hooks")
    working.mkdir(parents=True, mode=0o700)
    (working / "of-the-first").touch()
    with LocalHost().flock(str(working)):
        done = place.restore()
    assert done.returncode == 1
    assert f"another run is making {place.new}" in done.stderr
    assert [path.name for path in working.iterdir()] == ["of-the-first"]
    assert place.restore().returncode == 0
    place.assert_restored(copy)


def test_what_somebody_has_planted_beside_the_place_is_refused(place: Place) -> None:
    place.copy()
    theirs = place.root / "theirs"
    theirs.mkdir()
    place.new.parent.mkdir()
    place.new.with_name(".victoria-logs.vl-borg-hooks").symlink_to(theirs)
    done = place.restore()
    assert done.returncode == 1
    assert "is not ours, or not a directory" in done.stderr
    assert list(theirs.iterdir()) == []


def test_of_several_copies_the_operator_names_one(place: Place) -> None:
    place.copy("a")
    wanted = place.copy("b")
    done = place.restore()
    assert done.returncode == 1
    assert "holds copies of a, b, but one is wanted; name its instance" in done.stderr
    done = place.restore("--instance", "c")
    assert "holds copies of a, b, none of c" in done.stderr
    place.assert_nothing_there()
    assert place.restore("--instance", "b").returncode == 0
    place.assert_restored(wanted)


def test_a_damaged_copy_is_not_restored(place: Place) -> None:
    copy = place.copy()
    index = copy.data / "partitions/20261121/datadb/18A0000000000000/index.bin"
    index.write_bytes(b"\0" * index.stat().st_size)
    for more in ([], ["--dry-run"]):
        done = place.restore(*more)
        assert done.returncode == 1
        assert f"vl-borg-hooks verify {copy.path}" in done.stderr
        place.assert_nothing_there()


def test_the_room_is_looked_at_before(tmp_path: Path) -> None:
    copy = make_copy(tmp_path / "copy")
    new = tmp_path / "new"
    restore = make_restore(tmp_path, copy, copy.manifest(), data_path=str(new))
    free = restore.host.free_bytes(str(tmp_path))
    restore.manifest = restore.manifest.model_copy(update={"bytes": free})
    (failed,) = (check for check in elsewhere.checks(restore) if not check.ok)
    assert failed.what.startswith("the copy needs ")
    assert not new.exists()


@pytest.mark.parametrize("options", [("--start",), ("--discard-replaced",)])
def test_what_is_about_a_server_does_not_go_with_it(place: Place, options: tuple[str]) -> None:
    place.copy()
    done = place.restore(*options)
    assert done.returncode == 1
    assert "--to starts and replaces nothing" in done.stderr
    place.assert_nothing_there()


@pytest.mark.parametrize("options", [("--to", "/nowhere"), ("--as", "a")])
def test_it_needs_a_copy(options: tuple[str, str]) -> None:
    done = run_command_line("restore", "--rollback", *options)
    assert done.returncode == 1
    assert "--to and --as need --from DIR" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
class TestOwner:
    def owner(self, place: Place, *arguments: str | Path) -> tuple[set[int], set[int]]:
        done = place.restore(*arguments)
        assert done.returncode == 0, done.stderr
        statuses = [path.stat() for path in (place.new, *place.new.rglob("*"))]
        return {one.st_uid for one in statuses}, {one.st_gid for one in statuses}

    def copy_of_another(self, place: Place) -> StagingCopy:
        copy = place.copy()
        copy.publish(copy.manifest().model_copy(update={"owner": (1234, 1235)}))
        return copy

    def test_is_that_of_the_data_that_was_backed_up(self, place: Place) -> None:
        self.copy_of_another(place)
        assert self.owner(place) == ({1234}, {1235})

    def test_is_that_of_the_empty_directory(self, place: Place) -> None:
        self.copy_of_another(place)
        place.new.mkdir(parents=True)
        os.chown(place.new, 4321, 4322)
        assert self.owner(place) == ({4321}, {4322})

    @pytest.mark.parametrize("name", ["default", "other"])
    def test_is_what_the_config_says(self, place: Place, name: str) -> None:
        self.copy_of_another(place)
        instance = {
            "name": name,
            "data_path": str(place.root / "data"),
            "staging_path": str(place.root / "staging"),
            "service": {"systemd": "unused.service"},
            "restore": {"owner": "77:78"},
        }
        config = write_config(place.root / "config.yaml", [instance])
        more = ("--as", name) if name != "default" else ()
        assert self.owner(place, "--config", config, *more) == ({77}, {78})
