"""The stand-in keeps the rules on disk that the real server keeps; each test asks both."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.parts.ports import free_port
from tests.parts.victoria_logs import VictoriaLogsProcess
from tests.parts.waiting import wait_until
from tests.setup.victoria_logs import STAND_IN, find, version_of
from vl_borg_hooks.victorialogs.sample import DATA_PART_FILES, INDEX_PART_FILES

DATA_FILES = {"metadata.json", *DATA_PART_FILES}
INDEX_FILES = {"metadata.json", *INDEX_PART_FILES}


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
    (stopped.data_path / "partitions" / "lost+found" / "file").touch()
    with pytest.raises(RuntimeError, match="exit status 2"):
        stopped.start()


def test_a_stray_file_among_the_partitions_stops_the_start(stopped: VictoriaLogsProcess) -> None:
    (stopped.data_path / "partitions" / "20260101.tar").touch()
    with pytest.raises(RuntimeError, match="exit status 2"):
        stopped.start()


def test_empty_directories_among_the_partitions_go_and_hidden_entries_stay(
    stopped: VictoriaLogsProcess,
) -> None:
    empty = stopped.data_path / "partitions" / "lost+found"
    empty.mkdir()
    hidden = stopped.data_path / "partitions" / ".hidden"
    hidden.mkdir()
    (hidden / "file").touch()
    assert stopped.start().server.count() == 3
    assert not empty.exists()
    assert (hidden / "file").exists()


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
    process.start()
    wait_until(lambda: not old.exists(), 30, "the old partition is dropped")
    assert process.server.count() == 0


def test_parts_vanish_by_a_merge_and_rows_do_not(process: VictoriaLogsProcess) -> None:
    process.extra_flags = ("-inmemoryDataFlushInterval=1s",)
    process.start()

    def parts() -> set[str]:
        lists = process.data_path.glob("partitions/*/datadb/parts.json")
        # The real server writes null for none.
        return {name for text in lists for name in json.loads(text.read_text()) or []}

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


def test_metrics_tell_version_and_flags(process: VictoriaLogsProcess) -> None:
    metrics = process.start().server._request("/metrics")
    assert re.search(r'^vm_app_version\{.*short_version="[^"]+"\} 1$', metrics, re.MULTILINE)
    path = json.dumps(str(process.data_path))
    assert f'flag{{name="storageDataPath", value={path}, is_set="true"}} 1' in metrics
    assert 'flag{name="futureRetention", value="2d", is_set="false"} 1' in metrics


@pytest.mark.real_victorialogs
def test_a_start_does_not_find_a_shortened_file(tmp_path: Path) -> None:
    """So a copy has to be verified before it is served."""
    with VictoriaLogsProcess(find().path, tmp_path / "data", free_port()) as process:
        process.server.ingest(rows(3))
        process.stop()
        values = only(process.data_path, "partitions/*/datadb/*/message_values.bin")
        os.truncate(values, values.stat().st_size - 1)
        assert process.start().server.storage_rows() == 3


@pytest.mark.real_victorialogs
def test_an_open_live_tail_holds_a_stop_up(tmp_path: Path) -> None:
    """What tests of a slow stop count on: nobody can connect, and the lock is held for seconds."""
    flags = ["-http.maxGracefulShutdownDuration=3s"]
    with VictoriaLogsProcess(find().path, tmp_path / "data", free_port(), flags) as process:
        with process.server.tail():
            with pytest.raises(subprocess.TimeoutExpired):
                process.stop(timeout=1)
            assert not process.server.healthy()
            with (process.data_path / "flock.lock").open() as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            wait_until(lambda: not process.running, 20, "the end of the stop")
        assert process.stop() == 0


def test_the_stand_in_says_what_it_is(tmp_path: Path) -> None:
    assert version_of(STAND_IN) == "victoria-logs-stand-in"
    with VictoriaLogsProcess(STAND_IN, tmp_path / "data", free_port()) as process:
        assert "a stand-in for tests, not VictoriaLogs" in process.log.read_text()
