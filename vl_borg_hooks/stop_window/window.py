"""Stopping VictoriaLogs and bringing it back: the stop window."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from vl_borg_hooks.errors import OperatorError, printable
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.plugin.relay import Hooks
from vl_borg_hooks.runs.records import Journal
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.stop_window import beforehand, guard
from vl_borg_hooks.stop_window.found import DOWN
from vl_borg_hooks.system import signals
from vl_borg_hooks.victorialogs import lock

POLL_SECONDS = 0.001
# After some tenths of a second, the time between two polls is this share of the time since the start.
POLL_SHARE = 0.005
# A start that was refused or failed immediately is tried again after so many seconds, until
# start_timeout is over.
RETRY_SECONDS = 2
WATCH_POLL_SECONDS = 0.2
# How long `url` may take to answer while VictoriaLogs is stopped: a refusal comes immediately.
ANSWER_SECONDS = 0.2
# VictoriaLogs is watched for at least so many seconds after a stop that may still take effect,
# because its command failed, or was interrupted or killed with us.
WATCH_SECONDS = 5


class StartFailed(OperatorError):
    """VictoriaLogs is down and could not be started: the worst case."""


@contextlib.contextmanager
def stop_window(hooks: Hooks, target: Target, *, settle: bool = True) -> Iterator[None]:
    """Stop VictoriaLogs and lock its data directory for the block; start it again afterwards.

    If it was found stopped, only its lock is held, and it stays stopped. With `settle`, the journal
    is removed when it runs again; otherwise the caller removes it. Raises OperatorError if it could
    not start again, before the stop, or if it does not stop in `stop_timeout` seconds, after it was
    brought back, and StartFailed if it does not come back.
    """
    if target.found is ServiceState.STOPPED:
        lock.ensure_file(target.host, target.data_directory)
        with lock.hold(target.host, target.data_directory):
            yield
        return
    if not target.replaces_data:
        beforehand.require_startable(target)
    with _announced(hooks, target):
        guard.arm(target)
        # Before the journal is written, because a server that hangs may answer late.
        _flush(target)
        server = lock.holder(target.host, target.data_directory)
        target.records.note(Journal(target.command, found_running=True, detached=target.detached))
        failed: BaseException | None = None
        end = _End(target, server)
        try:
            target.stop.asked_at = time.monotonic()
            target.stop.is_open = True
            if not _stops_as_asked(target, server):
                _ask_to_stop(hooks, target)
            if server is None:
                _wait_for_service(target)
            with locked(target), end.looked_at():
                refuse_url_of_another(target)
                yield
        except BaseException as error:
            failed = error
            raise
        finally:
            with signals.held_back():
                try:
                    _bring_back_after(hooks, target, failed)
                finally:
                    _tell_how_it_ended(target, end)
                if settle:
                    clear_journal(target)


def refuse_second_stop(target: Target, step: str) -> None:
    """Raise OperatorError if a plugin has stopped VictoriaLogs in `step` and then left it to ours."""
    if target.stop.asked_at is not None:
        raise OperatorError(
            f"{step} of a plugin has stopped VictoriaLogs and then left the step to us",
            hint="correct or uninstall that plugin: it has to return what it has done",
        )


@contextlib.contextmanager
def _announced(hooks: Hooks, target: Target) -> Iterator[None]:
    """Call `before_stop`, and `after_start` whatever happens in between."""
    try:
        hooks.before_stop(target)
        yield
    except BaseException:
        try:
            hooks.after_start(target)
        except BaseException as error:  # noqa: BLE001 - it must not hide that VictoriaLogs may be down
            target.reporter.warn(f"a plugin's after_start failed too: {error}")
        raise
    hooks.after_start(target)


def _stops_as_asked(target: Target, server: int | None) -> bool:
    """Wait for `server` to stop if an earlier run asked it to; return whether it did.

    If not, note that we ask it. A second SIGTERM would kill it, with all that it has not written yet.
    So it is asked again only when the first has had the time that a stop may take. systemd sends no
    second one.
    """
    if target.service.starts_after_stop or not server:
        return False
    longest = target.instance.stop_timeout + WATCH_SECONDS
    # The clock may have been set back meanwhile.
    seconds = min(target.records.asked_to_stop(server), longest)
    if seconds > 0:
        target.reporter.warn("VictoriaLogs was asked to stop before: waiting for that stop")
        if _stops_within(target, server, seconds):
            return True
        target.reporter.warn("VictoriaLogs has not stopped: it is asked to stop again")
    target.records.note_asked_to_stop(server, longest)
    return False


def _stops_within(target: Target, server: int, seconds: float) -> bool:
    """Wait up to `seconds` for `server` to stop; return whether nothing runs then."""
    deadline = time.monotonic() + seconds
    while (holder := lock.holder(target.host, target.data_directory)) == server:
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return holder is None


def _ask_to_stop(hooks: Hooks, target: Target) -> None:
    """Ask VictoriaLogs to stop, and remember it if that fails."""
    target.stop.asked_at = time.monotonic()
    try:
        hooks.stop_service(target)
    except Exception:
        target.stop.has_failed = True
        raise


def _wait_for_service(target: Target) -> None:
    """Wait until the service manager says that VictoriaLogs has stopped; raises OperatorError.

    For one whose lock file was lost with its data: the lock that we take proves nothing then. Asked
    before we take it: a status command may look at the lock, and take us for VictoriaLogs.
    """
    deadline = time.monotonic() + target.instance.stop_timeout
    while target.service.state() is not ServiceState.STOPPED:
        if time.monotonic() >= deadline:
            raise OperatorError(f"{target.service.description} did not stop in time")
        time.sleep(POLL_SECONDS)


class _End:
    """How `server` ends: the lock shows only that it has ended.

    An open request, such as a live tail, can make it give up what it has in memory.
    """

    def __init__(self, target: Target, server: int | None) -> None:
        self._service = target.service
        # The kernel's answer costs nothing. It has none before the parent has taken note of the end.
        self._status = target.host.watch(server) if server else None
        self._answer: Callable[[], str] | None = None

    @contextlib.contextmanager
    def looked_at(self) -> Iterator[None]:
        """Begin to ask the service manager in this block, in which the server has stopped.

        It is asked beside the block if the kernel can't tell; after it, and so before the start, if
        the kernel could have told and has not.
        """
        if self._status is None:
            self._ask()
        try:
            yield
        finally:
            if self._status and self._status() is None:
                self._ask()

    def _ask(self) -> None:
        with contextlib.suppress(OperatorError):
            self._answer = self._service.ask_how_it_ended()

    def unclean(self) -> str:
        """Return what was not clean about it, empty if nothing was or if it is not known.

        Waits for the answer. Raises OperatorError.
        """
        said = self._answer() if self._answer else ""
        status = self._status() if self._status else None
        if status is None:
            return said
        if not status:
            return ""
        return f"exit status {status}" if status > 0 else f"killed by signal {-status}"


def _tell_how_it_ended(target: Target, end: _End) -> None:
    """Wait for the answer, now that VictoriaLogs runs again, and warn if it did not end cleanly."""
    with contextlib.suppress(OperatorError):
        target.stop.unclean = printable(end.unclean())
    if target.stop.unclean:
        target.reporter.warn(
            f"VictoriaLogs did not stop cleanly ({target.stop.unclean}): rows that it had taken in "
            "and not yet written may be lost; see what its log says about the stop"
        )


def refuse_url_of_another(target: Target) -> None:
    """Raise OperatorError if `url` answers, although VictoriaLogs is stopped."""
    if target.client and target.client.is_healthy(ANSWER_SECONDS):
        target.stop.url_is_anothers = True
        raise OperatorError(
            f"{target.client.url} is another server's: it answers while VictoriaLogs is stopped",
            hint="correct url",
        )


def _flush(target: Target) -> None:
    """Make VictoriaLogs do, while it still serves, what it would otherwise do in its stop."""
    with contextlib.suppress(OperatorError):
        if target.client:
            target.client.flush()


def _bring_back_after(hooks: Hooks, target: Target, failed: BaseException | None) -> None:
    """Bring VictoriaLogs back; if that fails too, add what `failed` before to the error."""
    try:
        bring_back(hooks, target)
        if target.stop.is_open:
            # A stop command that failed or was interrupted may still take effect.
            watch(hooks, target, WATCH_SECONDS)
            _forget_failed_stop(hooks, target)
    except OperatorError as failure:
        if failed:
            failure.what = f"{failed}; and then {failure.what}"
        raise


def _forget_failed_stop(hooks: Hooks, target: Target) -> None:
    """Have the next run ask for a stop, if the command for it failed and VictoriaLogs still serves.

    Without a `url` nothing shows that it serves: the command may have sent its SIGTERM before it
    failed, so the next run waits first.
    """
    if target.stop.has_failed and target.client and _is_healthy_now(hooks, target):
        target.records.forget_asked_to_stop()


def clear_journal(target: Target) -> None:
    """Remove the journal, as VictoriaLogs is as it was found, unless a stop may still take effect.

    In that case the guard finds the journal when we end, and watches for as long as that may be.
    """
    if not target.stop_may_still_come:
        target.records.clear_journal()


@contextlib.contextmanager
def locked(target: Target) -> Iterator[None]:
    """Hold the lock of the data directory of a VictoriaLogs that was asked to stop."""
    wait = target.instance.stop_timeout
    try:
        with lock.hold(target.host, target.data_directory, wait=wait):
            target.stop.is_open = False
            target.records.forget_asked_to_stop()
            yield
    except lock.LockHeld as error:
        target.stop.is_late = True
        raise OperatorError(
            f"VictoriaLogs did not stop within {wait:g} seconds: {error.what}",
            hint="raise stop_timeout, or find out what it waits for",
        ) from None


def bring_back(hooks: Hooks, target: Target) -> None:
    """Start VictoriaLogs and wait until it is healthy; raises StartFailed."""
    deadline = time.monotonic() + target.instance.start_timeout
    if target.stop.is_late:
        _wait_for_late_stop(target, deadline)
    complaints: list[str] = []
    while True:
        try:
            hooks.start_service(target)
        except Exception as error:  # noqa: BLE001 - a plugin must not keep VictoriaLogs down
            complaints.append(str(error) or type(error).__name__)
            target.reporter.warn(f"the start failed, trying again: {complaints[-1]}")
            with contextlib.suppress(Exception):
                target.service.start()
        until = min(deadline, time.monotonic() + RETRY_SECONDS)
        if becomes_healthy(hooks, target, until, complaints):
            break
        if time.monotonic() >= deadline:
            raise _start_failed(target, complaints)
    _detach_again(target)
    if target.stop.asked_at is not None:
        target.downtime = time.monotonic() - target.stop.asked_at


def _detach_again(target: Target) -> None:
    """Detach the days that were detached before the stop, if a start has attached them."""
    if not target.detached or target.client is None:
        return
    try:
        attached = target.client.attached_days()
    except OperatorError as error:
        days = ", ".join(target.detached)
        target.reporter.warn(f"{days}: may be served again, and could not be detached: {error}")
        return
    for day in target.detached:
        if day not in attached:
            continue
        try:
            target.client.detach(day)
        except OperatorError as error:
            target.reporter.warn(f"{day} is served again, and could not be detached: {error}")


def stop_again(target: Target) -> None:
    """Stop a VictoriaLogs that a restore started and that was found stopped, if it runs."""
    try:
        runs = target.service.state() is ServiceState.RUNNING
    except OperatorError:
        # A status command that can't tell must not keep VictoriaLogs from being brought back.
        runs = lock.is_held(target.host, target.data_directory)
    if runs:
        server = lock.holder(target.host, target.data_directory)
        if not _stops_as_asked(target, server):
            target.service.stop()
        with locked(target):
            pass


def _wait_for_late_stop(target: Target, deadline: float) -> None:
    """Wait until a VictoriaLogs that was asked to stop, and took too long, has stopped.

    Until then, the server that answers is the one that will stop: a start would have no effect.
    Raises StartFailed if it has not stopped by `deadline`: it may still stop later.
    """
    target.reporter.warn("waiting for the stop that took too long, to start VictoriaLogs after it")
    while lock.is_held(target.host, target.data_directory):
        if time.monotonic() >= deadline:
            failure = StartFailed(
                f"VictoriaLogs was asked to stop and has not, after {_seconds_since_stop(target)} s"
            )
            failure.victorialogs = "it still runs, but may stop at any time"
            failure.hint = f"watch it, and when it stops run: {target.service.start_command()}"
            raise failure
        time.sleep(POLL_SECONDS)
    target.stop.is_late = target.stop.is_open = False


def _seconds_since_stop(target: Target) -> int:
    return round(time.monotonic() - (target.stop.asked_at or 0))


def stop_may_come(target: Target) -> float:
    """Return for how many seconds the stop that a killed run asked for may still take effect."""
    if target.service.starts_after_stop:
        return WATCH_SECONDS
    try:
        running = lock.is_held(target.host, target.data_directory)
    except OperatorError:
        running = True
    # If it has stopped already, the same command can't stop it a second time.
    return max(WATCH_SECONDS, target.instance.stop_timeout) if running else WATCH_SECONDS


def watch(
    hooks: Hooks,
    target: Target,
    seconds: float,
    alone: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> None:
    """Keep VictoriaLogs running for `seconds`: start it if it is down.

    A command that a killed run has started, such as a script that stops VictoriaLogs, may still take
    effect after that run has ended. If VictoriaLogs is down, `alone` is entered first, which waits
    for a current run: that run may have stopped it.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not _is_healthy_now(hooks, target):
            with alone():
                if not _is_healthy_now(hooks, target):
                    bring_back(hooks, target)
        time.sleep(WATCH_POLL_SECONDS)


