"""systemd: `service: {systemd: victorialogs.service}`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from vl_borg_hooks import config
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.services import ENDED_SECONDS, ServiceManager, ServiceState
from vl_borg_hooks.system import processes
from vl_borg_hooks.system.commands import Completed
from vl_borg_hooks.system.hosts import Host, Owner

# systemctl talks to systemd over a socket and answers immediately, or something is badly wrong.
ANSWER_SECONDS = 30
SETTLE_SECONDS = 90
POLL_SECONDS = 0.05
# How long a start waits for the answer to how the unit has ended.
LONGEST_WAIT_SECONDS = 1


def _unit(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9:_.@\\-]+", name):
        raise ValueError("must be the name of a unit, such as victorialogs.service")
    return name


class SystemdOptions(BaseModel):
    """The options under `systemd:`; a bare string is the unit."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    unit: Annotated[str, AfterValidator(_unit)]
    command_prefix: config.Argv | None = None


class Systemd(ServiceManager):
    """A unit of systemd's system manager on `host`."""

    # systemd has a queue of jobs for each unit, and works through it even if systemctl is killed.
    starts_after_stop = True

    def __init__(self, options: SystemdOptions, host: Host) -> None:
        unit = options.unit
        self.unit = unit if "." in unit else f"{unit}.service"
        self._host = host
        self._prefix = options.command_prefix or ()
        self._start_asked = False
        # The systemctl that asks how the unit has ended.
        self._asking: processes.Beside | None = None

    @property
    def description(self) -> str:
        """Return `systemd unit NAME`."""
        return f"systemd unit {self.unit}"

    def state(self) -> ServiceState:
        """Return the state now; if a start or stop is in progress, wait for its end."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            properties = self._properties("LoadState", "ActiveState", "SubState")
            if properties.get("LoadState") != "loaded":
                raise OperatorError(
                    f"{self.description} is {properties.get('LoadState') or 'unknown'} "
                    f"on {self._host.name}",
                    hint="name the unit of VictoriaLogs under service: systemd:",
                )
            active = properties.get("ActiveState", "")
            # A unit that systemd is about to restart is meant to run.
            restarting = properties.get("SubState", "").startswith("auto-restart")
            if active in ("active", "reloading") or restarting:
                return ServiceState.RUNNING
            if active in ("inactive", "failed"):
                return ServiceState.STOPPED
            if time.monotonic() >= deadline:
                raise OperatorError(
                    f"{self.description} has been {active} for {SETTLE_SECONDS} seconds",
                    hint=f"see: systemctl status {self.unit}",
                )
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Ask systemd to stop the unit, without waiting."""
        self._systemctl("stop", "--no-block")

    def start(self) -> None:
        """Ask systemd to start the unit, without waiting.

        systemd may have restarted a server that found its lock held, until it gave up. From the
        second call on, reset-failed clears that; the first call must not lose time.
        """
        if self._start_asked:
            self._systemctl("reset-failed", ok=range(256))
        if self._asking:
            # On a busy machine, it could come after this start, and be told of the next server.
            processes.wait(self._asking, LONGEST_WAIT_SECONDS)
            self._asking = None
        self._start_asked = True
        self._systemctl("start", "--no-block")

    def last_words(self) -> str:
        """Return the unit's result and the last line of its journal."""
        properties = self._properties("ActiveState", "Result", "ExecMainStatus")
        said = ", ".join(f"{key}={value}" for key, value in properties.items())
        journal = self._host.run(
            ["journalctl", "--quiet", "--no-pager", "--lines=1", "--output=cat", "-u", self.unit],
            ok=range(256),
            timeout=ANSWER_SECONDS,
        )
        return f"{said} {journal.stdout.strip()}".strip()

    def ask_how_it_ended(self) -> Callable[[], str] | None:
        """Begin to ask for the unit's result, and the exit status of its main process.

        The next start clears them, so `start` waits until systemd has answered. It is asked while
        VictoriaLogs is stopped, and mostly has answered by then.
        """
        argv = self._argv("show", "--property=Result,ExecMainCode,ExecMainStatus")
        self._asking = asked = self._host.begin(argv)

        def answer() -> str:
            said = _properties(processes.output(asked, ENDED_SECONDS))
            # 0 is the code of a process that has not ended: of the one before, or of the next.
            if said.get("ExecMainCode", "0") == "0" or said.get("Result") == "success":
                return ""
            return ", ".join(f"{name}={value}" for name, value in said.items())

        return answer

    def owner(self) -> Owner | None:
        """Return the unit's User= and Group=, None if it has no User= and so runs as root."""
        properties = self._properties("User", "Group")
        user = properties.get("User", "")
        return self._host.user_ids(user, properties.get("Group", "")) if user else None

    def start_command(self) -> str:
        """Return `systemctl start NAME`."""
        return f"systemctl start {self.unit}"

    def _properties(self, *names: str) -> Mapping[str, str]:
        return _properties(self._systemctl("show", f"--property={','.join(names)}").stdout)

    def _systemctl(self, *arguments: str, ok: range = range(1)) -> Completed:
        return self._host.run(self._argv(*arguments), ok=ok, timeout=ANSWER_SECONDS)

    def _argv(self, *arguments: str) -> list[str]:
        # `show` needs the prefix too: without root it needs D-Bus, which not every machine has.
        return [*self._prefix, "systemctl", *arguments, "--", self.unit]


def _properties(printed: str) -> Mapping[str, str]:
    """Return what `systemctl show` has printed."""
    pairs = (line.partition("=") for line in printed.splitlines())
    return {name: value for name, _, value in pairs}


def from_config(options: object, host: Host) -> ServiceManager:
    """Return the systemd unit that `options` name; raises OptionsError."""
    if isinstance(options, str):
        options = {"unit": options}
    return Systemd(config.options(SystemdOptions, options), host)
