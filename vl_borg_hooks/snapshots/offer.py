"""Whether VictoriaLogs offers what a copy from snapshots needs, and may be asked for it."""

from __future__ import annotations

from http import HTTPStatus

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.victorialogs import freeze, snapshots
from vl_borg_hooks.victorialogs.http import Client, Refused

# The first version with snapshots of partitions.
SINCE = "v1.31.0"


def require_offered(target: Target, client: Client) -> None:
    """Raise OperatorError unless the server offers snapshots and we may have them."""
    try:
        client.snapshots()
    except Refused as error:
        if error.status in (HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST):
            version = client.version() or "this version"
            raise OperatorError(
                f"VictoriaLogs {version} at {client.url} offers no snapshots",
                hint=f"set consistency: stop; {SINCE} and newer offer them",
            ) from None
        raise


def require_hard_links(target: Target) -> None:
    """Raise OperatorError unless hard links can be made in the data: without them, it panics."""
    host, data = target.host, target.data_directory
    if snapshots.is_known_for_hard_links(host, data):
        return
    if not freeze.is_possible(host, data, f"{target.working_directory}/trial"):
        raise OperatorError(
            f"no hard links can be made in {target.instance.data_path}, and without them a snapshot "
            "makes VictoriaLogs panic",
            hint="set consistency: stop, or let this user write there, if its filesystem has them",
        )
