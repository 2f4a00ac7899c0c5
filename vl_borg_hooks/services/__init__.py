"""Service managers: what starts and stops VictoriaLogs. One module each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import TypeAlias

from vl_borg_hooks.system.hosts import Host, Owner

# How long the answer to how VictoriaLogs ended may take; VictoriaLogs runs again meanwhile.
ENDED_SECONDS = 10


class ServiceState(Enum):
    """What the service manager says of VictoriaLogs."""

    RUNNING = "running"
    STOPPED = "stopped"


class ServiceManager(ABC):
    """Starts and stops one VictoriaLogs.

    Every method may raise OperatorError. None of them waits for VictoriaLogs: the lock of the data
    directory shows when it has stopped, `/health` when it serves again.
    """

    # Whether a start that is asked for after a stop happens after it, even if the run that asked for
    # the stop was killed. If not, VictoriaLogs is watched for as long as the stop may still come.
    starts_after_stop = False

    @property
    @abstractmethod
    def description(self) -> str:
        """What is started and stopped, for messages: `systemd unit victorialogs.service`."""

    @abstractmethod
    def state(self) -> ServiceState:
        """Return the state now; if a start or stop is in progress, wait for its end."""

    @abstractmethod
    def stop(self) -> None:
        """Ask VictoriaLogs to stop cleanly (SIGTERM or SIGINT: SIGKILL would lose rows)."""

    @abstractmethod
    def start(self) -> None:
        """Ask VictoriaLogs to start; no error if it runs already.

        A command that leaves it running itself belongs in `host.run_starter`: systemd ends all that is
        left running in the service of borgmatic, and what is in the process group of a borgmatic that
        was killed is taken for its borg.
        """

    def check(self) -> None:
        """Raise OperatorError if a stop or start can't even be tried."""
        return

    def last_words(self) -> str:
        """Return the manager's last message about VictoriaLogs, one line, for a failed start."""
        return ""

    def ask_how_it_ended(self) -> Callable[[], str] | None:
        """Begin to ask how the VictoriaLogs that has just stopped ended; None if nobody can tell.

        Called in the stop window, so it must not wait for anything. What is returned is called
        after the next start was asked for: it waits for the answer, and returns what was not clean
        about the stop, or nothing if nothing was or if it is not known.
        """
        return None

    def owner(self) -> Owner | None:
        """Return the user that VictoriaLogs runs as, None if the manager does not know."""
        return None

    def start_command(self) -> str:
        """Return what an operator types to start VictoriaLogs, for messages."""
        return f"start {self.description}"


# Makes a service manager from the value under its name in the config and the host of the data path;
# raises config.OptionsError for wrong options.
ServiceFactory: TypeAlias = Callable[[object, Host], ServiceManager]
