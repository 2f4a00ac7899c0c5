"""verify: whatever is wrong with a copy is named by its path, and nothing is followed or trusted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import (
    EXAMPLES,
    encoded,
    make_copy,
    make_part,
    make_partition,
    publish,
    said,
    write_inventory,
)
from vl_borg_hooks import cli
from vl_borg_hooks.actions.verify import verify_all
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.staging.manifest import Manifest
from vl_borg_hooks.staging.verify import LISTED_PROBLEMS, verify
from vl_borg_hooks.staging.walk import DEEPEST
from vl_borg_hooks.transfer import progress

DAY = "data/partitions/20261121"
PART = f"{DAY}/datadb/18A0000000000000"
INDEX = f"{DAY}/indexdb/18B0000000000001"
MANY = settings(max_examples=EXAMPLES, deadline=None)
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def copy(tmp_path: Path) -> StagingCopy:
    return make_copy(tmp_path / "copy")


def problems_of(copy: StagingCopy, capsys: Capture) -> list[str]:
    """Return the lines that `verify` prints about a copy that is not sound."""
    assert cli.main(["verify", str(copy.path)]) == 1
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    # One problem a line, each beginning with a path; nothing else is said anywhere.
    assert lines
    assert all(line.startswith("/") and ": " in line for line in lines)
    assert printed.err == ""
    return lines


def test_a_sound_copy_is_ok_and_says_what_it_holds(copy: StagingCopy, capsys: Capture) -> None:
    assert cli.main(["verify", str(copy.path)]) == 0
    size = sum(path.stat().st_size for path in copy.data.rglob("*") if path.is_file())
    files = sum(path.is_file() for path in copy.data.rglob("*"))
    assert capsys.readouterr().out == (
        f"{copy.path}: ok: 42 rows, {files} files, {size} bytes of default, "
        "made 2026-11-22T00:00:00+00:00\n"
    )


def test_how_far_a_verification_is_is_said_by_bytes(
    copy: StagingCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_SECONDS", 0)
    with said() as lines:
        assert [report.is_sound for report in verify_all(copy.path, quick=False)] == [True]
    size = progress.human_bytes(copy.manifest().bytes)
    assert lines[-1].startswith(f"{copy.path}: the copy: {size} verified, ")
    assert lines[-1].endswith("/s, 100%")
    assert "left" in lines[-2]
    with said() as lines:
        list(verify_all(copy.path, quick=True))
    assert lines == []


def test_a_copy_is_found_wherever_it_was_extracted_to(tmp_path: Path, capsys: Capture) -> None:
    one = make_copy(tmp_path / "out/var/lib/vl-borg-hooks/one", instance="one")
    two = make_copy(tmp_path / "out/var/lib/vl-borg-hooks/two", instance="two")
    (two.data / "stray").touch()
    assert cli.main(["verify", str(tmp_path / "out")]) == 1
    lines = sorted(capsys.readouterr().out.splitlines())
    assert lines[0].startswith(f"{one.path}: ok: ")
    assert lines[1] == f"{two.data}/stray: is a stray file, not in the inventory"


def write(copy: StagingCopy, path: str, content: bytes) -> None:
    (copy.path / path).write_bytes(content)


def truncate(copy: StagingCopy, path: str) -> None:
    os.truncate(copy.path / path, (copy.path / path).stat().st_size - 1)


def lengthen(copy: StagingCopy, path: str) -> None:
    with open(copy.path / path, "ab") as file:
        file.write(b"x")


def remove(copy: StagingCopy, path: str) -> None:
    shutil.rmtree(copy.path / path)


def bind_socket(copy: StagingCopy, path: str) -> None:
    # Its address has at most 108 bytes, so from the directory itself.
    before = os.getcwd()
    os.chdir((copy.path / path).parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(Path(path).name)
    finally:
        os.chdir(before)


Damage = Callable[[StagingCopy], object]


def each(*damages: Damage) -> Damage:
    """Return the damage that does all of `damages`."""

    def cause(copy: StagingCopy) -> None:
        for damage in damages:
            damage(copy)

    return cause


DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing part": (lambda copy: remove(copy, PART), f"{PART}: is missing"),
    "missing index part": (lambda copy: remove(copy, INDEX), f"{INDEX}: is missing"),
    "missing partition": (lambda copy: remove(copy, DAY), f"{DAY}: is missing"),
    "missing partitions": (lambda copy: remove(copy, "data/partitions"), f"{DAY}: is missing"),
    "missing file": (
        lambda copy: (copy.path / PART / "index.bin").unlink(),
        f"{PART}/index.bin: is missing",
    ),
    "missing parts.json": (
        lambda copy: (copy.path / DAY / "datadb/parts.json").unlink(),
        f"{DAY}/datadb/parts.json: is missing",
    ),
    "missing metadata": (
        lambda copy: (copy.path / PART / "metadata.json").unlink(),
        f"{PART}/metadata.json: is missing",
    ),
    "truncated": (
        lambda copy: truncate(copy, f"{PART}/index.bin"),
        f"{PART}/index.bin: has 543 bytes, should have 544",
    ),
    "truncated index": (
        lambda copy: truncate(copy, f"{INDEX}/items.bin"),
        f"{INDEX}/items.bin: has 199 bytes, should have 200",
    ),
    "longer": (
        lambda copy: lengthen(copy, f"{PART}/index.bin"),
        f"{PART}/index.bin: has 545 bytes, should have 544",
    ),
    "stray part": (
        lambda copy: make_part(copy.path / DAY / "datadb/stray", rows=1, day=1),
        f"{DAY}/datadb/stray: is a stray directory, not in the inventory",
    ),
    "stray file": (
        lambda copy: write(copy, f"{PART}/stray", b""),
        f"{PART}/stray: is a stray file, not in the inventory",
    ),
    "stray partition": (
        lambda copy: make_partition(copy.data / "partitions/20261123"),
        "data/partitions/20261123: is a stray directory, not in the inventory",
    ),
    "stray entry": (
        lambda copy: write(copy, "data/partitions/x", b""),
        "data/partitions/x: is a stray file, not in the inventory",
    ),
    "a file for a directory": (
        each(lambda copy: remove(copy, DAY), lambda copy: write(copy, DAY, b"")),
        f"{DAY}: is a stray file, not in the inventory",
    ),
    "a file for all partitions": (
        each(
            lambda copy: remove(copy, "data/partitions"),
            lambda copy: write(copy, "data/partitions", b""),
        ),
        "data/partitions: is a stray file, not in the inventory",
    ),
    "a file for a part": (
        each(lambda copy: remove(copy, PART), lambda copy: write(copy, PART, b"")),
        f"{PART}: is a stray file, not in the inventory",
    ),
    "link": (
        lambda copy: (copy.path / PART / "link").symlink_to("/etc/passwd"),
        f"{PART}/link: is not a file or directory",
    ),
    "link for a file": (
        each(
            lambda copy: (copy.path / PART / "index.bin").rename(copy.path / "moved"),
            lambda copy: (copy.path / PART / "index.bin").symlink_to(copy.path / "moved"),
        ),
        f"{PART}/index.bin: is not a file or directory",
    ),
    "directory loop": (
        lambda copy: (copy.path / DAY / "loop").symlink_to(copy.data),
        f"{DAY}/loop: is not a file or directory",
    ),
    "fifo": (lambda copy: os.mkfifo(copy.path / PART / "fifo"), f"{PART}/fifo: is not a file or"),
    "socket": (
        lambda copy: bind_socket(copy, f"{PART}/socket"),
        f"{PART}/socket: is not a file or",
    ),
    "too deep": (
        lambda copy: (copy.data / "/".join("d" * (DEEPEST + 1))).mkdir(parents=True),
        f"data/{'/'.join('d' * DEEPEST)}/d: is nested deeper than",
    ),
    "newline in a name": (
        lambda copy: write(copy, f"{PART}/a\nb", b""),
        f"{PART}/a\\nb: is not a name that a copy can hold",
    ),
    "escape sequence in a name": (
        lambda copy: write(copy, f"{PART}/a\x1b[2Jb", b""),
        f"{PART}/a\\x1b[2Jb: is not a name that a copy can hold",
    ),
    "name that is no UTF-8": (
        lambda copy: write(copy, PART + os.fsdecode(b"/a\xff"), b""),
        f"{PART}/a\\udcff: is not a name that a copy can hold",
    ),
    "manifest that is a link": (
        each(
            lambda copy: copy.manifest_path.rename(copy.path / "m"),
            lambda copy: copy.manifest_path.symlink_to("m"),
        ),
        "manifest.json: can't be read: Too many levels of symbolic links",
    ),
    "manifest that is a FIFO": (
        each(lambda copy: copy.manifest_path.unlink(), lambda copy: os.mkfifo(copy.manifest_path)),
        "manifest.json: is not a regular file",
    ),
    "manifest that is a directory": (
        each(lambda copy: copy.manifest_path.unlink(), lambda copy: copy.manifest_path.mkdir()),
        "manifest.json: is not a regular file",
    ),
    "manifest that is no JSON": (
        lambda copy: write(copy, "manifest.json", b"{"),
        "manifest.json: is not valid JSON",
    ),
    "empty manifest": (
        lambda copy: write(copy, "manifest.json", b""),
        "manifest.json: is not valid JSON",
    ),
    "deeply nested manifest": (
        lambda copy: write(copy, "manifest.json", b'{"format": ' + b"[" * 200_000),
        "manifest.json: is not valid JSON",
    ),
    "huge manifest": (
        lambda copy: os.truncate(copy.manifest_path, (16 << 20) + 1),
        "manifest.json: is larger than 16777216 bytes",
    ),
    "missing inventory": (
        lambda copy: copy.inventory_path.unlink(),
        "inventory.jsonl: can't be read: No such file or directory",
    ),
    "inventory that is a link": (
        each(
            lambda copy: copy.inventory_path.rename(copy.path / "i"),
            lambda copy: copy.inventory_path.symlink_to("i"),
        ),
        "inventory.jsonl: can't be read: Too many levels of symbolic links",
    ),
    "inventory that is a FIFO": (
        each(
            lambda copy: copy.inventory_path.unlink(), lambda copy: os.mkfifo(copy.inventory_path)
        ),
        "inventory.jsonl: is not a regular file",
    ),
    "inventory with a line more": (
        lambda copy: lengthen(copy, "inventory.jsonl"),
        "inventory.jsonl: has a line that is not an entry",
    ),
    "deeply nested inventory": (
        lambda copy: write(copy, "inventory.jsonl", b"[" * 200_000),
        "inventory.jsonl: has a line that is not an entry",
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_is_named_with_its_path(copy: StagingCopy, capsys: Capture, damage: str) -> None:
    cause, expected = DAMAGES[damage]
    cause(copy)
    lines = problems_of(copy, capsys)
    assert any(expected in line for line in lines), lines


def invert(path: Path) -> None:
    """Change every byte of a file, and neither its size nor its modification time."""
    times = path.stat()
    path.write_bytes(bytes(byte ^ 0xFF for byte in path.read_bytes()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_file_with_every_byte_inverted_is_found_by_its_content(
    copy: StagingCopy, capsys: Capture
) -> None:
    path = copy.path / PART / "values.bin0"
    invert(path)
    expected = [f"{path}: has another content than when it was backed up"]
    assert problems_of(copy, capsys) == expected
    assert cli.main(["verify", str(copy.path), "--quick"]) == 0


@pytest.mark.parametrize("mode", [0o4755, 0o2644, 0o1644])
def test_a_setuid_setgid_or_sticky_file_is_refused_by_name(
    copy: StagingCopy, capsys: Capture, mode: int
) -> None:
    path = copy.path / PART / "values.bin0"
    path.chmod(mode)
    expected = f"{path}: is setuid, setgid or sticky: mode {mode:04o}"
    assert problems_of(copy, capsys) == [expected]


def test_an_inventory_that_hides_a_damage_does_not_match_its_checksum(
    copy: StagingCopy, capsys: Capture
) -> None:
    (copy.data / "stray").touch()
    lines = copy.inventory_path.read_bytes().splitlines(keepends=True)
    copy.inventory_path.write_bytes(
        b'["", {"stray": [0, "99aa06d3014798d86001c324468d497f"]}]\n' + b"".join(lines[1:])
    )
    expected = f"{copy.inventory_path}: does not match the manifest's checksum"
    assert problems_of(copy, capsys) == [expected]


def change_manifest(copy: StagingCopy, **changes: object) -> None:
    """Write the manifest again with `changes`; None removes a key."""
    fields = json.loads(copy.manifest_path.read_bytes()) | changes
    fields = {key: value for key, value in fields.items() if value is not ...}
    copy.manifest_path.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format": 1}, "has format 1, this version reads 2"),
        ({"format": ...}, "has format None, this version reads 2"),
        ({"format": "2"}, "has format '2', this version reads 2"),
        ({"rows": "42"}, "is not a manifest: rows is wrong"),
        ({"rows": 42.5}, "is not a manifest: rows is wrong"),
        ({"rows": None}, "is not a manifest: rows is wrong"),
        ({"rows": ...}, "is not a manifest: rows is wrong"),
        ({"owner": [0]}, "is not a manifest: owner.1 is wrong"),
        ({"partitions": {}}, "is not a manifest: partitions is wrong"),
        ({"partitions": [{}]}, "is not a manifest: partitions.0.name is wrong"),
        ({"colour": "red"}, "is not a manifest: colour is wrong"),
        ({"instance": 5}, "is not a manifest: instance is wrong"),
        ({"instance": "x: ok\ny"}, "is not a manifest: instance is wrong"),
        ({"created": "\x1b[2J"}, "is not a manifest: created is wrong"),
        ({"created": "\ud800"}, "is not a manifest: text is wrong"),
        ({"rows": int("9" * 4300)}, "is not a manifest: rows is wrong"),
        ({"files": 23}, "says 23 files, but there are 24"),
        ({"bytes": -1}, "says -1 bytes, but there are "),
    ],
)
def test_a_manifest_with_a_wrong_key_names_it(
    copy: StagingCopy, capsys: Capture, changes: dict[str, object], expected: str
) -> None:
    change_manifest(copy, **changes)
    (line,) = problems_of(copy, capsys)
    assert line.startswith(f"{copy.manifest_path}: {expected}")


def test_a_partition_that_is_listed_twice_is_named(copy: StagingCopy, capsys: Capture) -> None:
    fields = json.loads(copy.manifest_path.read_bytes())
    change_manifest(copy, partitions=fields["partitions"] * 2, rows=fields["rows"] * 2)
    assert problems_of(copy, capsys) == [f"{copy.manifest_path}: lists a partition twice"]


@pytest.mark.parametrize("name", ["/etc", "../../etc", "", "x\ny"])
def test_a_partition_that_would_not_be_in_the_copy_is_none(
    copy: StagingCopy, capsys: Capture, name: str
) -> None:
    partitions = json.loads(copy.manifest_path.read_bytes())["partitions"]
    partitions[0]["name"] = name
    change_manifest(copy, partitions=partitions)
    expected = f"{copy.manifest_path}: is not a manifest: partitions.0.name is wrong"
    assert problems_of(copy, capsys) == [expected]


def test_partitions_whose_rows_have_no_printable_sum_are_a_problem_and_no_crash(
    copy: StagingCopy, capsys: Capture
) -> None:
    partitions = json.loads(copy.manifest_path.read_bytes())["partitions"]
    change_manifest(copy, partitions=[{**each, "rows": int("9" * 4300)} for each in partitions])
    expected = f"{copy.manifest_path}: is not a manifest: partitions.0.rows is wrong"
    assert problems_of(copy, capsys) == [expected]


@pytest.mark.parametrize("entry", [["/etc", {}], ["../x", {}], ["a", {"../x": 1}], ["a//b", {}]])
def test_an_inventory_tells_of_nothing_outside_of_the_copy(
    copy: StagingCopy, capsys: Capture, entry: list[object]
) -> None:
    content = copy.inventory_path.read_bytes() + json.dumps(entry).encode() + b"\n"
    copy.inventory_path.write_bytes(content)
    change_manifest(copy, inventory_sha256=hashlib.sha256(content).hexdigest())
    expected = f"{copy.inventory_path}: has a line that is not an entry"
    assert problems_of(copy, capsys) == [expected]


def test_rows_that_do_not_add_up_are_named(copy: StagingCopy, capsys: Capture) -> None:
    change_manifest(copy, rows=43)
    expected = f"{copy.manifest_path}: says 43 rows, but 42 in its partitions"
    assert problems_of(copy, capsys) == [expected]


@pytest.mark.parametrize("key", ["rows", "min_timestamp", "max_timestamp"])
def test_a_partition_that_differs_from_the_manifest_is_named(
    copy: StagingCopy, capsys: Capture, key: str
) -> None:
    partitions = json.loads(copy.manifest_path.read_bytes())["partitions"]
    partitions[1][key] += 1
    change_manifest(copy, partitions=partitions)
    path, rows = copy.data / "partitions/20261122", partitions[1]["rows"]
    assert f"{path}: holds 21 rows, the manifest says {rows}" in problems_of(copy, capsys)


# What a copy can hold that was published as it is: then only VictoriaLogs' own metadata tells.
INNER: dict[str, tuple[Damage, str]] = {
    "missing part": (
        lambda copy: remove(copy, PART),
        f"{PART}: is missing, though parts.json lists it",
    ),
    "missing index part": (
        lambda copy: remove(copy, INDEX),
        f"{INDEX}: is missing, though parts.json lists it",
    ),
    "truncated file": (
        lambda copy: truncate(copy, f"{PART}/index.bin"),
        f"{PART}: holds 5023 bytes, but its metadata.json says 5024",
    ),
    "longer file": (
        lambda copy: lengthen(copy, f"{PART}/index.bin"),
        f"{PART}: holds 5025 bytes, but its metadata.json says 5024",
    ),
    "stray part": (
        lambda copy: make_part(copy.path / DAY / "datadb/stray", rows=1, day=1),
        f"{DAY}/datadb/stray: is a stray part: parts.json does not list it",
    ),
    "stray index part": (
        lambda copy: (copy.path / DAY / "indexdb/stray").mkdir(),
        f"{DAY}/indexdb/stray: is a stray part: parts.json does not list it",
    ),
    "no partition": (
        lambda copy: (copy.path / DAY).rename(copy.data / "partitions/x"),
        "data/partitions/x: is not a partition (YYYYMMDD): VictoriaLogs would not start",
    ),
    "no partition, though its digits are such": (
        lambda copy: (copy.path / DAY).rename(copy.data / "partitions/٢٠٢٦١١٢١"),
        "data/partitions/٢٠٢٦١١٢١: is not a partition (YYYYMMDD): VictoriaLogs would not start",
    ),
    "partition without datadb": (
        lambda copy: remove(copy, f"{DAY}/datadb"),
        f"{DAY}/datadb: is missing",
    ),
    "partition without indexdb": (
        lambda copy: remove(copy, f"{DAY}/indexdb"),
        f"{DAY}/indexdb: is missing",
    ),
    "file among the partitions": (
        lambda copy: write(copy, "data/partitions/20261123", b""),
        "data/partitions/20261123/datadb: is missing",
    ),
    "no parts.json": (
        lambda copy: (copy.path / DAY / "datadb/parts.json").unlink(),
        f"{DAY}/datadb/parts.json: can't be read: No such file",
    ),
    "parts.json that is no list": (
        lambda copy: write(copy, f"{DAY}/datadb/parts.json", b"{}"),
        f"{DAY}/datadb/parts.json: is not a JSON list of part names",
    ),
    "parts.json that leads out": (
        lambda copy: write(copy, f"{DAY}/datadb/parts.json", b'["../../.."]'),
        f"{DAY}/datadb/parts.json: lists '../../..', which is not a part name",
    ),
    "parts.json that lists a part twice": (
        lambda copy: write(
            copy, f"{DAY}/datadb/parts.json", json.dumps([Path(PART).name] * 2).encode()
        ),
        f"{DAY}/datadb/parts.json: lists a part twice",
    ),
    "deeply nested parts.json": (
        lambda copy: write(copy, f"{DAY}/datadb/parts.json", b"[" * 200_000),
        f"{DAY}/datadb/parts.json: is not valid JSON",
    ),
    "huge parts.json": (
        lambda copy: os.truncate(copy.path / DAY / "datadb/parts.json", (16 << 20) + 1),
        f"{DAY}/datadb/parts.json: is larger than",
    ),
    "part name that no file can have": (
        lambda copy: write(copy, f"{DAY}/datadb/parts.json", b'["\\ud800"]'),
        f"{DAY}/datadb/parts.json: lists '\\ud800', which is not a part name",
    ),
    "part name that is too long": (
        lambda copy: write(copy, f"{DAY}/datadb/parts.json", json.dumps(["x" * 300]).encode()),
        f"{DAY}/datadb/{'x' * 300}: is missing, though parts.json lists it",
    ),
    "metadata.json that is no object": (
        lambda copy: write(copy, f"{PART}/metadata.json", b"[]"),
        f"{PART}/metadata.json: is not a JSON object",
    ),
    "metadata.json without rows": (
        lambda copy: write(copy, f"{PART}/metadata.json", b'{"RowsCount": "10"}'),
        f"{PART}/metadata.json: has no number RowsCount",
    ),
    "metadata.json with fewer rows than none": (
        lambda copy: write(copy, f"{PART}/metadata.json", b'{"RowsCount": -1}'),
        f"{PART}/metadata.json: has no number RowsCount",
    ),
    "metadata.json with true for a number": (
        lambda copy: write(copy, f"{PART}/metadata.json", b'{"RowsCount": true}'),
        f"{PART}/metadata.json: has no number RowsCount",
    ),
    "index metadata.json that is no JSON": (
        lambda copy: write(copy, f"{INDEX}/metadata.json", b"x"),
        f"{INDEX}/metadata.json: is not valid JSON",
    ),
    "huge metadata.json": (
        lambda copy: os.truncate(copy.path / PART / "metadata.json", (1 << 20) + 1),
        f"{PART}/metadata.json: is larger than",
    ),
    "no partitions": (lambda copy: remove(copy, "data/partitions"), f"{DAY}: is missing"),
}


@pytest.mark.parametrize("damage", INNER)
def test_a_damage_that_was_published_is_told_by_the_metadata(
    copy: StagingCopy, capsys: Capture, damage: str
) -> None:
    cause, expected = INNER[damage]
    manifest = copy.manifest()
    cause(copy)
    totals = write_inventory(copy)
    copy.publish(manifest.model_copy(update={"inventory_sha256": totals.sha256}))
    lines = problems_of(copy, capsys)
    assert any(expected in line for line in lines), lines


def test_rows_whose_sum_is_absurd_are_a_problem_and_no_crash(
    copy: StagingCopy, capsys: Capture
) -> None:
    # Python refuses to print numbers of more than 4300 digits.
    largest = int("9" * 4300)
    for name in ("18A0000000000000", "18A0000000000001"):
        path = copy.path / DAY / "datadb" / name / "metadata.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"RowsCount": largest}))
    totals = write_inventory(copy)
    change_manifest(copy, inventory_sha256=totals.sha256)
    assert f"{path}: has no number RowsCount" in problems_of(copy, capsys)


@pytest.mark.parametrize("content", [None, b"null", b"[]"])
def test_a_partition_without_parts_is_sound(copy: StagingCopy, content: bytes | None) -> None:
    # So a server leaves it that was killed while it made the partition.
    remove(copy, f"{DAY}/datadb")
    (copy.path / DAY / "datadb").mkdir()
    if content is not None:
        write(copy, f"{DAY}/datadb/parts.json", content)
    publish(copy)
    assert verify(copy).problems == []


def test_a_copy_without_a_manifest_is_none(
    copy: StagingCopy, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    copy.unpublish()
    assert cli.main(["verify", str(copy.path)]) == 1
    assert capsys.readouterr().out == ""
    (line,) = caplog.messages
    assert line.startswith(f"{copy.path}: holds no staging copy")


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "link loop"])
def test_what_holds_no_copy_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "file":
        path.touch()
    elif kind == "empty":
        path.mkdir()
    elif kind == "link loop":
        path.symlink_to("x")
    assert cli.main(["verify", str(path)]) == 1


def test_problems_are_listed_up_to_a_bound(copy: StagingCopy, capsys: Capture) -> None:
    for number in range(LISTED_PROBLEMS * 3):
        (copy.data / f"stray{number}").touch()
    assert len(problems_of(copy, capsys)) == LISTED_PROBLEMS


def test_a_hard_link_out_of_the_copy_is_named_unless_the_copy_shares_its_files(
    copy: StagingCopy, tmp_path: Path, capsys: Capture
) -> None:
    path = copy.path / PART / "index.bin"
    os.link(path, tmp_path / "outside")
    expected = f"{path}: is a hard link to a file outside of the copy"
    assert problems_of(copy, capsys) == [expected]
    assert verify(copy, linked=True).problems == []
    # A stranger's manifest may say what it likes: a restore takes its own word.
    change_manifest(copy, linked=True)
    assert verify(copy).problems == []
    assert verify(copy, linked=False).problems == [expected]


def test_nothing_is_read_through_a_link(copy: StagingCopy, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (copy.path / PART).rename(outside)
    (copy.path / PART).symlink_to(outside)
    assert verify(copy).problems == [f"{copy.path / PART}: is not a file or directory"]


# Arbitrary content: a problem at most, never another exception.

JSON: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**4200, max_value=10**4310)
    | st.floats()
    | st.text(alphabet=st.characters(exclude_categories=()), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["RowsCount", "CompressedSizeBytes", "MinTimestamp", "MaxTimestamp"])
            | st.sampled_from(list(Manifest.model_fields)),
            inner,
            max_size=5,
        )
    ),
    max_leaves=10,
)


CONTENT = st.binary() | JSON.map(encoded)


@pytest.fixture(scope="module")
def pristine() -> Iterator[StagingCopy]:
    with tempfile.TemporaryDirectory() as directory:
        yield make_copy(Path(directory, "copy"))


@contextmanager
def restored(copy: StagingCopy, *paths: Path) -> Iterator[None]:
    """Have the files at `paths` as they were after the block."""
    before = {path: path.read_bytes() for path in [copy.manifest_path, copy.inventory_path, *paths]}
    try:
        yield
    finally:
        for path, content in before.items():
            path.write_bytes(content)


def lines_of(copy: StagingCopy) -> list[str]:
    """Return what verify says; each must be printable by the command line as one line."""
    from vl_borg_hooks.errors import printable

    report = verify(copy)
    for problem in report.problems:
        assert printable(problem).encode().count(b"\n") == 0
    return report.problems


@MANY
@given(content=CONTENT)
def test_any_manifest_is_read_or_refused(pristine: StagingCopy, content: bytes) -> None:
    with restored(pristine):
        pristine.manifest_path.write_bytes(content)
        assert lines_of(pristine)


@MANY
@given(key=st.sampled_from(list(Manifest.model_fields)), value=JSON)
def test_any_value_in_a_manifest_is_read_or_refused(
    pristine: StagingCopy, key: str, value: object
) -> None:
    with restored(pristine):
        fields = json.loads(pristine.manifest_path.read_bytes()) | {key: value}
        pristine.manifest_path.write_bytes(encoded(fields))
        lines_of(pristine)


NAME = st.text(alphabet=st.characters(exclude_categories=()), max_size=5)
ENTRY = st.tuples(NAME, st.dictionaries(NAME, st.integers(), max_size=3)).map(encoded)


@MANY
@given(lines=st.lists(ENTRY | CONTENT, max_size=4), honest=st.booleans())
def test_any_inventory_is_read_or_refused(
    pristine: StagingCopy, lines: list[bytes], honest: bool
) -> None:
    with restored(pristine):
        content = b"\n".join(lines)
        pristine.inventory_path.write_bytes(content)
        if honest:
            digest = hashlib.sha256(content).hexdigest()
            change_manifest(pristine, inventory_sha256=digest)
        assert lines_of(pristine)


def published_with(copy: StagingCopy, path: Path, content: bytes) -> None:
    """Write `content` to `path` of `copy` and have the inventory agree, but not the manifest."""
    path.write_bytes(content)
    change_manifest(copy, inventory_sha256=write_inventory(copy).sha256)


@MANY
@given(
    content=CONTENT | st.lists(NAME, max_size=4).map(encoded),
    table=st.sampled_from(["datadb", "indexdb"]),
)
def test_any_parts_file_is_read_or_refused(
    pristine: StagingCopy, content: bytes, table: str
) -> None:
    path = pristine.path / DAY / table / "parts.json"
    with restored(pristine, path):
        published_with(pristine, path, content)
        lines_of(pristine)


@MANY
@given(content=CONTENT, part=st.sampled_from([PART, INDEX]))
def test_any_part_metadata_is_read_or_refused(
    pristine: StagingCopy, content: bytes, part: str
) -> None:
    path = pristine.path / part / "metadata.json"
    with restored(pristine, path):
        published_with(pristine, path, content)
        lines_of(pristine)


@MANY
@given(
    key=st.sampled_from(["RowsCount", "CompressedSizeBytes", "MinTimestamp", "MaxTimestamp"]),
    value=JSON,
)
def test_any_number_in_part_metadata_is_read_or_refused(
    pristine: StagingCopy, key: str, value: object
) -> None:
    path = pristine.path / PART / "metadata.json"
    with restored(pristine, path):
        fields = json.loads(path.read_bytes()) | {key: value}
        published_with(pristine, path, encoded(fields))
        lines_of(pristine)
