"""The command line: one function per command, no decisions."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vl_borg_hooks import __version__
from vl_borg_hooks.actions import said
from vl_borg_hooks.errors import printable
from vl_borg_hooks.system import signals
from vl_borg_hooks.system.log import logger

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` and return its exit status: 0, 1, or 75 for a run to skip."""
    _open_standard_streams()
    arguments = _parser().parse_args(argv)
    verbosity = said.set_up_log(arguments.verbosity, is_answer=arguments.is_answer)
    signals.install()
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except BrokenPipeError:
        # The reader of our output is gone, so nobody would see a report.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (signals.Interrupted, Exception) as caught:  # noqa: BLE001 - an operator always gets a line
        error = signals.failure(caught)
        if verbosity > 1 and not isinstance(caught, signals.Interrupted):
            traceback.print_exc()
        logger.error("%s", error)
        return error.exit_status


def _open_standard_streams() -> None:
    """Open the standard streams that are closed: another file would get their number and output."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 - open as long as we run
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - open as long as we run
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _before_create(arguments: argparse.Namespace) -> int:
    from vl_borg_hooks.actions import backup

    backup.back_up(*_selected(arguments), dry_run=arguments.dry_run)
    return 0


def _after_create(arguments: argparse.Namespace) -> int:
    from vl_borg_hooks.actions import release

    if not arguments.dry_run:
        release.release(*_selected(arguments), force=arguments.force)
    return 0


def _after_extract(arguments: argparse.Namespace) -> int:
    from vl_borg_hooks.actions import restore

    restore.restore_extracted(*_selected(arguments), dry_run=arguments.dry_run)
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    from vl_borg_hooks.actions import replaced, restore
    from vl_borg_hooks.errors import OperatorError

    options = {
        "start": arguments.start,
        "discard": arguments.discard_replaced,
        "yes": arguments.yes,
        "dry_run": arguments.dry_run,
    }
    if arguments.source:
        every = bool(arguments.instance)
        restore.restore(*_selected(arguments), arguments.source, every=every, **options)
    elif arguments.rollback:
        replaced.roll_back(*_selected(arguments), **options)
    elif arguments.discard_replaced:
        replaced.discard_replaced(*_selected(arguments), dry_run=arguments.dry_run)
    else:
        raise OperatorError("restore needs one of --from DIR, --rollback, --discard-replaced")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from vl_borg_hooks.actions import verify

    status = 0
    for report in verify.verify_all(arguments.path, quick=arguments.quick):
        print("\n".join(map(printable, verify.lines(report))))
        status = status if report.is_sound else 1
    return status


def _recover(arguments: argparse.Namespace) -> int:
    from vl_borg_hooks.actions import recover

    done = recover.recover_all(
        *_selected(arguments), wait=arguments.wait, dry_run=arguments.dry_run
    )
    return 0 if done else 1


def _status(arguments: argparse.Namespace) -> int:
    from pydantic import TypeAdapter

    from vl_borg_hooks.actions import status

    found = status.status(*_selected(arguments))
    if arguments.json:
        print(TypeAdapter(list[status.Overview]).dump_json(found, indent=2).decode())
    else:
        for instance in found:
            print("\n".join(map(printable, instance.lines())))
    return 0


def _config_generate(arguments: argparse.Namespace) -> int:
    from vl_borg_hooks.actions import generate

    if arguments.borgmatic:
        text = generate.borgmatic_include(*_selected(arguments))
    else:
        text = generate.commented_config()
    if arguments.destination:
        generate.write_new(arguments.destination, text)
        print(f"wrote {arguments.destination}")
    else:
        print(text, end="")
    return 0


def _config_validate(arguments: argparse.Namespace) -> int:
    from vl_borg_hooks import config
    from vl_borg_hooks.actions import validate

    try:
        loaded, instances = _selected(arguments)
        errors = validate.problems(loaded, instances)
    except config.ConfigError as error:
        errors = list(error.errors)
    for problem in errors:
        print(printable(problem))
    if not errors:
        print(f"{loaded.path}: ok: {', '.join(instance.name for instance in instances)}")
    return 1 if errors else 0


def _selected(arguments: argparse.Namespace) -> tuple[LoadedConfig, list[Instance]]:
    """Return the config and the instances that the command works on."""
    from vl_borg_hooks import config

    loaded = config.load(arguments.config or config.default_path())
    return loaded, loaded.instances(arguments.instance)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vl-borg-hooks",
        description="Consistent, deduplicated VictoriaLogs backups from your borgmatic.",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="default: /etc/vl-borg-hooks/config.yaml"
    )
    parser.add_argument(
        "--instance",
        action="append",
        default=[],
        metavar="NAME",
        help="only this instance; may be given several times (default: all)",
    )
    parser.add_argument(
        "--verbosity",
        type=int,
        choices=(-1, 0, 1, 2),
        help="-1: only errors, 2: also every external command; in a hook of borgmatic as it has it",
    )
    parser.add_argument("-v", dest="verbosity", action="store_const", const=2, help="--verbosity 2")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything and change nothing"
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=command, is_answer=False)
        return added

    add("before-create", _before_create, "borgmatic, before create: make the staging copies")
    after = add(
        "after-create", _after_create, "borgmatic, after create: release the staging copies"
    )
    after.add_argument(
        "--force", action="store_true", help="also those that somebody else seems to archive"
    )
    extract = "borgmatic, after extract: restore if the config says so"
    add("after-extract", _after_extract, extract).set_defaults(is_answer=True)
    restore = add("restore", _restore, "put an extracted copy back and prove that it is served")
    source = restore.add_mutually_exclusive_group()
    source.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="the directory that borgmatic extract wrote to",
    )
    source.add_argument(
        "--rollback",
        action="store_true",
        help="return to the data that the last restore replaced",
    )
    restore.add_argument(
        "--discard-replaced",
        action="store_true",
        help="remove the data that was replaced: now, or with one of the above after the proof",
    )
    restore.add_argument(
        "--yes", action="store_true", help="replace the data that is there without asking"
    )
    restore.add_argument(
        "--start",
        action="store_true",
        help="leave VictoriaLogs running if it was found stopped",
    )
    verify = add("verify", _verify, "check a staging or extracted copy; needs no server, no config")
    verify.add_argument("path", type=Path, metavar="PATH")
    verify.add_argument(
        "--quick", action="store_true", help="names, sizes and metadata only: read no content"
    )
    recover = add("recover", _recover, "finish what a killed run left; safe at any time")
    recover.add_argument(
        "--wait",
        action="store_true",
        help="wait until the current run has ended, and try until nothing is left to finish",
    )
    status = add("status", _status, "instances, their state and their staging copies")
    status.add_argument("--json", action="store_true", help="print JSON")
    config = add("config", _config_validate, "the config file").add_subparsers(
        required=True, metavar="COMMAND"
    )
    generate = config.add_parser("generate", help="print a commented config file")
    generate.add_argument("--destination", type=Path, metavar="FILE", help="write it there")
    generate.add_argument(
        "--borgmatic", action="store_true", help="the borgmatic include for an existing config"
    )
    generate.set_defaults(command=_config_generate)
    validate = config.add_parser("validate", help="check the config file and what it names")
    validate.set_defaults(command=_config_validate)
    return parser
