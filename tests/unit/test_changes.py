"""What a final pass has to copy, found from two listings, here and over ssh alike."""

from __future__ import annotations

import builtins
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system.hosts import Host
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.victorialogs import changes, freeze


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for day in ("20260101", "20260102"):
        for kind in ("datadb", "indexdb"):
            set_parts(root, day, kind, "A", "B")
    (root / "flock.lock").touch()
    (root / "delete_tasks.json").write_text("[]")
    (root / ".vl-borg-hooks" / "frozen").mkdir(parents=True)
    (root / "partitions" / "20260101" / "snapshots" / "x").mkdir(parents=True)
    (root / "snapshots").mkdir()
    return root


def set_parts(root: Path, day: str, kind: str, *names: str) -> None:
    """Make the parts `names` count, as VictoriaLogs does: parts first, then the list, by rename."""
    table = root / "partitions" / day / kind
    table.mkdir(parents=True, exist_ok=True)
    for name in names:
        (table / name).mkdir(parents=True, exist_ok=True)
        (table / name / "values.bin0").write_text(name)
    (table / "new.json").write_text(json.dumps(names))
    os.replace(table / "new.json", table / "parts.json")


def test_nothing_changed_is_nothing_to_copy(host: Host, data: Path) -> None:
    before = changes.read(host, str(data))
    found = changes.delta(before, changes.read(host, str(data), before))
    assert [path for path in found.copied if "partitions" in path] == []
    assert found.removed == []
    assert before.partitions == {"20260101", "20260102"}


def test_a_copy_lacks_nothing_of_what_it_was_made_of(
    host: Host, data: Path, tmp_path: Path
) -> None:
    os.utime(data / "delete_tasks.json", ns=(1_700_000_000_123_456_789,) * 2)
    shutil.copytree(data, tmp_path / "copy")
    here = changes.read(LocalHost(), str(tmp_path / "copy"))
    found = changes.delta(here, changes.read(host, str(data)))
    assert [path for path in found.copied if "partitions" in path] == []
    assert found.removed == []


def test_a_merge_a_new_day_and_a_dropped_one(host: Host, data: Path) -> None:
    before = changes.read(host, str(data))
    set_parts(data, "20260102", "datadb", "C")
    set_parts(data, "20260103", "datadb", "D")
    set_parts(data, "20260103", "indexdb")
    shutil.rmtree(data / "partitions" / "20260101")
    found = changes.delta(before, changes.read(host, str(data), before))
    assert found.removed == ["partitions/20260101"]
    assert found.copied == [
        "delete_tasks.json",
        "snapshots",
        "partitions/20260102/datadb/C",
        "partitions/20260102/datadb/parts.json",
        "partitions/20260103/datadb/D",
        "partitions/20260103/datadb/parts.json",
        "partitions/20260103/indexdb/parts.json",
    ]


def test_the_parts_that_a_merge_has_replaced(host: Host, data: Path) -> None:
    before = changes.read(host, str(data))
    set_parts(data, "20260102", "datadb", "A", "C")
    shutil.rmtree(data / "partitions" / "20260101")
    now = changes.read(host, str(data), before)
    assert changes.gone_parts(before, now) == ["partitions/20260102/datadb/B"]


def test_a_list_that_is_replaced_within_a_tick_by_one_of_the_same_size_is_seen(
    host: Host, data: Path
) -> None:
    table = data / "partitions" / "20260101" / "datadb"
    before = changes.read(host, str(data))
    times = table.stat()
    set_parts(data, "20260101", "datadb", "A", "C")
    os.utime(table, ns=(times.st_atime_ns, times.st_mtime_ns))
    found = changes.delta(before, changes.read(host, str(data), before))
    assert "partitions/20260101/datadb/C" in found.copied


