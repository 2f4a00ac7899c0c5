"""A plugin that replaces how the copy is made, and writes down what its hooks learn.

It copies with `cp` in the stop window, as somebody with a filesystem snapshot would do it: what
rsync and hard links do in ours is none of its business. `plugins: copying:` in the config says what
else it does.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from vl_borg_hooks.plugin import hookimpl
from vl_borg_hooks.plugin.checks import Check
from vl_borg_hooks.plugin.context import Backup, Copied, Release, Restore, Target
from vl_borg_hooks.plugin.relay import Hooks
from vl_borg_hooks.staging.manifest import Manifest
from vl_borg_hooks.stop_window.window import stop_window
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.transfer import PassResult


class Copying(BaseModel):
    """What the config has under `plugins: copying:`."""

    model_config = ConfigDict(extra="forbid")

    # Where each thing that a hook learns becomes a line of JSON.
    report: Path
    # Whether ours or this plugin makes the copy, and puts it in place.
    replaces: bool = True
    # Whether it forgets to return what it has done.
    forgets: bool = False
    # The hooks that fail.
    failing: list[str] = []
    # What the checks of this plugin find wrong.
    wrong: list[str] = []


@hookimpl
def plugin_options() -> Mapping[str, type[BaseModel]]:
    return {"copying": Copying}


@hookimpl
def backup_checks(backup: Backup) -> Iterable[Check]:
    for what in backup.options(Copying).wrong:
        yield Check("copying", False, what, "make it right")


@hookimpl
def make_copy(backup: Backup, hooks: Hooks) -> Copied | None:
    if not backup.options(Copying).replaces:
        return None
    started = time.monotonic()
    with stop_window(hooks, backup):
        shutil.rmtree(backup.staging.data)
        LocalHost().run(["cp", "-a", backup.data_directory, str(backup.staging.data)])
    for name in ("flock.lock", ".vl-borg-hooks"):
        LocalHost().remove_tree(str(backup.staging.data / name))
    if backup.options(Copying).forgets:
        return None
    files = sum(path.is_file() for path in backup.staging.data.rglob("*"))
    return Copied(final=PassResult(files, 0, time.monotonic() - started))


@hookimpl
def put_in_place(restore: Restore, hooks: Hooks) -> PassResult | None:
    """A very simple way: what is there is set aside, and comes back if anything fails."""
    if not restore.options(Copying).replaces:
        return None
    started = time.monotonic()
    current, aside = (Path(restore.data_directory) / name for name in ("partitions", "aside"))
    with stop_window(hooks, restore):
        current.rename(aside)
        LocalHost().run(["cp", "-a", str(restore.copy.data / "partitions"), str(current)])
    hooks.prove_restore(restore)
    shutil.rmtree(aside)
    if restore.options(Copying).forgets:
        return None
    return PassResult(0, 0, time.monotonic() - started)


@hookimpl
def before_backup(backup: Backup) -> None:
    _learn(backup, "before_backup")


@hookimpl
def after_backup(
    backup: Backup, copied: Copied | None, manifest: Manifest | None, error: BaseException | None
) -> None:
    _learn(
        backup,
        "after_backup",
        files=copied.final.files if copied else None,
        rows=manifest.rows if manifest else None,
        error=str(error) if error else None,
    )


@hookimpl
def after_start(target: Target) -> None:
    _learn(target, "after_start", downtime=target.downtime is not None)


@hookimpl
def after_release(release: Release) -> None:
    _learn(release, "after_release")


@hookimpl
def after_restore(restore: Restore, error: BaseException | None) -> None:
    _learn(restore, "after_restore", error=str(error) if error else None)


def _learn(about: Target | Release, hook: str, **what: Any) -> None:
    options = about.options(Copying)
    with options.report.open("a") as report:
        report.write(json.dumps({"hook": hook, "instance": about.instance.name, **what}) + "\n")
    if hook in options.failing:
        raise RuntimeError(f"{hook} of a plugin")
