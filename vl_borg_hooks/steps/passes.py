"""How a backup makes its copy: warm passes of rsync, a stop window, and a final pass."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from vl_borg_hooks.errors import CommandFailed, OperatorError
from vl_borg_hooks.plugin import hookimpl
from vl_borg_hooks.plugin.context import Backup, Copied
from vl_borg_hooks.plugin.relay import Hooks
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.staging.last_published import LastPublished
from vl_borg_hooks.stop_window.window import refuse_second_stop, stop_window
from vl_borg_hooks.system import processes
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.transfer import PassResult, rsync, sharing
from vl_borg_hooks.transfer.progress import human_bytes
from vl_borg_hooks.victorialogs import changes, freeze, lock
from vl_borg_hooks.victorialogs.layout import DATADB, INDEXDB, LOCK_FILE, NOT_COPIED, PARTITIONS
from vl_borg_hooks.victorialogs.parts import is_part, partition_of
from vl_borg_hooks.victorialogs.swap import Swap, is_roots, refuse_planted

# If the final pass is in the stop window, another warm pass is made as long as the last one copied
# more than this, and less than half of the one before: then less is left for the final pass.
ENOUGH_BYTES = 16_000_000
MOST_WARM_PASSES = 5
# How many damaged files are named; after a disk died there are thousands.
MOST_NAMED = 20
# More bytes than VictoriaLogs writes by itself in the moment between two passes.
MUCH_COPIED_BYTES = 16_000_000


@hookimpl
def make_copy(backup: Backup, hooks: Hooks) -> Copied:
    """Update the staging copy, in two passes around a stop, or in one if found stopped."""
    refuse_second_stop(backup, "make_copy")
    refuse_planted(backup.host, backup.data_directory, unless_roots=True)
    if is_roots(backup.host, backup.data_directory):
        backup.reporter.warn(
            f"{backup.working_directory} belongs to root, as after a restore by root: no hard links "
            "are made there, so VictoriaLogs is away for the whole final pass; run as root: "
            "vl-borg-hooks status, which says what is kept there"
        )
    passes = Passes(backup)
    try:
        if backup.found is ServiceState.STOPPED:
            return passes.copy_stopped(hooks)
        return passes.copy_around_stop(hooks)
    finally:
        Swap(backup.host, backup.data_directory).discard_leftovers()


class Passes:
    """The passes of one backup, and what each pass knows about those before it."""

    def __init__(self, backup: Backup, without: Collection[str] = ()) -> None:
        """`without` are partitions that are not copied: their files are not looked at."""
        self._backup = backup
        self._without = frozenset(without)
        self._last = LastPublished.of(
            backup.staging, backup.last_manifest, backup.records.directory
        )
        # How the copy can share its bytes with the data; None if it can't.
        self._way = _way_to_share(backup)
        # Whether there is a copy already, but nothing is known of its content: then a pass reads it.
        self._is_unknown = self._last is None and (backup.staging.data / PARTITIONS).is_dir()
        # Whether the last copy is still as it was published, so that only what is new has to be
        # copied.
        self.is_as_published = False
        # What the data directory held before the last warm pass, and before the one before that in
        # this run; None if there was none.
        self.listing: changes.Listing | None = None
        self._listed_before: changes.Listing | None = None
        # What the final pass has to copy and remove; None if it has to look at everything.
        self._delta: changes.Delta | None = None
        # Whether hard links can be made on the data's filesystem, and whether they have been made.
        self.can_freeze = False
        self._is_frozen = False

    @property
    def _frozen(self) -> str:
        """The directory on the host with hard links to what the final pass has to copy."""
        return f"{self._backup.working_directory}/frozen"

    def copy_stopped(self, hooks: Hooks) -> Copied:
        """Make the copy of a VictoriaLogs that was found stopped, while we hold its lock."""
        self.look_at_copy()
        with stop_window(hooks, self._backup):
            backup = self._backup
            now = self.read()
            here = self._listed_here() or changes.NOTHING
            shared = self._share(backup.data_directory, changes.delta(here, now).copied)
            final = self._final_pass().after(shared)
        backup.reporter.say(f"final pass, as it was found stopped: {final}")
        return self.copied(None, final, "stopped")

    def copy_around_stop(self, hooks: Hooks) -> Copied:
        """Make the copy of a running VictoriaLogs: most of it before the stop."""
        backup = self._backup
        self._prepare_freezing()
        self.look_at_copy()
        warm = self.warm_up()
        # Otherwise the kernel may write gigabytes just when VictoriaLogs stops and needs the disk
        # itself.
        started = time.monotonic()
        LocalHost().sync(str(backup.staging.path))
        backup.reporter.say(f"on the disk after {time.monotonic() - started:.2f} s")
        with stop_window(hooks, backup):
            final = self.copy_in_window()
        if final is None:
            final = self._final_pass()
        when = "frozen, after the start" if self._is_frozen else "while it was stopped"
        backup.reporter.say(f"final pass, {when}: {final}")
        return self.copied(warm, final, "frozen" if self._is_frozen else "stopped")

    def copy_in_window(self) -> PassResult | None:
        """Keep what has changed by hard links, or copy it, while VictoriaLogs is stopped.

        Returns None if it was kept: it is then copied after the start. It is copied now if hard
        links can't be made, or if what has changed is not known.
        """
        backup = self._backup
        if self.listing is not None:
            now = self.read(self.listing)
            self._delta = changes.delta(self.listing, now)
        if self.can_freeze and self._delta is not None:
            freeze.freeze(backup.host, backup.data_directory, self._frozen, self._delta.copied)
            self._is_frozen = True
            return None
        return self._final_pass()

    def read(self, before: changes.Listing | None = None) -> changes.Listing:
        """Return what the data directory holds now; see changes.read. Raises OperatorError."""
        backup = self._backup
        now = changes.read(backup.host, backup.data_directory, before)
        return changes.without(now, self._without)

    def copy_from(self, sources: Mapping[str, str], now: changes.Listing) -> PassResult:
        """Copy what `now` has and the warm passes have not, from elsewhere; remove what it lacks.

        `sources` are directories on the host, by the partition that they hold a state of. What is
        beside the tables of a partition is not copied again. Raises OperatorError.
        """
        backup, done = self._backup, PassResult(0, 0, 0)
        before = self.listing or changes.NOTHING
        new = changes.delta(before, now).copied
        for partition, source in sources.items():
            top = f"{PARTITIONS}/{partition}"
            tables = (f"{top}/{DATADB}/", f"{top}/{INDEXDB}/")
            paths = [path.removeprefix(f"{top}/") for path in new if path.startswith(tables)]
            if not paths:
                continue
            copy = backup.staging.data / top
            copy.mkdir(mode=0o755, exist_ok=True)
            shared = self._share(source, paths, copy=copy)
            done = rsync.copy(
                (backup.host, source),
                (LocalHost(), str(copy)),
                name="final pass",
                reporter=backup.reporter,
                only=paths,
            ).after(shared.after(done))
        for partition in LocalHost().entries(str(backup.staging.data / PARTITIONS)):
            if partition not in now.partitions:
                LocalHost().remove_tree(str(backup.staging.data / PARTITIONS / partition))
        self.listing = now
        return done

    def copy_others(self, now: changes.Listing) -> None:
        """Copy the files that are beside the partitions in `now`, such as delete_tasks.json."""
        others = sorted(path for path in now.others if not path.startswith(f"{PARTITIONS}/"))
        if others:
            rsync.copy(
                (self._backup.host, self._backup.data_directory),
                (LocalHost(), str(self._backup.staging.data)),
                name="final pass",
                reporter=self._backup.reporter,
                only=others,
            )

    def copied(
        self,
        warm: PassResult | None,
        final: PassResult,
        final_pass: Literal["frozen", "stopped", "snapshot"],
    ) -> Copied:
        """Return how the copy was made."""
        return Copied(
            warm=warm,
            final=final,
            final_pass=final_pass,
            linked=self._backup.on_one_filesystem,
            last_published=self._last,
        )

    def _prepare_freezing(self) -> None:
        """Find out whether the final pass can come after the start; raises OperatorError."""
        backup = self._backup
        wanted = backup.instance.final_pass
        if wanted == "stopped":
            return
        lock.ensure_file(backup.host, backup.data_directory)
        self.can_freeze = freeze.is_possible(backup.host, backup.data_directory, self._frozen)
        if wanted == "frozen" and not self.can_freeze:
            raise OperatorError(
                f"hard links can't be made in {backup.instance.data_path}, but final_pass: frozen "
                "needs them",
                hint="set final_pass: auto, or let this user write there",
            )

    def look_at_copy(self) -> None:
        """Find out whether the last copy is as it was published: then only what is new is copied.

        A file that is not is removed, so that a pass copies it again, whatever its size and time.
        """
        backup, last = self._backup, self._last
        if last is None:
            return
        started = time.monotonic()
        # Without notes of the last run, all of it is read.
        total = backup.last_manifest.bytes if backup.last_manifest and not last.looked_at else 0
        with backup.reporter.counting("the last copy", "read again", total) as on_read:
            look = last.look(
                every=backup.instance.reread_seconds, is_gone=self._gone(), on_read=on_read
            )
        seconds = time.monotonic() - started
        self.is_as_published = look.is_as_published
        seen = f"looked at in {seconds:.2f} s, {human_bytes(look.read)} read again"
        if look.is_as_published:
            backup.reporter.say(f"the last copy is as it was published: {seen}")
        elif backup.last_manifest:
            # No run of ours was killed since: something else was there.
            backup.reporter.warn(f"the last copy was changed after it was published: {seen}")
        else:
            backup.reporter.say(f"the last copy is not as it was published: {seen}")
        damaged = [path for path in look.damaged if is_part(os.path.dirname(path))]
        for path in damaged[:MOST_NAMED]:
            backup.reporter.warn(
                f"{backup.staging.data / path}: is damaged: it is copied again from "
                f"{backup.instance.data_path}"
            )
        if len(damaged) > MOST_NAMED:
            backup.reporter.warn(f"{len(damaged) - MOST_NAMED} more files are damaged")
        for path in look.damaged:
            LocalHost().remove_tree(str(backup.staging.data / path))
        if not look.is_as_published:
            # What a killed run has copied: nothing is known of its content.
            for part in list(last.unlisted_parts()):
                LocalHost().remove_tree(str(backup.staging.data / part))

    def _gone(self) -> Callable[[str], bool]:
        """Return what says whether a directory of the copy is gone from the data."""
        here = self._listed_here()
        if here is None:
            return lambda _: False
        now = self.read()
        parts = set(changes.gone_parts(here, now))
        partitions = here.partitions - now.partitions
        return lambda path: path in parts or partition_of(path) in partitions

    def warm_up(self) -> PassResult:
        """Make warm passes until little is left for a final pass in the stop window.

        Returns what they did together.
        """
        backup = self._backup
        copied: float = math.inf
        done = PassResult(0, 0, 0)
        for _ in range(MOST_WARM_PASSES):
            self._listed_before = self.listing
            self.listing = self.read()
            warm = self.warm_pass()
            backup.reporter.say(f"warm pass: {warm}")
            done = warm.after(done)
            shrinks = warm.bytes < copied / 2
            copied = warm.bytes
            if self.can_freeze or copied < ENOUGH_BYTES or not shrinks:
                break
        return done

    def warm_pass(self) -> PassResult:
        """Copy the data while VictoriaLogs runs; merges may remove files meanwhile."""
        backup = self._backup
        now, here = self.listing, self._listed_here()
        if here is None and self._way:
            here = changes.NOTHING
        if here is None or now is None:
            return self._warm(all_new=here is None)
        new = changes.delta(here, now)
        if self.is_as_published and not self._has_other_directories(now):
            # Removing comes first: it makes room.
            for path in (*new.removed, *changes.gone_parts(here, now)):
                LocalHost().remove_tree(str(backup.staging.data / path))
            # Tables without parts too: their directories must exist, even without a parts.json.
            empty = [path for path, table in now.tables.items() if not table.parts]
            shared = self._share(backup.data_directory, new.copied, idle=True)
            only = [*new.copied, *empty]
            return (self._warm(only=only) if only else PassResult(0, 0, 0)).after(shared)
        # What is shared is made first. Then comes a pass over everything, which should find no more
        # to copy.
        shared = self._share(backup.data_directory, new.copied, idle=True)
        done = self._warm().after(shared)
        if self._way is sharing.hard_link and done.bytes > MUCH_COPIED_BYTES:
            # A merge has ended in between: what the pass has copied becomes links too.
            later = self.read()
            everything = changes.delta(changes.NOTHING, later).copied
            done = self._share(backup.data_directory, everything, idle=True).after(done)
        return done

    def _listed_here(self) -> changes.Listing | None:
        """Return the listing that the staging copy is complete for; None if that is not known.

        After a pass in the same run, that is the listing from before that pass: the lists of parts
        that the pass has copied can be newer than the parts.
        """
        staging = self._backup.staging
        if self._listed_before:
            return self._listed_before
        if not (staging.data / PARTITIONS).is_dir():
            return None
        try:
            here = changes.read(LocalHost(), str(staging.data))
        except OperatorError:
            # Damaged: rsync repairs it.
            return None
        return here if here.tables else None

    def _has_other_directories(self, now: changes.Listing) -> bool:
        """Say whether there are directories that are not VictoriaLogs'.

        Only a pass over everything finds what was removed from them.
        """
        return any((self._backup.staging.data / path).is_dir() for path in now.others)

    def _share(
        self, source: str, paths: Sequence[str], *, copy: Path | None = None, idle: bool = False
    ) -> PassResult:
        """Share `paths` in `source` with `copy`, if that is possible; rsync then finds them there.

        `copy` is the whole copy, if it is not given. With `idle`, only when nothing else needs the
        processor and the disk.
        """
        way, reporter = self._way, self._backup.reporter
        copy = copy or self._backup.staging.data
        if way is None or not paths:
            return PassResult(0, 0, 0)
        files = size = 0
        started, left = time.monotonic(), self._backup.remaining_downtime()

        def share(is_ended: Callable[[], bool]) -> None:
            def unless_ended(source: str, destination: str, status: os.stat_result) -> bool:
                if is_ended():
                    raise InterruptedError
                return way(source, destination, status)

            def on_file(its_size: int) -> None:
                nonlocal files, size
                files += 1
                size += its_size
                add(its_size)

            # How much it is, for the progress, is not found out while VictoriaLogs is stopped. Nothing
            # is shown then either: a pipe that nobody reads would keep it stopped.
            total = sharing.size(source, paths, is_ended) if idle else 0
            name = "warm pass" if idle else "final pass"
            showing = contextlib.nullcontext(lambda _: None)
            with reporter.counting(name, "linked", total) if left is None else showing as add:
                sharing.share(unless_ended, source, str(copy), paths, on_file)

        try:
            if idle:
                processes.idly(share)
            else:
                share(lambda: left is not None and time.monotonic() - started > left)
        except InterruptedError:
            limit = self._backup.instance.max_downtime
            raise CommandFailed(f"the final pass took longer than {limit:g} seconds") from None
        except OSError as error:
            reporter.warn(f"what is new is copied, and not linked: {error.strerror}")
            self._way = None
        seconds = time.monotonic() - started
        return PassResult(0, 0, seconds, linked_files=files, linked_bytes=size)

    def _warm(self, *, only: Sequence[str] | None = None, all_new: bool = False) -> PassResult:
        backup = self._backup
        if self._is_unknown and only is None:
            backup.reporter.say(
                "nothing is known of the copy that is there: all of it and all data is read"
            )
        result = rsync.copy(
            (backup.host, backup.data_directory),
            (LocalHost(), str(backup.staging.data)),
            name="warm pass",
            reporter=backup.reporter,
            exclude=(*NOT_COPIED, *(f"/{PARTITIONS}/{name}/" for name in self._without)),
            only=only,
            checksum=self._is_unknown and only is None,
            all_new=all_new,
            bwlimit=backup.instance.warm.bwlimit or "",
            idle=True,
            vanishing=True,
        )
        if only is None:
            self._is_unknown = False
        return result

    def _final_pass(self) -> PassResult:
        """Copy what has changed; it can't change any more, so a file that vanishes is an error."""
        backup = self._backup
        source = self._frozen if self._is_frozen else backup.data_directory
        shared = self._share(source, self._delta.copied if self._delta else ())
        result = rsync.copy(
            (backup.host, source),
            (LocalHost(), str(backup.staging.data)),
            name="final pass",
            reporter=backup.reporter,
            exclude=NOT_COPIED,
            only=self._delta.copied if self._delta else None,
            checksum=self._is_unknown,
            timeout=backup.remaining_downtime(),
        )
        for path in self._delta.removed if self._delta else ():
            LocalHost().remove_tree(str(backup.staging.data / path))
        return result.after(shared)


def _way_to_share(backup: Backup) -> sharing.Way | None:
    """Return how the copy of `backup` can share its bytes with the data, None if it can't.

    As reflinks if the filesystem has them, between the subvolumes of one btrfs too, else as hard links.
    """
    if backup.host.local_path("/") is None:
        return None
    tried = (f"{backup.data_directory}/{LOCK_FILE}", str(backup.staging.data))
    if sharing.is_possible(sharing.reflink, *tried):
        return sharing.reflink
    if backup.on_one_filesystem and sharing.is_possible(sharing.hard_link, *tried):
        return sharing.hard_link
    return None