def test_a_partition_that_has_not_changed_costs_two_stats(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the stop window, with years of partitions, each more of them would be downtime."""
    for table in data.glob("partitions/*/*db"):
        os.utime(table, ns=(1_700_000_000_000_000_000,) * 2)
    before = changes.read(LocalHost(), str(data))
    asked: Counter[str] = Counter()

    def count(module: object, name: str) -> None:
        original = getattr(module, name)

        def counting(*arguments: Any, **options: Any) -> Any:
            asked[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, counting)

    for name in ("stat", "lstat", "listdir", "scandir", "open"):
        count(os, name)
    count(builtins, "open")
    now = changes.read(LocalHost(), str(data), before)
    monkeypatch.undo()
    assert now.tables == before.tables
    # Of each partition its two tables; the data directory and the partitions in it.
    assert asked == {"stat": 2 * len(before.partitions), "listdir": 2}


def test_what_is_new_beside_the_tables_is_seen(host: Host, data: Path) -> None:
    before = changes.read(host, str(data))
    (data / "partitions" / "20260102" / "new.json").touch()
    (data / "new").touch()
    now = changes.read(host, str(data), before)
    assert now.others - before.others == {"new", "partitions/20260102/new.json"}


NO_LISTS = ["", '{"A": 1}', "{}", "0", '""', "false", '["../A"]', '["A"]["B"]', "[1]", "\0\0"]


@pytest.mark.parametrize("content", NO_LISTS)
def test_a_list_that_is_none_is_an_error(host: Host, data: Path, content: str) -> None:
    (data / "partitions" / "20260101" / "datadb" / "parts.json").write_text(content)
    with pytest.raises(OperatorError, match=r"could not list "):
        changes.read(host, str(data))


@pytest.mark.parametrize("content", ["null", "[]"])
def test_a_list_of_nothing_is_an_empty_table(host: Host, data: Path, content: str) -> None:
    (data / "partitions" / "20260101" / "datadb" / "parts.json").write_text(content)
    assert changes.read(host, str(data)).tables["partitions/20260101/datadb"].parts == ()


def test_a_deletion_of_rows_is_a_small_file_to_copy_and_nothing_more(
    host: Host, data: Path
) -> None:
    # VictoriaLogs deletes rows by merges, which make new parts.
    before = changes.read(host, str(data))
    (data / "delete_tasks.json").write_text("[1]")
    os.utime(data / "delete_tasks.json", ns=(1, 1))
    found = changes.delta(before, changes.read(host, str(data), before))
    assert found.copied == ["delete_tasks.json", "snapshots"]


def test_what_is_frozen_stays_whatever_becomes_of_the_data(host: Host, data: Path) -> None:
    frozen = str(data / ".vl-borg-hooks" / "frozen")
    assert freeze.is_possible(host, str(data), frozen)
    part, listed = "partitions/20260101/datadb/A", "partitions/20260101/datadb/parts.json"
    freeze.freeze(host, str(data), frozen, [part, listed])
    set_parts(data, "20260101", "datadb", "C")
    shutil.rmtree(data / part)
    assert Path(frozen, part, "values.bin0").read_text() == "A"
    assert json.loads(Path(frozen, listed).read_text()) == ["A", "B"]


def test_freezing_is_impossible_where_no_link_can_be_made(tmp_path: Path, data: Path) -> None:
    elsewhere = Path("/dev/shm") / f"vl-borg-hooks-test-{os.getpid()}"
    assert not freeze.is_possible(LocalHost(), str(data), str(elsewhere))
    assert not elsewhere.exists()


def test_the_days_that_changed_last_are_known_by_their_own_clock() -> None:
    second = 1_000_000_000
    listing = changes.Listing(
        {
            "partitions/20260101/datadb": changes.Table((), 100 * second),
            "partitions/20260101/indexdb": changes.Table((), 10 * second),
            "partitions/20260102/datadb": changes.Table((), 20 * second),
            "partitions/20260103/datadb": changes.Table((), 95 * second),
            "partitions/20260104/datadb": changes.Table((), 90 * second),
        },
        frozenset(),
    )
    assert changes.recent(listing, 10, 9) == ["20260101", "20260103", "20260104"]
    assert changes.recent(listing, 10, 2) == ["20260101", "20260103"]
    assert changes.recent(listing, 1000, 9) == ["20260101", "20260102", "20260103", "20260104"]
    assert changes.recent(changes.NOTHING, 10, 9) == []
