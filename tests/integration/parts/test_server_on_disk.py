"""The stand-in keeps the rules on disk that the real server keeps; each test asks both."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.parts.ports import free_port
from tests.parts.victoria_logs import VictoriaLogsProcess
from tests.parts.waiting import wait_until
from tests.setup.victoria_logs import STAND_IN, version_of

DATA_FILES = {
    "bloom.bin0",
    "column_idxs.bin",
    "column_names.bin",
    "columns_header.bin",
    "columns_header_index.bin",
    "index.bin",
    "message_bloom.bin",
    "message_values.bin",
    "metadata.json",
    "metaindex.bin",
    "timestamps.bin",
    "values.bin0",
}
INDEX_FILES = {"index.bin", "items.bin", "lens.bin", "metadata.json", "metaindex.bin"}


def rows(count: int, first: int = 0) -> list[dict[str, str]]:
    return [{"host": "a", "_msg": f"row {n}", "seq": str(n)} for n in range(first, first + count)]


def only(directory: Path, pattern: str) -> Path:
    found = list(directory.glob(pattern))
    assert len(found) == 1, found
    return found[0]


@pytest.fixture
def stopped(process: VictoriaLogsProcess) -> VictoriaLogsProcess:
    """A server that has taken three rows and was stopped cleanly."""
    with process:
        process.server.ingest(rows(3))
        assert process.stop() == 0
    return process


def test_a_stop_writes_parts_with_right_metadata(stopped: VictoriaLogsProcess) -> None:
    day = only(stopped.data_path, "partitions/*")
    assert day.name == time.strftime("%Y%m%d", time.gmtime())
    part = only(day, "datadb/*/")
    assert json.loads((day / "datadb/parts.json").read_text()) == [part.name]
    assert {file.name for file in part.iterdir()} == DATA_FILES
    metadata = json.loads((part / "metadata.json").read_text())
    sizes = sum(f.stat().st_size for f in part.iterdir() if f.name != "metadata.json")
    assert metadata["CompressedSizeBytes"] == sizes
    assert metadata["RowsCount"] == 3
    assert metadata["MinTimestamp"] <= metadata["MaxTimestamp"] <= time.time_ns()
    index = only(day, "indexdb/*/")
    assert json.loads((day / "indexdb/parts.json").read_text()) == [index.name]
    assert {file.name for file in index.iterdir()} == INDEX_FILES
    metadata = json.loads((index / "metadata.json").read_text())
    assert metadata["ItemsCount"] == 3
    assert metadata["BlocksCount"] == 1


def test_rows_survive_a_clean_stop(stopped: VictoriaLogsProcess) -> None:
    with stopped.start() as again:
        assert sorted(row["seq"] for row in again.server.rows()) == ["0", "1", "2"]
        assert again.server.storage_rows() == 3


def test_kill_loses_what_was_in_memory(process: VictoriaLogsProcess) -> None:
    process.start()
    process.server.ingest(rows(5))
    assert process.kill() == -9
    assert process.start().server.count() == 0


def test_the_lock_is_held_exactly_while_it_runs(process: VictoriaLogsProcess) -> None:
    process.start()
    with (process.data_path / "flock.lock").open() as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.stop()
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(RuntimeError, match=r"(?s)exit status 2.*flock\.lock"):
            process.start()
    process.start()


def test_a_missing_part_stops_the_start(stopped: VictoriaLogsProcess) -> None:
    shutil.rmtree(only(stopped.data_path, "partitions/*/datadb/*/"))
    with pytest.raises(RuntimeError, match="exit status"):
        stopped.start()


def test_a_foreign_name_among_the_partitions_stops_the_start(stopped: VictoriaLogsProcess) -> None:
    (stopped.data_path / "partitions" / "lost+found").mkdir()
    with pytest.raises(RuntimeError, match="exit status"):
        stopped.start()


def test_unlisted_parts_go_and_entries_beside_partitions_stay(
    stopped: VictoriaLogsProcess,
) -> None:
    listed = only(stopped.data_path, "partitions/*/datadb/*/")
    leftover = listed.with_name("00000000DEADBEEF")
    shutil.copytree(listed, leftover)
    hidden = stopped.data_path / ".hidden"
    hidden.mkdir()
    assert stopped.start().server.count() == 3
    assert not leftover.exists()
    assert hidden.exists()


def test_partitions_past_the_retention_go_at_start(process: VictoriaLogsProcess) -> None:
    with process:
        process.server.ingest([{"_time": "2024-02-29T12:00:00.25Z", **rows(1)[0]}])
        assert process.server.rows()[0]["_time"] == "2024-02-29T12:00:00.25Z"
        process.stop()
    old = process.data_path / "partitions" / "20240229"
    assert old.is_dir()
    process.extra_flags = ("-retentionPeriod=7d",)
    assert process.start().server.count() == 0
    assert not old.exists()


def test_parts_vanish_by_a_merge_and_rows_do_not(process: VictoriaLogsProcess) -> None:
    process.extra_flags = ("-inmemoryDataFlushInterval=1s",)
    process.start()

    def parts() -> set[str]:
        lists = process.data_path.glob("partitions/*/datadb/parts.json")
        return {name for text in lists for name in json.loads(text.read_text())}

    process.server.ingest(rows(5))
    wait_until(lambda: len(parts()) == 1, 20, "a part on disk")
    process.server.ingest(rows(5, first=5))
    wait_until(lambda: len(parts()) == 2, 20, "two parts on disk")
    before = parts()
    process.server.merge()
    wait_until(lambda: len(parts()) == 1, 20, "parts are merged")
    assert not parts() & before
    assert process.server.count() == 10


def test_a_form_body_is_swallowed(process: VictoriaLogsProcess) -> None:
    process.start()
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    process.server._request("/insert/jsonline", b'{"_msg":"x","_time":"0"}', form)
    assert process.server.count() == 0


def test_a_range_of_time_is_counted(process: VictoriaLogsProcess) -> None:
    process.start()
    times = ["2024-02-29T23:59:59.999Z", "2024-03-01T00:00:00Z", "2024-03-01T23:59:59.5Z"]
    process.server.ingest({"_time": moment, "host": "a", "_msg": "x"} for moment in times)
    day = "[2024-03-01T00:00:00Z, 2024-03-02T00:00:00Z)"
    assert process.server.count(f"_time:{day}") == 2


def test_metrics_tell_version_and_flags(process: VictoriaLogsProcess) -> None:
    metrics = process.start().server._request("/metrics")
    assert "\nvm_app_version{" in f"\n{metrics}"
    assert "short_version=" in metrics
    path = json.dumps(str(process.data_path))
    assert f'flag{{name="storageDataPath", value={path}, is_set="true"}} 1' in metrics
    assert 'flag{name="futureRetention", value="2d", is_set="false"} 1' in metrics


class TestStandInAlone:
    @pytest.fixture
    def process(self, tmp_path: Path) -> VictoriaLogsProcess:
        return VictoriaLogsProcess(STAND_IN, tmp_path / "data", free_port())

    def test_says_what_it_is(self, process: VictoriaLogsProcess) -> None:
        assert version_of(STAND_IN) == "victoria-logs-stand-in"
        with process:
            assert "a stand-in for tests, not VictoriaLogs" in process.log.read_text()

    def test_a_truncated_part_stops_the_start(self, process: VictoriaLogsProcess) -> None:
        with process:
            process.server.ingest(rows(3))
            process.stop()
        values = only(process.data_path, "partitions/*/datadb/*/values.bin0")
        os.truncate(values, values.stat().st_size - 1)
        with pytest.raises(RuntimeError, match="its metadata says"):
            process.start()

    def test_too_many_small_parts_are_merged(self, process: VictoriaLogsProcess) -> None:
        with process:
            for n in range(9):
                process.server.ingest(rows(1, n))
                process.server.flush()
            assert len(list(process.data_path.glob("partitions/*/datadb/*/"))) == 1
            assert process.server.count() == 9

    def test_start_fails_as_often_as_asked(
        self, process: VictoriaLogsProcess, tmp_path: Path
    ) -> None:
        counter = tmp_path / "count"
        counter.write_text("1")
        environment = {**os.environ, "STAND_IN_FAIL_STARTS_FILE": str(counter)}
        with pytest.raises(RuntimeError, match="exit status 1"):
            process.start(environment)
        process.start(environment)
        assert process.stop() == 0

    def test_stop_and_start_are_as_slow_as_asked(self, process: VictoriaLogsProcess) -> None:
        before = time.monotonic()
        process.start({**os.environ, "STAND_IN_START_DELAY": "0.5", "STAND_IN_STOP_DELAY": "0.5"})
        started = time.monotonic()
        assert started - before >= 0.5
        with pytest.raises(subprocess.TimeoutExpired):
            process.stop(timeout=0.2)
        assert process.server.healthy()
        assert process.stop() == 0
        assert time.monotonic() - started >= 0.5
