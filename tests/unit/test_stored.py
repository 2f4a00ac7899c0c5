"""What a data directory holds is read on any host, also while a server merges its parts."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support import make_data
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system.hosts import Host, Tree
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.victorialogs import stored


@pytest.fixture
def data(tmp_path: Path) -> Path:
    made = make_data(tmp_path / "data", days=["20261121", "20261122"])
    (made / "partitions/.DS_Store").touch()
    return made


def test_rows_are_counted_by_day(host: Host, data: Path) -> None:
    assert stored.days(host, str(data)) == ["20261121", "20261122"]
    assert stored.rows_by_day(host, str(data)) == {"20261121": 21, "20261122": 21}


def test_a_new_day_without_a_list_has_no_rows(host: Host, data: Path) -> None:
    (data / "partitions/20261123/datadb").mkdir(parents=True)
    assert stored.rows_by_day(host, str(data))["20261123"] == 0


def test_where_there_is_nothing_there_is_no_day(host: Host, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert stored.days(host, str(tmp_path / "empty")) == []
    assert stored.rows_by_day(host, str(tmp_path / "empty")) == {}


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "7", '{"RowsCount": "x"}', '{"RowsCount": null}']
)
def test_metadata_that_makes_no_sense_is_an_error(host: Host, data: Path, content: str) -> None:
    (data / "partitions/20261121/datadb/18A0000000000001/metadata.json").write_text(content)
    with pytest.raises(OperatorError, match=f"could not count the rows in {data}: "):
        stored.rows_by_day(host, str(data))


def test_a_merge_meanwhile_is_read_again(data: Path) -> None:
    table = data / "partitions/20261121/datadb"

    class Merging(LocalHost):
        """Has a merge between the list of parts and the first part's metadata, once."""

        merged = False

        def tree(self, root: str, **options: object) -> Tree:  # type: ignore[override]
            found = super().tree(root, depth=5, contents=[], without=[])
            content = found.content

            def merge_and_read(path: str) -> bytes:
                read = content(path)
                if path.endswith("20261121/datadb/parts.json") and not self.merged:
                    self.merged = True
                    os.rename(table / "18A0000000000000", table / "18A0000000000009")
                    names = ["18A0000000000009", "18A0000000000001"]
                    (table / "parts.json").write_text(json.dumps(names))
                return read

            found.content = merge_and_read  # type: ignore[method-assign]
            return found

    merging = Merging()
    assert stored.rows_by_day(merging, str(data)) == {"20261121": 21, "20261122": 21}
    assert merging.merged


@pytest.mark.parametrize(
    ("content", "expected"), [(None, False), ("[]", False), ("null", False), ('[{"a": 1}]', True)]
)
def test_deletions_that_are_not_finished_are_found(
    host: Host, data: Path, content: str | None, *, expected: bool
) -> None:
    if content is not None:
        (data / "delete_tasks.json").write_text(content)
    assert stored.has_deletions(host, str(data)) is expected


def test_deletions_are_younger_or_older_than_a_copy(host: Host, data: Path) -> None:
    assert not stored.deleted_since(host, str(data), 0)
    (data / "delete_tasks.json").write_text("[]")
    os.utime(data / "delete_tasks.json", (1000, 1000))
    assert stored.deleted_since(host, str(data), 999)
    assert not stored.deleted_since(host, str(data), 1001)


def test_the_room_that_a_directory_takes_is_measured(host: Host, data: Path) -> None:
    before = stored.disk_bytes(host, str(data))
    (data / "large").write_bytes(os.urandom(1 << 20))
    assert stored.disk_bytes(host, str(data)) >= before + (1 << 20)
    shutil.rmtree(data)
    with pytest.raises(OperatorError):
        stored.disk_bytes(host, str(data))


def test_a_directory_that_does_not_exist_yet_holds_nothing(host: Host, tmp_path: Path) -> None:
    """On a new machine."""
    missing = str(tmp_path / "missing")
    assert stored.days(host, missing) == []
    assert stored.rows_by_day(host, missing) == {}
    assert not stored.has_deletions(host, missing)
    assert not stored.deleted_since(host, missing, 0)
