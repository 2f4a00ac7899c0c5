"""What a restore replaces is told before, kept after, and returned to; nothing served is lost."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from tests.parts.site import Site
from tests.parts.waiting import wait_until
from tests.support import command_line, publish
from vl_borg_hooks.runs.records import Expected, Journal, RunRecords
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.victorialogs.swap import INCOMING, Swap, present

pytestmark = pytest.mark.real_victorialogs

STATEMENT = (
    "111 rows are served, 100 are in the copy of {created}: days 20260102 to 20260103 will be "
    "replaced; what is replaced is kept until you remove it"
)


def rows(count: int, day: str, host: str = "old") -> list[Mapping[str, object]]:
    return [
        {"host": host, "_msg": f"{host} {n} of {day}", "_time": f"{day}T00:00:00Z"}
        for n in range(count)
    ]


def days_ago(days: int) -> str:
    return (datetime.now(timezone.utc) - timedelta(days=days)).strftime("%Y-%m-%d")


def backed_up(site: Site) -> Site:
    """Install `site` with 100 rows in an extracted copy, and 11 more in the server."""
    site.install()
    site.server.ingest(rows(100, "2026-01-02"))
    site.hooks("before-create")
    shutil.copytree(site.staging.path, extracted(site))
    site.server.ingest(rows(11, "2026-01-03"))
    site.server.flush()
    # VictoriaLogs makes its metrics anew at most once a second.
    wait_until(lambda: site.server.storage_rows() == 111, 10, "111 rows in the metrics")
    return site


def extracted(site: Site) -> Path:
    return site.root / "extracted"


def restore(site: Site, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return site.hooks("restore", "--from", str(extracted(site)), *options, check=check)


def kept(site: Site) -> list[Path]:
    return sorted((site.data / ".vl-borg-hooks/kept").glob("*"))


def statement(site: Site) -> str:
    return STATEMENT.format(created=site.manifest.created)


def starts(site: Site) -> int:
    return Path(f"{site.data}.log").read_text().count("started server at")


def test_without_the_operators_word_nothing_is_replaced(site: Site) -> None:
    backed_up(site)
    before = starts(site)
    dry = site.hooks("--dry-run", "restore", "--from", str(extracted(site)))
    assert statement(site) in dry.stderr
    refused = restore(site, check=False)
    assert refused.returncode == 1
    assert statement(site) in refused.stderr
    assert (
        "VictoriaLogs is running; nothing was changed; to replace it, add --yes" in refused.stderr
    )
    assert (site.server.count(), starts(site)) == (111, before)


def test_a_closed_stdin_is_no_terminal(site: Site) -> None:
    backed_up(site)
    argv = command_line("--config", site.config, "restore", "--from", extracted(site))
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *argv],
        env=site.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "to replace it, add --yes" in done.stderr


@pytest.mark.parametrize(("answer", "served"), [("n", 111), ("", 111), ("y", 100)])
def test_on_a_terminal_the_operator_is_asked(site: Site, answer: str, served: int) -> None:
    backed_up(site)
    terminal, ours = pty.openpty()
    try:
        os.write(terminal, f"{answer}\n".encode())
        done = subprocess.run(
            command_line(
                *("--config", site.config, "--verbosity", "-1"),
                *("restore", "--from", extracted(site)),
            ),
            stdin=ours,
            capture_output=True,
            text=True,
            env=site.environment,
            timeout=60,
            check=False,
        )
    finally:
        os.close(terminal)
        os.close(ours)
    assert f"{statement(site)}\nReplace it? [y/N] " in done.stderr
    assert done.returncode == (0 if answer == "y" else 1)
    assert site.server.count() == served


def test_replaced_data_is_kept_and_returned_to_and_removed_only_when_asked(site: Site) -> None:
    backed_up(site)
    done = restore(site, "--yes")
    (first,) = kept(site)
    assert f"the data that was replaced is kept in {first}" in done.stderr
    assert site.server.count() == 100
    assert first.name in site.hooks("status").stdout
    (told,) = json.loads(site.hooks("status", "--json").stdout)[0]["replaced"]
    assert told["path"] == str(first)
    assert told["bytes"] > 10_000

    # Backups do not mind it, and a second restore does not replace it.
    site.server.ingest(rows(7, "2026-01-04"))
    site.hooks("before-create")
    assert site.manifest.rows == 107
    assert kept(site) == [first]
    refused = restore(site, "--yes", check=False)
    assert f"replaced data of an earlier restore is still kept in {first}" in refused.stderr

    without_word = site.hooks("restore", "--rollback", check=False)
    assert "107 rows are served, 111 are in the replaced data" in without_word.stderr
    assert site.server.count() == 107
    assert "would return to the 111 rows" in site.hooks("--dry-run", "restore", "--rollback").stderr
    assert site.server.count() == 107
    site.hooks("restore", "--rollback", "--yes")
    assert site.server.count() == 111
    (second,) = kept(site)
    assert second != first

    # What the rollback replaced is kept in turn, with what came after the restore.
    site.hooks("restore", "--rollback", "--yes")
    assert site.server.count() == 107
    (third,) = kept(site)
    assert "would remove" in site.hooks("--dry-run", "restore", "--discard-replaced").stderr
    assert third.exists()
    assert f"removed {third}" in site.hooks("restore", "--discard-replaced").stderr
    assert not (site.data / ".vl-borg-hooks").exists()
    assert site.server.count() == 107
    failed = site.hooks("restore", "--rollback", "--yes", check=False)
    assert "there is no replaced data to return to" in failed.stderr
    assert "no replaced data is kept" in site.hooks("restore", "--discard-replaced").stderr


def test_replaced_data_is_removed_after_the_proof_if_the_operator_says_so_before(
    site: Site,
) -> None:
    backed_up(site)
    done = restore(site, "--yes", "--discard-replaced")
    assert "what is replaced is removed after the proof" in done.stderr
    assert site.server.count() == 100
    assert not (site.data / ".vl-borg-hooks").exists()


def test_a_rollback_to_data_that_does_not_serve_is_undone_and_can_be_tried_again(
    site: Site,
) -> None:
    backed_up(site)
    restore(site, "--yes")
    (old,) = kept(site)
    unit = (site.systemd.unit_directory / site.unit).read_text()
    condition = f"ExecCondition=/bin/sh -c 'test ! -e {site.data}/partitions/20260103'\n"
    site.systemd.write_unit(site.unit, unit.replace("[Service]\n", f"[Service]\n{condition}"))
    site.write_config(start_timeout=3)
    failed = site.hooks("restore", "--rollback", "--yes", check=False)
    assert failed.returncode == 1
    assert "VictoriaLogs is running, on the data that was there before" in failed.stderr
    assert site.server.count() == 100
    assert kept(site) == [old]
    site.systemd.write_unit(site.unit, unit)
    site.write_config()
    site.hooks("restore", "--rollback", "--yes")
    assert site.server.count() == 111


def test_a_rollback_while_victorialogs_is_stopped_leaves_it_stopped(site: Site) -> None:
    backed_up(site)
    restore(site, "--yes")
    site.stop()
    site.hooks("restore", "--rollback", "--yes")
    assert not site.is_running
    site.start()
    assert site.server.count() == 111


def lose_power_in_restore(site: Site, *, placed: bool) -> None:
    """Leave the disk as a power loss in a restore does, with the copy in place or only half of it."""
    site.stop()
    working = site.data / ".vl-borg-hooks"
    shutil.copytree(extracted(site) / "data", working / INCOMING)
    names = present(LocalHost(), str(site.data))
    expected = Expected({"20260102": 100}, 10_000)
    records = RunRecords(site.root / "state", "default")
    records.note(Journal("restore", True, names, source=INCOMING, expected=expected))
    Swap(LocalHost(), str(site.data), names).do()
    if not placed:
        (site.data / "partitions").rename(working / INCOMING / "partitions")


def test_a_restored_server_that_took_rows_after_a_power_loss_is_not_undone(site: Site) -> None:
    backed_up(site)
    lose_power_in_restore(site, placed=True)
    # Started by its unit at boot.
    site.start()
    site.server.ingest(rows(5, "2026-01-05", "new"))
    recovered = site.hooks("recover")
    assert "the restored data is served and stays" in recovered.stderr
    assert site.server.count() == 105
    (old,) = kept(site)
    assert (old / "partitions/20260103").is_dir()
    assert site.journal_is_empty()
    site.hooks("restore", "--rollback", "--yes")
    assert site.server.count() == 111


def test_a_restore_that_a_power_loss_ended_before_the_start_is_undone(site: Site) -> None:
    backed_up(site)
    lose_power_in_restore(site, placed=True)
    site.hooks("recover")
    assert site.server.count() == 111
    assert not (site.data / ".vl-borg-hooks").exists()


@pytest.mark.parametrize("placed", [True, False], ids=["restored", "half"])
def test_rows_that_were_taken_before_an_undo_are_kept(site: Site, *, placed: bool) -> None:
    """The proof fails, because a part of what was restored is missing, or the swap was not done."""
    backed_up(site)
    lose_power_in_restore(site, placed=placed)
    if placed:
        shutil.rmtree(site.data / "partitions/20260102")
    site.start()
    site.server.ingest(rows(5, "2026-01-05", "new"))
    recovered = site.hooks("recover")
    assert site.server.count() == 111
    (taken,) = kept(site)
    assert (taken / "partitions/20260105").is_dir()
    if placed:
        assert f"which has taken new rows, is kept in {taken}" in recovered.stderr
    assert site.journal_is_empty()
    site.hooks("before-create")
    assert site.manifest.rows == 111


def test_rows_that_were_taken_before_a_restore_failed_are_kept(site: Site) -> None:
    backed_up(site)
    # On the restored data, the server lacks a day, and a client writes as soon as it serves.
    url = f"{site.server.url}/insert/jsonline?_stream_fields=host"
    row = json.dumps({"host": "new", "_msg": "new", "_time": "2026-01-05T00:00:00Z"})
    script = site.root / "client.py"
    script.write_text(
        f"""\
