"""Backups with `consistency: snapshot`: nothing acknowledged is missing, and no client notices.

The rows are compared one by one, by their numbers. What the procedure that VictoriaLogs' documentation
tells misses of them in the same run is printed (`pytest -s`), not asserted.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import date, timedelta
from pathlib import Path

import pytest

from tests.parts import documented
from tests.parts.disk import SmallDisk
from tests.parts.site import Site
from tests.parts.unmanaged_site import UnmanagedSite, serving
from tests.parts.victoria_logs import (
    NO_TENANT,
    LogServer,
    RequestRefused,
    SteadyIngestion,
    SteadyQueries,
    doubled,
)
from tests.parts.waiting import wait_until
from tests.setup.victoria_logs import Found
from vl_borg_hooks.staging import verify

pytestmark = pytest.mark.real_victorialogs

# Of each client, before anything is measured.
BATCHES = 3


def rows_of(host: str, size: int = 0) -> Callable[[int], Mapping[str, object]]:
    """Rows of one stream, of about `size` bytes that don't compress well."""

    def row(number: int) -> Mapping[str, object]:
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        return {"host": host, "client": host, "_msg": digest * (size // len(digest) or 1)}

    return row


def rows_of_new_streams(number: int) -> Mapping[str, object]:
    """Rows of which each has a stream of its own."""
    return {"host": f"stream-{number}", "client": "streams", "_msg": f"row {number}"}


def rows_of_days(*days: str) -> Callable[[int], Mapping[str, object]]:
    """Rows that come late, for each of these days in turn."""

    def row(number: int) -> Mapping[str, object]:
        day = days[number % len(days)]
        return {"host": "late", "client": "late", "_msg": "late", "_time": f"{day}T12:00:00Z"}

    return row


def rows_of_more_and_more_days(number: int) -> Mapping[str, object]:
    """Rows of a day that there was not before, and after some of them of another."""
    day = date(2020, 1, 1) + timedelta(days=number // 1500)
    return {"host": "newer", "client": "newer", "_msg": "newer", "_time": f"{day}T12:00:00Z"}


class Clients:
    """Clients by name, and what they have seen."""

    def __init__(self, server: LogServer, stack: ExitStack, **clients: SteadyIngestion) -> None:
        self.by_name = {name: stack.enter_context(made) for name, made in clients.items()}
        queries = ("* | count() rows", '{host="small"} | limit 10')
        self.queries = [stack.enter_context(SteadyQueries(server, query)) for query in queries]

    def wait(self) -> None:
        """Wait until all of them have written some rows more, and asked."""
        for name, client in self.by_name.items():
            goal = len(client.acknowledged) + BATCHES

            def has_gone_on(client: SteadyIngestion = client, goal: int = goal) -> bool:
                return len(client.acknowledged) >= goal

            wait_until(has_gone_on, 60, f"{name} writes")
        wait_until(lambda: all(query.answered for query in self.queries), 60, "queries")

    @property
    def refused(self) -> int:
        """Requests of all that had no answer, or one other than 200."""
        writers = sum(client.refused for client in self.by_name.values())
        return writers + sum(query.refused for query in self.queries)

    def acknowledged(self, before: float) -> int:
        """How many rows of all were acknowledged before that moment."""
        return sum(len(client.sequences(before)) for client in self.by_name.values())

    def missing(self, server: LogServer, before: float) -> dict[str, int]:
        """How many rows acknowledged before that moment `server` has not, by client, if any."""
        lost = {
            name: len(client.missing(self.served(server, name), before))
            for name, client in self.by_name.items()
        }
        return {name: count for name, count in lost.items() if count}

    def served(self, server: LogServer, name: str, where: str = "*") -> list[dict[str, str]]:
        """Return the numbers of all rows of a client that `server` has, `where` that is true."""
        tenant = self.by_name[name].tenant
        return server.rows(f"{where} client:={name} | fields seq", tenant)


@contextmanager
def writing(server: LogServer, **clients: SteadyIngestion) -> Iterator[Clients]:
    """Have these clients write, and others ask, in the block; all have begun by then."""
    with ExitStack() as stack:
        made = Clients(server, stack, **clients)
        made.wait()
        yield made


def back_up(site: UnmanagedSite, clients: Clients) -> float:
    """Make a backup that no client may notice; return when it began."""
    process = site.process.pid
    began = time.monotonic()
    site.hooks("before-create")
    clients.wait()
    assert clients.refused == 0
    assert site.process.running
    assert site.process.pid == process
    assert site.snapshots == []
    site.hooks("after-create")
    return began


def require_complete(site: UnmanagedSite, clients: Clients, began: float) -> None:
    """AssertionError unless the copy has all that was acknowledged before, and what it says."""
    assert f": ok: {site.manifest.rows:,} rows, " in said_by_verify(site)
    assert site.manifest.consistency == "snapshot"
    assert site.manifest.downtime_seconds is None
    copied = verify.partitions(site.staging.data, [])
    assert site.manifest.rows == sum(partition.rows for partition in copied)
    with site.restored() as server:
        assert clients.missing(server, began) == {}
        assert server.storage_rows() == site.manifest.rows
        for name in clients.by_name:
            rows = clients.served(server, name)
            assert not doubled(rows)
            # By the index: a row whose stream is not in it is found by all other filters only.
            found = clients.served(server, name, '{host=~".+"}')
            assert {row["seq"] for row in rows} == {row["seq"] for row in found}


def said_by_verify(site: UnmanagedSite) -> str:
    said = site.hooks("verify", site.staging.path).stdout
    return re.sub(r"(?<=\d),?(?=\d{3}\b)", ",", said)


def missed_as_documented(site: UnmanagedSite, clients: Clients, *, flush: bool) -> str:
    """Make a backup as VictoriaLogs' documentation tells; say what it misses."""
    copy = site.root / f"documented-{time.monotonic_ns()}"
    script = documented.write_script(site.root / "documented.sh", flush=flush)
    began = time.monotonic()
    subprocess.run([script, site.server.url, copy], check=True)
    with serving(site.executable, copy) as server:
        missing = sum(clients.missing(server.server, began).values())
    shutil.rmtree(copy)
    after = " after a flush" if flush else ""
    return f"{missing:,} of {clients.acknowledged(began):,}{after}"


@pytest.mark.parametrize(
    "flags", [(), ("-inmemoryDataFlushInterval=60s",)], ids=["default", "slow-to-flush"]
)
def test_every_row_acknowledged_before_is_in_the_copy_and_no_client_notices(
    tmp_path: Path, victoria_logs: Found, flags: tuple[str, ...]
) -> None:
    with (
        UnmanagedSite(tmp_path, victoria_logs.path, flags) as site,
        writing(
            site.server,
            small=SteadyIngestion(site.server, 20, 0.02, rows_of("small")),
            other=SteadyIngestion(site.server, 20, 0.05, rows_of("other")),
            # Of 5 MB.
            big=SteadyIngestion(site.server, 2_500, 1.0, rows_of("big", 2_000)),
            streams=SteadyIngestion(site.server, 50, 0.05, rows_of_new_streams),
        ) as clients,
    ):
        first = back_up(site, clients)
        require_complete(site, clients, first)
        missed = [missed_as_documented(site, clients, flush=flush) for flush in (False, True)]
        second = back_up(site, clients)
        require_complete(site, clients, second)
        ours = f"0 of {clients.acknowledged(second):,}"
    print(f"\nacknowledged and missed: as documented {', '.join(missed)}; with ours {ours}")


def test_each_row_is_found_by_its_stream_if_each_has_a_new_one(
    tmp_path: Path, victoria_logs: Found
) -> None:
    with (
        UnmanagedSite(tmp_path, victoria_logs.path) as site,
        # As fast as one thread can.
        writing(
            site.server,
            streams=SteadyIngestion(site.server, 500, 0.001, rows_of_new_streams),
        ) as clients,
    ):
        began = back_up(site, clients)
    require_complete(site, clients, began)


def test_rows_of_all_tenants_are_in_the_copy(tmp_path: Path, victoria_logs: Found) -> None:
    with (
        UnmanagedSite(tmp_path, victoria_logs.path) as site,
        writing(
            site.server,
            **{
                f"tenant{number}": SteadyIngestion(
                    site.server, 20, 0.05, rows_of(f"tenant{number}"), tenant
                )
                for number, tenant in enumerate([NO_TENANT, (0, 7), (12, 0), (4_294_967_295, 7)])
            },
        ) as clients,
    ):
        require_complete(site, clients, back_up(site, clients))


def test_rows_that_come_late_for_older_days_are_in_the_copy(
    tmp_path: Path, victoria_logs: Found
) -> None:
    days = [f"2026-0{month}-02" for month in range(1, 7)]
    with (
        UnmanagedSite(tmp_path, victoria_logs.path) as site,
        writing(
            site.server,
            late=SteadyIngestion(site.server, 60, 0.05, rows_of_days(*days)),
            newer=SteadyIngestion(site.server, 30, 0.05, rows_of_more_and_more_days),
        ) as clients,
    ):
        back_up(site, clients)
        require_complete(site, clients, back_up(site, clients))
        known = {partition.name for partition in site.manifest.partitions}
        assert known >= {"20200101", *(day.replace("-", "") for day in days)}


def test_a_server_that_takes_nothing_in_is_backed_up(tmp_path: Path, victoria_logs: Found) -> None:
    with UnmanagedSite(tmp_path, victoria_logs.path) as site:
        site.hooks("before-create")
        assert site.manifest.rows == 0
        site.hooks("after-create")
        for day in ("2026-01-02", "2026-02-03"):
            site.server.ingest({"host": "old", "_time": f"{day}T00:00:00Z"} for _ in range(100))
        site.hooks("before-create")
        before = files_of_parts(site)
        site.hooks("after-create")
        site.hooks("before-create")
        assert before
        assert files_of_parts(site) == before
        assert site.snapshots == []
        assert site.manifest.rows == 200
        with site.restored() as server:
            assert server.count() == 200


def files_of_parts(site: UnmanagedSite) -> dict[str, int]:
    """The files of the copy that are in parts, and which file each is."""
    return {
        str(path): path.stat().st_ino
        for path in site.staging.data.glob("partitions/*/*/*/*")
        if path.is_file()
    }


def test_a_server_that_is_read_only_for_lack_of_space_is_backed_up(
    tmp_path: Path, victoria_logs: Found
) -> None:
    size, least = 64 << 20, 40 << 20
    flags = [f"-storage.minFreeDiskSpaceBytes={least}"]
    with (
        SmallDisk(tmp_path / "disk", size) as disk,
        UnmanagedSite(tmp_path / "site", victoria_logs.path, flags, disk.path / "data") as site,
    ):
        with SteadyIngestion(site.server, 50, 0.01, rows_of("small", 256)) as client:
            client.wait_for(500)
            (disk.path / "filler").write_bytes(bytes(size - least))
            wait_until(site.server.is_read_only, 60, "the server is read-only")
            wait_until(lambda: client.refused, 60, "a row is refused")
        began = time.monotonic()
        site.hooks("before-create")
        assert site.snapshots == []
        with site.restored() as server:
            rows = server.rows("client:=small | fields seq")
            assert not client.missing(rows, began)
            assert server.storage_rows() == site.manifest.rows
        with pytest.raises(RequestRefused):
            site.server.ingest([{"host": "still", "_msg": "read-only"}])


def test_auto_uses_snapshots_and_says_so(site: Site, tmp_path: Path) -> None:
    site.install(consistency="auto")
    site.write_borgmatic_config()
    site.create_repositories()
    process = site.systemd.show(site.unit, "MainPID")
    with writing(
        site.server, small=SteadyIngestion(site.server, 20, 0.02, rows_of("small"))
    ) as clients:
        began = time.monotonic()
        created = site.borgmatic("--verbosity", "1", "create")
        clients.wait()
        assert clients.refused == 0
    assert site.systemd.show(site.unit, "MainPID") == process
    why = "VictoriaLogs offers snapshots"
    assert f"VictoriaLogs was not stopped ({why})" in created.stdout + created.stderr
    assert (site.manifest.consistency, site.manifest.consistency_why) == ("snapshot", why)
    assert "final pass snapshot" in site.hooks("status").stdout
    (found,) = json.loads(site.hooks("status", "--json").stdout)
    assert found["manifest"]["consistency"] == "snapshot"

    site.stop()
    shutil.rmtree(site.data)
    extracted = site.extract(site.repositories[0], "latest", tmp_path / "extracted")
    site.hooks("restore", "--from", str(extracted), "--start")
    assert clients.missing(site.server, began) == {}
    assert site.server.storage_rows() == site.manifest.rows
