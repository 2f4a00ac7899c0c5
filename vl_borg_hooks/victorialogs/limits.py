"""What a running VictoriaLogs keeps: the limits of age and size that its flags set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system.hosts import Host
from vl_borg_hooks.victorialogs import flags
from vl_borg_hooks.victorialogs.flags import KeptDays
from vl_borg_hooks.victorialogs.http import Client

# watchMaxDiskSpaceUsage in storage.go never drops the last two days; one of them may be new by then.
KEPT_WHATEVER_SIZE = 1


@dataclass(frozen=True)
class Limits:
    """The days that a server keeps, and the bytes that its parts may have; 0 for any number."""

    days: KeptDays
    bytes: int

    def too_old(self, rows: Mapping[str, int]) -> list[str]:
        """Return which of the days of `rows` the server deletes as soon as it starts."""
        return [day for day in rows if day not in self.days]

    def kept(self, rows: Mapping[str, int], size: int) -> dict[str, int]:
        """Return the part of `rows` that the server certainly keeps, of `size` bytes in all."""
        in_time = {day: count for day, count in rows.items() if day in self.days}
        if not self.bytes or size <= self.bytes:
            return in_time
        newest = sorted(in_time)[-KEPT_WHATEVER_SIZE:]
        return {day: in_time[day] for day in newest}


def read(client: Client, host: Host, data_directory: str) -> Limits:
    """Return the limits of the server that `client` asks; raises OperatorError.

    The data path is `data_directory` on `host`.
    """
    value = client.flag("retentionPeriod")
    days = flags.kept_days(value, client.flag("futureRetention"))
    if days is None:
        raise OperatorError(
            f"{client.url}/metrics says -retentionPeriod={value}, which can't be understood",
            hint="check that url is VictoriaLogs' address; or stop VictoriaLogs first, and add --start",
        )
    return Limits(days, _bytes(client, host, data_directory))


def _bytes(client: Client, host: Host, data_directory: str) -> int:
    """Return how many bytes the server's parts may have (watchMaxDiskSpaceUsage in storage.go)."""
    limit = flags.size(client.flag("retention.maxDiskSpaceUsageBytes"))
    percent = flags.size(client.flag("retention.maxDiskUsagePercent"))
    if limit or not percent:
        return limit
    printed = host.run(["df", "--output=size", "--block-size=1", "--", data_directory])
    return int(printed.stdout.split()[-1]) * percent // 100