import pathlib, time, urllib.request
if not pathlib.Path({str(site.data / "partitions/20260103")!r}).exists():
    headers = {{"Content-Type": "application/stream+json"}}
    # Asked again and again: no event tells a client that a server listens.
    while True:
        try:
            request = urllib.request.Request({url!r}, {row.encode()!r}, headers)
            urllib.request.urlopen(request).read()
            urllib.request.urlopen({site.server.url!r} + "/internal/force_flush").read()
            break
        except OSError:
            time.sleep(0.001)
"""
    )
    unit = (site.systemd.unit_directory / site.unit).read_text()
    lacks = f"[ -e {site.data}/partitions/20260103 ] || rm -r {site.data}/partitions/20260102"
    site.systemd.write_unit(
        site.unit,
        f"{unit}ExecStartPre=/bin/sh -c '{lacks}'\nExecStartPost={sys.executable} {script}\n",
    )
    failed = restore(site, "--yes", check=False)
    assert failed.returncode == 1
    assert "rows of the 100 in the copy" in failed.stderr
    assert site.server.count() == 111
    (taken,) = kept(site)
    assert (taken / "partitions/20260105").is_dir()
    assert f"which has taken new rows, is kept in {taken}" in failed.stderr


@pytest.mark.parametrize("url", [True, False], ids=["url", "no url"])
def test_an_expired_day_does_not_undo_a_restore_into_a_stopped_server(
    site: Site, *, url: bool
) -> None:
    site.install()
    site.server.ingest([*rows(10, days_ago(40)), *rows(20, days_ago(1))])
    site.hooks("before-create")
    shutil.copytree(site.staging.path, extracted(site))
    site.stop()
    change_flags(site, "-retentionPeriod=1w2d")
    site.write_config(**({} if url else {"url": None}))
    done = restore(site, "--yes", "--start")
    if url:
        assert "1 of 2 partitions (10 rows) are past -retentionPeriod" in done.stderr
        assert "20 of them expected" in done.stderr
    assert "restored: 30 rows" in done.stderr
    site.server.wait_healthy()
    assert site.server.count() == 20


def change_flags(site: Site, *flags: str) -> None:
    """Have the unit start VictoriaLogs with `flags`, of which its last counts."""
    unit = (site.systemd.unit_directory / site.unit).read_text()
    usual = "-retentionPeriod=100y"
    assert usual in unit
    changed = unit.replace(usual, " ".join([usual, *flags]))
    site.systemd.write_unit(site.unit, changed)


def test_a_copy_that_is_all_expired_is_not_restored_and_what_was_there_comes_back(
    site: Site,
) -> None:
    backed_up(site)
    site.stop()
    change_flags(site, "-retentionPeriod=1d")
    failed = restore(site, "--yes", check=False)
    assert "VictoriaLogs would delete all of the copy immediately" in failed.stderr
    assert "with a longer -retentionPeriod" in failed.stderr
    assert not site.is_running
    assert sorted(path.name for path in (site.data / "partitions").iterdir()) == [
        "20260102",
        "20260103",
    ]


def test_metrics_behind_a_key_are_asked_for_before_anything_is_placed(site: Site) -> None:
    key = site.root / "key"
    key.write_text("m & m\n")
    backed_up(site)
    change_flags(site, f"-metricsAuthKey=file://{key}")
    site.stop()
    site.start()
    before = starts(site)
    refused = restore(site, "--yes", check=False)
    assert "/metrics answered with HTTP Error 401" in refused.stderr
    assert "auth_keys: metrics:" in refused.stderr
    assert (site.server.count(), starts(site)) == (111, before)
    site.write_config(auth_keys={"metrics": {"file": str(key)}})
    assert "serves 100 rows" in restore(site, "--yes", "--discard-replaced").stderr
    # A stopped server could not be asked before: what is on its disk is the proof.
    site.stop()
    site.write_config()
    done = restore(site, "--yes", "--start")
    assert "what VictoriaLogs keeps is not known: " in done.stderr
    assert "auth_keys: metrics:" in done.stderr
    assert "has 100 rows on its disk, 100 of them expected" in done.stderr


def test_rows_whose_deletion_was_not_finished_may_be_missing(site: Site) -> None:
    site.install(["-delete.enable"])
    site.server.ingest([*rows(60, "2026-01-02", "old"), *rows(40, "2026-01-02", "deleted")])
    site.hooks("before-create")
    shutil.copytree(site.staging.path, extracted(site))
    # A copy from the moment between the request and the deletion.
    task = {
        "task_id": "1",
        "tenant_ids": [{"account_id": 0, "project_id": 0}],
        "filter": "host:deleted",
        "start_time": datetime.now(timezone.utc).isoformat(),
    }
    copy = StagingCopy(extracted(site))
    (copy.data / "delete_tasks.json").write_text(json.dumps([task]))
    publish(copy)
    done = restore(site, "--yes")
    assert "the copy has deletions that were not finished" in done.stderr
    wait_until(lambda: site.server.count() == 60, 10, "VictoriaLogs deletes the 40 others")


def test_a_restore_that_brings_deleted_rows_back_says_so(site: Site) -> None:
    backed_up(site)
    tasks = site.data / "delete_tasks.json"
    said = "rows that were deleted since then come back"
    tasks.write_text("[]")
    os.utime(tasks, (1, 1))
    assert said not in site.hooks("--dry-run", "restore", "--from", str(extracted(site))).stderr
    os.utime(tasks)
    assert said in site.hooks("--dry-run", "restore", "--from", str(extracted(site))).stderr


def test_an_extraction_with_the_data_beside_the_staging_copy_is_restored(site: Site) -> None:
    """Their files are hard links to each other there, as on the disk that was archived."""
    site.install()
    site.server.ingest(rows(100, "2026-01-02"))
    site.write_borgmatic_config()
    site.create_repositories()
    config = site.borgmatic_config.read_text()
    both = config.replace("source_directories:\n", f"source_directories:\n- {site.data}\n")
    assert both != config
    site.borgmatic_config.write_text(both)
    site.borgmatic("create")
    site.server.ingest(rows(11, "2026-01-03"))
    destination = site.extract(site.repositories[0], "latest", extracted(site))
    found = destination.glob("**/data/partitions/20260102/datadb/*/timestamps.bin")
    linked = [path for path in found if path.stat().st_nlink > 1]
    assert linked, "nothing is a hard link to the other"
    restore(site, "--yes")
    assert site.server.count() == 100
    inodes = {path.stat().st_ino for path in linked}
    served = (site.data / "partitions").glob("*/datadb/*/timestamps.bin")
    assert not inodes & {path.stat().st_ino for path in served}


def test_the_oldest_days_that_are_too_much_for_the_servers_limit_undo_nothing(site: Site) -> None:
    site.install()
    days = ["2026-01-02", "2026-01-03", "2026-01-04", "2026-01-05"]
    site.server.ingest([row for day in days for row in rows(10, day)])
    site.hooks("before-create")
    shutil.copytree(site.staging.path, extracted(site))
    change_flags(site, "-retention.maxDiskSpaceUsageBytes=1.5e3")
    site.stop()
    site.start()
    done = restore(site, "--yes")
    assert "but VictoriaLogs keeps 1.5 kB" in done.stderr
    assert "it will drop the oldest days" in done.stderr
    assert "restored: 40 rows" in done.stderr
    wait_until(lambda: site.server.count() < 40, 10, "VictoriaLogs drops the oldest days")
    assert site.server.count("host:old _time:2026-01-05") == 10
