"""SteadyIngestion tells the rows that a server has promised to keep."""

from __future__ import annotations

import time

from tests.parts.victoria_logs import SteadyIngestion, VictoriaLogsProcess, doubled
from tests.parts.waiting import wait_until


def test_each_acknowledged_row_is_there_once(process: VictoriaLogsProcess) -> None:
    with process, SteadyIngestion(process.server) as ingestion:
        ingestion.wait_for(100)
        ingestion.stop()
        stored = process.server.rows()
        assert len(ingestion.sequences()) >= 100
        assert ingestion.missing(stored) == set()
        assert doubled(stored) == set()
        assert ingestion.refused == 0


def test_a_clean_restart_loses_nothing_and_refusals_are_counted(
    process: VictoriaLogsProcess,
) -> None:
    with process, SteadyIngestion(process.server) as ingestion:
        ingestion.wait_for(50)
        assert process.stop() == 0
        stopped = time.monotonic()
        wait_until(lambda: ingestion.refused > 0, 30, "a request is refused")
        process.start()
        ingestion.wait_for(50)
        ingestion.stop()
        stored = process.server.rows()
        assert ingestion.missing(stored, before=stopped) == set()
        assert ingestion.missing(stored) == set()
        assert doubled(stored) == set()


def test_lost_and_doubled_rows_are_told(process: VictoriaLogsProcess) -> None:
    with process, SteadyIngestion(process.server) as ingestion:
        ingestion.wait_for(20)
        ingestion.stop()
        stored = process.server.rows()
        lost = int(stored[0]["seq"])
        assert ingestion.missing(stored[1:]) == {lost}
        assert doubled([*stored, stored[0]]) == {lost}
        first = ingestion.acknowledged[0]
        assert ingestion.sequences(before=first.acknowledged) == set()
