"""Any other way to run VictoriaLogs: `service: {command: {stop: [...], start: [...], status: [...]}}`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict

from vl_borg_hooks import config
from vl_borg_hooks.errors import CommandFailed, OperatorError
from vl_borg_hooks.services import ENDED_SECONDS, ServiceManager, ServiceState
from vl_borg_hooks.system import commands, processes
from vl_borg_hooks.system.hosts import Host

# LSB and systemctl(1): `status` exits with 0 for running and 3 for stopped; pgrep(1) with 1 for
# not found. Any other status means neither, and is never read as "stopped".
RUNNING_STATUS = 0
STOPPED_STATUSES = (1, 3)


class CommandOptions(BaseModel):
    """The options under `command:`: an argument list each, and how long each may take.

    `exists` ends with 0 if there is what `start` starts: a `status` that says "stopped" also of what is
    not there needs it. `exit_status` prints the exit status of a VictoriaLogs that has stopped: 0 for a clean stop.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    stop: config.Argv
    start: config.Argv
    status: config.Argv
    exists: config.Argv | None = None
    exit_status: config.Argv | None = None
    timeout: config.Seconds = 120


class Command(ServiceManager):
    """VictoriaLogs that the operator's own commands start and stop on `host`."""

    def __init__(self, options: CommandOptions, host: Host) -> None:
        self._options = options
        self._host = host

    @property
    def description(self) -> str:
        """Return `command START`."""
        return f"command {shlex.join(self._options.start)}"

    def check(self) -> None:
        """Raise CommandFailed if a program or the service is missing, or if it would end with us."""
        options = self._options
        for argv in (
            *(options.stop, options.start, options.status),
            *(options.exists, options.exit_status),
        ):
            if argv and not self._host.has_command(argv[0]):
                raise CommandFailed(
                    f"the command {argv[0]} was not found on {self._host.name}",
                    hint=f"install {argv[0]} or correct service: command:",
                )
        if options.exists:
            self._require_existence(options.exists)
        self._host.check_starter()

    def _require_existence(self, argv: Sequence[str]) -> None:
        """Raise CommandFailed if what is started is not there, as a container that was removed."""
        completed = self._host.run(argv, ok=commands.ANY_STATUS, timeout=self._options.timeout)
        if completed.exit_status != 0:
            raise CommandFailed(
                f"what {shlex.join(self._options.start)} starts is not there: {completed.last_line}",
                hint="correct its name under service: command:, or make it again",
            )

    def state(self) -> ServiceState:
        """Return what the status command's exit status says."""
        completed = self._host.run(
            self._options.status,
            ok=(RUNNING_STATUS, *STOPPED_STATUSES),
            timeout=self._options.timeout,
        )
        return (
            ServiceState.RUNNING
            if completed.exit_status == RUNNING_STATUS
            else ServiceState.STOPPED
        )

    def stop(self) -> None:
        """Run the stop command."""
        self._host.run(self._options.stop, timeout=self._options.timeout)

    def start(self) -> None:
        """Run the start command, unless the status command says that VictoriaLogs runs already."""
        try:
            runs = self.state() is ServiceState.RUNNING
        except OperatorError:
            # It can't tell. To start what runs is an error at most; not to start it is worse.
            runs = False
        if not runs:
            self._host.run_starter(self._options.start, timeout=self._options.timeout)

    def ask_how_it_ended(self) -> Callable[[], str] | None:
        """Begin to ask for the exit status, if the config has a command for it."""
        argv = self._options.exit_status
        if argv is None:
            return None
        asked = self._host.begin(argv)

        def answer() -> str:
            said = processes.output(asked, ENDED_SECONDS).strip()
            return "" if said in ("", "0") else f"exit status {said.splitlines()[-1]}"

        return answer

    def start_command(self) -> str:
        """Return the start command."""
        return shlex.join(self._options.start)


def from_config(options: object, host: Host) -> ServiceManager:
    """Return the commands that `options` name; raises OptionsError."""
    return Command(config.options(CommandOptions, options), host)
