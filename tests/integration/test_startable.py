"""A server that runs is not stopped if it could not start again: tried on the real one, both ways."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parts.ports import free_port
from tests.parts.victoria_logs import VictoriaLogsProcess
from tests.setup.victoria_logs import Found
from tests.support import FAKE_SSH
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.system.ssh import SshHost
from vl_borg_hooks.victorialogs import startable

pytestmark = [pytest.mark.real_victorialogs, pytest.mark.timeout(60)]

DAY = "20260101"


def rewrite(path: Path, content: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(content)


def a_part(table: Path) -> Path:
    return table / str(json.loads((table / "parts.json").read_text())[0])


def half_a_day(partitions: Path) -> None:
    """As a copy that was interrupted leaves it."""
    shutil.copytree(partitions / DAY / "datadb", partitions / "20260105" / "datadb")


def unlisted(partitions: Path, table: str) -> None:
    (partitions / DAY / table / "parts.json").unlink()


# What is done to the partitions of a running server, and what is found then.
PANICS: dict[str, tuple[Callable[[Path], object], str]] = {
    "stray file": (lambda p: (p / "notes.txt").touch(), "notes.txt: is not a directory"),
    "file called as a day": (lambda p: (p / "20260105").touch(), "20260105: is not a directory"),
    "stray directory": (
        lambda p: shutil.copytree(p / DAY, p / f"{DAY}.bak"),
        f"{DAY}.bak: is not the partition of a day (YYYYMMDD)",
    ),
    "no day of the calendar": (
        lambda p: shutil.copytree(p / DAY, p / "20260231"),
        "20260231: is not the partition of a day (YYYYMMDD)",
    ),
    "half-copied day": (half_a_day, "20260105: has no indexdb"),
    "data part missing": (
        lambda p: shutil.rmtree(a_part(p / DAY / "datadb")),
        "is missing, though parts.json lists it",
    ),
    "index part missing": (
        lambda p: shutil.rmtree(a_part(p / DAY / "indexdb")),
        "is missing, though parts.json lists it",
    ),
    "parts without a list": (
        lambda p: unlisted(p, "datadb"),
        f"{DAY}/datadb: has parts, but no parts.json",
    ),
    "damaged list": (
        lambda p: rewrite(p / DAY / "datadb" / "parts.json", '["18'),
        f"{DAY}/datadb/parts.json: is not a JSON list of part names",
    ),
    "list of something else": (
        lambda p: rewrite(p / DAY / "indexdb" / "parts.json", "[1]"),
        f"{DAY}/indexdb/parts.json: is not a JSON list of part names",
    ),
    "damaged delete tasks": (
        lambda p: rewrite(p.parent / "delete_tasks.json", "{"),
        "delete_tasks.json: is not a JSON list",
    ),
}
HARMLESS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda p: None,
    "hidden file": lambda p: (p / ".DS_Store").touch(),
    "hidden directory": lambda p: shutil.copytree(p / DAY, p / ".trash"),
    "empty directory": lambda p: (p / "lost+found").mkdir(),
    "empty day": lambda p: (p / "20260105").mkdir(),
    "day that is being removed": lambda p: rewrite(p / DAY / ".delete-this-dir", ""),
    "day without data": lambda p: shutil.copytree(
        p / DAY / "indexdb", p / "20260105" / "indexdb", dirs_exist_ok=True
    ),
    "index parts without a list": lambda p: unlisted(p, "indexdb"),
    "list of nothing": lambda p: rewrite(p / DAY / "datadb" / "parts.json", "null"),
    "no delete tasks": lambda p: rewrite(p.parent / "delete_tasks.json", "null"),
    "stray part": lambda p: shutil.copytree(
        a_part(p / DAY / "datadb"), p / DAY / "datadb" / "0000000000000000"
    ),
    "stray file in a day": lambda p: (p / DAY / "notes.txt").touch(),
    "linked day": lambda p: (p / "20260105").symlink_to(
        shutil.copytree(p / DAY, p.parent / "elsewhere")
    ),
}


def starts(process: VictoriaLogsProcess) -> bool:
    try:
        process.start()
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("name", [*PANICS, *HARMLESS])
def test_what_it_panics_at_is_found_and_nothing_else(
    victoria_logs: Found, tmp_path: Path, name: str
) -> None:
    data = tmp_path / "data"
    over_ssh = tmp_path / "ssh"
    over_ssh.write_text(FAKE_SSH)
    over_ssh.chmod(0o755)
    do, expected = PANICS.get(name) or (HARMLESS[name], "")
    with VictoriaLogsProcess(victoria_logs.path, data, free_port()) as process:
        day = f"{DAY[:4]}-{DAY[4:6]}-{DAY[6:]}T12:00:00Z"
        process.server.ingest({"host": "a", "_msg": str(n), "_time": day} for n in range(10))
        # Now all is in files, and no merge will come.
        process.stop()
        process.start()
        do(data / "partitions")
        assert process.server.healthy()
        found = [
            startable.obstacles(startable.look(host, str(data)), victoria_logs.version)
            for host in (LocalHost(), SshHost("user@host", (str(over_ssh),)))
        ]
        process.stop()
        assert starts(process) is not bool(expected)
    for obstacles in found:
        assert len(obstacles) == bool(expected), obstacles
        assert all(obstacle.endswith(expected) for obstacle in obstacles)
