"""A plugin that causes faults: at any hook, external command or change on disk of a run.

Installed beside the built-in plugins as anybody's would be. Everything that it wraps becomes an
event with a name and a number, such as `hook publish start #1`. The environment says what to do:

VL_FAULTS_RECORD  write the name of each event to this file, one a line
VL_FAULTS_AT      the event at which to cause the fault
VL_FAULTS_DO      the fault: the name of a signal that we send ourselves, or a key of ACTIONS
VL_FAULTS_RUN     for `run`: a JSON list, the command to run at that event
VL_FAULTS_FIRED   file that is given the moment of the fault, in monotonic time
VL_FAULTS_ALWAYS  an event without its number: raise an exception each time, in the guard too
VL_FAULTS_HTTP    if set, each request to the server is an event too
VL_FAULTS_BLIND   if set, we can't see which data a server has, as if it were in a container
VL_FAULTS_LINES   if set, the first time that each line of the package is reached is an event too
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType
from typing import Any

import pluggy

import vl_borg_hooks
from vl_borg_hooks.plugin import hookspecs
from vl_borg_hooks.runs import records
from vl_borg_hooks.steps import passes
from vl_borg_hooks.stop_window import beforehand
from vl_borg_hooks.system import commands, files, local, processes
from vl_borg_hooks.transfer import rsync
from vl_borg_hooks.victorialogs import http

MESSAGE = "what nobody expected"
HOOKS = [name for name, value in vars(hookspecs).items() if hasattr(value, "vl_borg_hooks_spec")]
PACKAGE = str(Path(vl_borg_hooks.__file__).parent)
# The guard waits for the run that we disturb: it must do its work undisturbed.
ACTIVE = "VL_FAULTS_FIRED" in os.environ and "--wait" not in sys.argv

_hookimpl = pluggy.HookimplMarker("vl_borg_hooks")
_numbers: Counter[str] = Counter()
_PID = os.getpid()


class _Now:
    """Whether a fault is being caused: what that does is no event."""

    firing = False


def event(name: str) -> None:
    """Take note of an event, and cause the fault if it is the one."""
    if name == os.environ.get("VL_FAULTS_ALWAYS"):
        _raise()
    # A child between fork and exec runs our lines too; its death is that of a command, not ours.
    if not ACTIVE or _Now.firing or os.getpid() != _PID:
        return
    _numbers[name] += 1
    label = f"{name} #{_numbers[name]}"
    if record := os.environ.get("VL_FAULTS_RECORD"):
        with open(record, "a") as file:
            file.write(f"{label}\n")
    if label == os.environ.get("VL_FAULTS_AT"):
        _Now.firing = True
        try:
            Path(os.environ["VL_FAULTS_FIRED"]).write_text(repr(time.monotonic()))
            _fire(os.environ["VL_FAULTS_DO"])
        finally:
            _Now.firing = False


def _fire(action: str) -> None:
    if action in ACTIONS:
        ACTIONS[action]()
    else:
        os.kill(os.getpid(), signal.Signals[action])


def _raise() -> None:
    raise RuntimeError(MESSAGE)


def _break_output() -> None:
    """Leave us with a stdout and a stderr that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(writer)


def _run() -> None:
    subprocess.run(json.loads(os.environ["VL_FAULTS_RUN"]), check=True)


def _lose_power() -> None:
    """End us and our guard at the same moment."""
    import psutil

    own = psutil.Process()
    config = own.cmdline()[own.cmdline().index("--config") + 1]
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        if process.pid != own.pid and config in arguments and "--wait" in arguments:
            process.kill()
    own.kill()


ACTIONS: dict[str, Callable[[], None]] = {
    "raise": _raise,
    "broken-output": _break_output,
    "run": _run,
    "power-loss": _lose_power,
}


def _wrap_hook(name: str) -> Callable[[], Generator[None, Any, Any]]:
    @_hookimpl(wrapper=True, specname=name)
    def wrapper() -> Generator[None, Any, Any]:
        event(f"hook {name} start")
        result = yield
        if name == "is_healthy" and result:
            event(f"hook {name} true")
        event(f"hook {name} end")
        return result

    return wrapper


def _wrap_call(owner: Any, name: str, describe: Callable[..., str]) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        what = describe(*arguments, **options)
        event(f"{what} start")
        result = original(*arguments, **options)
        event(f"{what} end")
        return result

    setattr(owner, name, wrapped)


def _command(argv: list[str], **_: Any) -> str:
    return f"command {' '.join([os.path.basename(argv[0]), *argv[1:2]])}"


def _trace(frame: FrameType, kind: str, _: Any) -> Any:
    path = frame.f_code.co_filename
    if not path.startswith(PACKAGE):
        return None
    if kind == "line":
        name = f"line {path[len(PACKAGE) + 1 :]}:{frame.f_lineno}"
        if name not in _numbers:
            event(name)
    return _trace


for _name in HOOKS:
    globals()[f"wrap_{_name}"] = _wrap_hook(_name)

if "VL_FAULTS_BLIND" in os.environ:
    beforehand._has_our_root = lambda *_: False

if ACTIVE:
    _wrap_call(commands, "run", _command)
    # The guard and the lock over ssh are started with this.
    _wrap_call(processes, "beside", lambda *_, **__: "process")
    for _method in ("make_directory", "rename", "remove_tree", "set_owner"):
        _wrap_call(local.LocalHost, _method, lambda *_, method=_method, **__: f"disk {method}")
    for _function in ("write_atomically", "remove"):
        _wrap_call(files, _function, lambda path, *_, what=_function: f"disk {what} {path.name}")
    _wrap_call(records.RunRecords, "_take", lambda *_: "run lock")
    # `pass warm pass start #1`
    _wrap_call(rsync, "copy", lambda *_, name, **__: f"pass {name}")
    _wrap_call(passes.Passes, "copy_in_window", lambda *_: "in the window")
    if "VL_FAULTS_HTTP" in os.environ:
        # `http partition/snapshot/create start #1`
        _wrap_call(
            http.Client, "_request", lambda _, path, **__: f"http {path.replace('/internal/', '')}"
        )
    if "VL_FAULTS_LINES" in os.environ:
        sys.settrace(_trace)
        _frame: FrameType | None = sys._getframe()
        while _frame:
            # What was called before we were loaded goes on after.
            if _frame.f_code.co_filename.startswith(PACKAGE):
                _frame.f_trace = _trace
            _frame = _frame.f_back
