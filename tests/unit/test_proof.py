"""The proof of a restore: what has to be served, and what VictoriaLogs may rightly have deleted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.fakes import Clock, FakeClient, FakeService, with_client
from tests.support import make_backup, make_data, said
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.runs.records import Expected
from vl_borg_hooks.stop_window.proof import DELETION_SECONDS, prove
from vl_borg_hooks.victorialogs import flags
from vl_borg_hooks.victorialogs.flags import KeptDays

DAYS = ["20261120", "20261121", "20261122"]
EXPECTED = Expected(dict.fromkeys(DAYS, 21), 1_000_000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    made.install(monkeypatch)
    return made


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Iterator[Target]:
    """A server on three days, with 21 rows each, which keeps what is after `retentionPeriod`."""
    data = make_data(tmp_path / "data", days=DAYS)
    monkeypatch.setattr(flags, "kept_days", lambda value, _: KeptDays(value, "20261130"))
    made = make_backup(tmp_path)
    service = FakeService(data, running=True)
    made.service = service
    yield made
    service.die()


def served(
    monkeypatch: pytest.MonkeyPatch, rows: int, oldest: str = "20260101", limit: str = ""
) -> None:
    sizes = {"retentionPeriod": oldest, "retention.maxDiskSpaceUsageBytes": limit}
    with_client(monkeypatch, FakeClient(sizes, rows=rows))


@pytest.mark.parametrize("rows", [63, 70])
def test_all_rows_or_more_are_a_proof(
    target: Target, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    served(monkeypatch, rows)
    with said() as lines:
        prove(target, EXPECTED)
    assert lines == [f"default: VictoriaLogs serves {rows} rows, 63 of them expected"]


def test_a_row_too_few_is_none(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    served(monkeypatch, 62)
    with pytest.raises(OperatorError, match="serves 62 rows of the 63 in the copy"):
        prove(target, EXPECTED)


def test_a_server_on_other_data_is_none(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    served(monkeypatch, 63)
    assert isinstance(target.service, FakeService)
    target.service.die()
    with pytest.raises(OperatorError, match="runs, but not on"):
        prove(target, EXPECTED)


def test_rows_past_the_retention_of_the_started_server_are_not_expected(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(monkeypatch, 42, oldest="20261121")
    with said() as lines:
        prove(target, EXPECTED)
    assert any("1 of 3 partitions (21 rows) are past -retentionPeriod" in line for line in lines)
    served(monkeypatch, 41, oldest="20261121")
    with pytest.raises(OperatorError, match="serves 41 rows of the 42"):
        prove(target, EXPECTED)


def test_a_server_that_deletes_all_of_it_serves_nothing_of_it(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(monkeypatch, 100, oldest="20261123")
    with pytest.raises(OperatorError, match="would delete all of the copy") as caught:
        prove(target, EXPECTED)
    assert "longer -retentionPeriod" in caught.value.hint


def test_the_oldest_days_are_not_expected_if_victorialogs_may_not_be_so_large(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(monkeypatch, 21, limit="999KB")
    with said() as lines:
        prove(target, EXPECTED)
    assert any("VictoriaLogs keeps 999.0 kB" in line for line in lines)
    served(monkeypatch, 20, limit="999KB")
    with pytest.raises(OperatorError, match="serves 20 rows of the 21"):
        prove(target, EXPECTED)
    served(monkeypatch, 62, limit="1MB")
    with pytest.raises(OperatorError, match="serves 62 rows of the 63"):
        prove(target, EXPECTED)


def test_rows_that_are_still_to_be_deleted_may_be_missing(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(monkeypatch, 5)
    with said() as lines:
        prove(target, Expected(EXPECTED.rows, EXPECTED.bytes, deletions=True))
    assert any("deletions that were not finished" in line for line in lines)


def remove_day(target: Target, day: str) -> None:
    shutil.rmtree(Path(target.data_directory, "partitions", day))


@pytest.mark.parametrize("flags", [None, {"retentionPeriod": "a while"}])
def test_if_the_server_does_not_tell_its_limits_the_disk_is_the_proof(
    target: Target, monkeypatch: pytest.MonkeyPatch, flags: dict[str, str] | None
) -> None:
    monkeypatch.undo()
    with_client(monkeypatch, FakeClient(flags))
    with said() as lines:
        prove(target, EXPECTED)
    assert any("what VictoriaLogs keeps is not known: " in line for line in lines)
    assert any("has 63 rows on its disk, 63 of them expected" in line for line in lines)


def test_without_url_the_disk_is_the_proof(target: Target) -> None:
    with said() as lines:
        prove(target, EXPECTED)
    assert any("has 63 rows on its disk, 63 of them expected" in line for line in lines)


@pytest.mark.parametrize("day", DAYS[1:])
def test_without_url_a_day_that_is_missing_is_an_error(target: Target, day: str) -> None:
    remove_day(target, day)
    with pytest.raises(OperatorError, match=f"has 0 rows of the 21 of {day}"):
        prove(target, EXPECTED)


def test_without_url_a_part_that_is_missing_is_an_error(target: Target) -> None:
    table = Path(target.data_directory, "partitions/20261121/datadb")
    (table / "parts.json").write_text('["18A0000000000000"]')
    with pytest.raises(OperatorError, match="has 10 rows of the 21 of 20261121"):
        prove(target, EXPECTED)


def test_without_url_the_oldest_days_may_be_past_a_retention_that_is_not_known(
    target: Target,
) -> None:
    remove_day(target, DAYS[0])
    with said() as lines:
        prove(target, EXPECTED)
    assert any("has deleted 1 of 3 partitions, the oldest" in line for line in lines)
    for day in DAYS[1:]:
        remove_day(target, day)
    with pytest.raises(OperatorError, match="has deleted all of the copy"):
        prove(target, EXPECTED)


@pytest.mark.parametrize("left", ["[]", "[", '["18A0000000000001"]'])
def test_without_url_a_day_that_is_just_being_deleted_is_waited_for(
    target: Target, clock: Clock, left: str
) -> None:
    parts = Path(target.data_directory, "partitions", DAYS[0], "datadb/parts.json")
    parts.write_text(left)
    clock.after(DELETION_SECONDS / 2, lambda: remove_day(target, DAYS[0]))
    with said() as lines:
        prove(target, EXPECTED)
    assert any("has deleted 1 of 3 partitions, the oldest" in line for line in lines)


@pytest.mark.parametrize("url", [True, False])
def test_of_data_that_could_not_be_counted_only_the_lock_is_a_proof(
    target: Target, monkeypatch: pytest.MonkeyPatch, *, url: bool
) -> None:
    if url:
        served(monkeypatch, 0)
    (Path(target.data_directory) / "partitions/20261121/datadb/parts.json").write_text("{}")
    prove(target, Expected({}, 0))
