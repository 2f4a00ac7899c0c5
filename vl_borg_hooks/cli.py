"""The command line: one function per command, no decisions."""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from vl_borg_hooks import __version__
from vl_borg_hooks.actions import said
from vl_borg_hooks.errors import printable
from vl_borg_hooks.system import log, signals
from vl_borg_hooks.system.log import logger

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig

VERBOSITIES = tuple(sorted(log.LEVELS))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` and return its exit status: 0, 1, or 75 for a run to skip."""
    _open_standard_streams()
    arguments = _parse(sys.argv[1:] if argv is None else argv)
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
    from vl_borg_hooks.archiving import look

    # First, because borgmatic takes as long to answer as we take to begin.
    with look.look(arguments.borgmatic_config) as archiving:
        from vl_borg_hooks.actions import backup

        backup.back_up(*_selected(arguments), dry_run=arguments.dry_run, look=archiving)
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
    from vl_borg_hooks.actions import elsewhere, replaced, restore
    from vl_borg_hooks.errors import OperatorError

    options = {
        "start": arguments.start,
        "discard": arguments.discard_replaced,
        "yes": arguments.yes,
        "dry_run": arguments.dry_run,
    }
    if (arguments.to or arguments.as_name) and not arguments.source:
        raise OperatorError("--to and --as need --from DIR")
    if arguments.to and (arguments.start or arguments.discard_replaced):
        raise OperatorError("--to starts and replaces nothing: no --start, no --discard-replaced")
    if arguments.to:
        elsewhere.restore_to(
            arguments.to,
            arguments.source,
            of=arguments.instance,
            as_name=arguments.as_name,
            config_file=arguments.config,
            dry_run=arguments.dry_run,
        )
    elif arguments.as_name:
        restore.restore_as(
            *(_loaded(arguments), arguments.as_name, arguments.source),
            of=arguments.instance,
            **options,
        )
    elif arguments.source:
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


def _archives(arguments: argparse.Namespace) -> int:
    from pydantic import TypeAdapter

    from vl_borg_hooks.actions import archives

    overview = archives.archives(
        *_selected(arguments),
        borgmatic_config=arguments.borgmatic_config,
        repository=arguments.repository,
        day=arguments.day,
    )
    if arguments.json:
        print(TypeAdapter(list[archives.Found]).dump_json(overview.found, indent=2).decode())
    else:
        for found in overview.found:
            print(printable(found.line(arguments.day)))
    for problem in overview.problems:
        logger.error("%s", problem)
    return 1 if overview.problems else 0


def _config_generate(arguments: argparse.Namespace) -> int:
    from vl_borg_hooks.actions import generate

    instances: list[Instance] = []
    if arguments.borgmatic:
        loaded, instances = _selected(arguments)
        text = generate.borgmatic_include(loaded, instances, arguments.destination)
    else:
        text = generate.commented_config()
    if arguments.destination:
        generate.write_new(arguments.destination, text)
        print(f"wrote {arguments.destination}")
        for line in generate.make_staging_paths(instances):
            print(printable(line))
    else:
        print(text, end="")
    return 0


def _config_validate(arguments: argparse.Namespace) -> int:
    from vl_borg_hooks import config
    from vl_borg_hooks.actions import validate

    notes: list[str] = []
    try:
        loaded, instances = _selected(arguments)
        errors = validate.problems(loaded, instances)
        archived = validate.archived(loaded, instances, arguments.borgmatic_config)
        errors += archived.problems
        notes = archived.notes + ([] if errors else validate.recommendations(loaded, instances))
    except config.ConfigError as error:
        errors = list(error.errors)
    for problem in errors:
        print(printable(problem))
    if not errors:
        print(f"{loaded.path}: ok: {', '.join(instance.name for instance in instances)}")
        print("".join(f"{printable(note)}\n" for note in notes), end="")
    return 1 if errors else 0


def _selected(arguments: argparse.Namespace) -> tuple[LoadedConfig, list[Instance]]:
    """Return the config and the instances that the command works on."""
    loaded = _loaded(arguments)
    return loaded, loaded.instances(arguments.instance)


def _loaded(arguments: argparse.Namespace) -> LoadedConfig:
    from vl_borg_hooks import config

    return config.load(arguments.config or config.default_path())


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments; the options of all commands may be anywhere, before or after the command."""
    options = _options()
    known, rest = options.parse_known_args(_with_spelled_verbosity(argv))
    arguments = _parser(options).parse_args(rest)
    vars(arguments).update(vars(known))
    arguments.verbosity = _verbosity(known.verbosity)
    return arguments


def _with_spelled_verbosity(argv: Sequence[str]) -> list[str]:
    """Return `argv` with `-v N`, as borgmatic has it, as `--verbosity N`; other `-v` stay."""
    words = list(argv)
    for index, (word, following) in enumerate(pairwise(argv)):
        if word == "--":
            break
        if word == "-v" and re.fullmatch(r"-?[0-9]+", following):
            words[index : index + 2] = ["--verbosity", following]
    return words


def _verbosity(given: Sequence[int | None]) -> int | None:
    """Return the verbosity of a list of `--verbosity N` and of None for each `-v`, in order.

    None if it was not given.
    """
    if not given:
        return None
    verbosity = 0
    for number in given:
        verbosity = min(verbosity + 1, max(VERBOSITIES)) if number is None else number
    return verbosity


def _options() -> argparse.ArgumentParser:
    """Return the parser of the options that all commands have."""
    # No abbreviations: what this parser does not know is left to that of the command.
    options = argparse.ArgumentParser(
        prog="vl-borg-hooks",
        usage="%(prog)s [OPTIONS] COMMAND; see %(prog)s --help",
        add_help=False,
        allow_abbrev=False,
    )
    options.add_argument(
        "--config", type=Path, metavar="FILE", help="default: /etc/vl-borg-hooks/config.yaml"
    )
    options.add_argument(
        "--instance",
        action="append",
        default=[],
        metavar="NAME",
        help="only this instance; may be given several times (default: all)",
    )
    options.add_argument(
        "--verbosity",
        type=int,
        action="append",
        default=[],
        choices=VERBOSITIES,
        metavar="N",
        help="-2: nothing, -1: errors, 0: warnings and results (default), 1: every step and its time, "
        "2: every external command; in a hook of borgmatic as it has it",
    )
    options.add_argument(
        "-v",
        dest="verbosity",
        action="append_const",
        const=None,
        help="--verbosity 1; -vv: --verbosity 2",
    )
    options.add_argument(
        "--dry-run", action="store_true", help="check everything and change nothing"
    )
    return options


def _parser(options: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vl-borg-hooks",
        description="Consistent, deduplicated VictoriaLogs backups from your borgmatic.",
        parents=[options],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=text, description=text, parents=[options], allow_abbrev=False
        )
        added.set_defaults(command=command, is_answer=False)
        return added

    before = add(
        "before-create", _before_create, "borgmatic, before create: make the staging copies"
    )
    before.add_argument(
        "--borgmatic-config",
        type=Path,
        metavar="FILE",
        help="the config file of the borgmatic that runs this: is the staging copy archived by it?",
    )
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
        "--to",
        type=Path,
        metavar="DIR",
        help="make a data directory there instead, empty or not there yet: touches no server, needs no "
        "config; --instance names the copy if --from has several",
    )
    restore.add_argument(
        "--as",
        dest="as_name",
        metavar="NAME",
        help="into the instance NAME, whatever instance the copy is of; --instance names the copy if "
        "--from has several",
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
    archives = add("archives", _archives, "what can be restored from borgmatic's repositories")
    archives.add_argument("--day", metavar="YYYYMMDD", help="only the archives that hold that day")
    archives.add_argument(
        "--repository", metavar="LABEL", help="only this repository, by its label or path"
    )
    archives.add_argument(
        "--borgmatic-config",
        type=Path,
        metavar="FILE",
        help="the config file of borgmatic; default: those of its usual ones that include ours",
    )
    archives.add_argument("--json", action="store_true", help="print JSON")
    config = add("config", _config_validate, "the config file").add_subparsers(
        required=True, metavar="COMMAND"
    )
    generate = config.add_parser(
        "generate", help="print a commented config file", parents=[options], allow_abbrev=False
    )
    generate.add_argument("--destination", type=Path, metavar="FILE", help="write it there")
    generate.add_argument(
        "--borgmatic", action="store_true", help="the borgmatic include for an existing config"
    )
    generate.set_defaults(command=_config_generate)
    validate = config.add_parser(
        "validate",
        help="check the config file and what it names",
        parents=[options],
        allow_abbrev=False,
    )
    validate.add_argument(
        "--borgmatic-config",
        type=Path,
        metavar="FILE",
        help="a config file of borgmatic that archives the staging copies; default: the usual ones",
    )
    validate.set_defaults(command=_config_validate)
    return parser