def _is_healthy_now(hooks: Hooks, target: Target) -> bool:
    return becomes_healthy(hooks, target, time.monotonic(), [])


def becomes_healthy(hooks: Hooks, target: Target, deadline: float, complaints: list[str]) -> bool:
    """Ask until it is healthy or `deadline` has come; return whether it is healthy.

    If the asking fails, its error replaces `complaints`. A server that takes long to start is asked
    less often, so that it has the processor to itself.
    """
    began = time.monotonic()
    while True:
        try:
            if hooks.is_healthy(target):
                return True
        except Exception as error:  # noqa: BLE001 - an error means no
            complaints[:] = [str(error) or type(error).__name__]
        now = time.monotonic()
        if now >= deadline:
            return False
        time.sleep(max(POLL_SECONDS, POLL_SHARE * (now - began)))


def _start_failed(target: Target, complaints: list[str]) -> StartFailed:
    said = complaints[-1:]
    with contextlib.suppress(Exception):
        said += [target.service.last_words()]
    why = "".join(f": {words}" for words in said if words)
    failure = StartFailed(
        f"VictoriaLogs did not come back within {target.instance.start_timeout:g} seconds{why}",
        hint=f"run: {target.service.start_command()}",
    )
    failure.victorialogs = DOWN
    with contextlib.suppress(Exception):
        if lock.is_held(target.host, target.data_directory):
            failure.victorialogs = "VictoriaLogs runs, but is not healthy"
    return failure
