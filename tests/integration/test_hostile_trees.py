"""Trees that a stranger wrote: refused by name in one line each, and nothing outside is touched.

Each example is a sound copy, extracted somewhere, that a few random steps have turned into whatever
an archive can hold. Then it is verified, as the command line does and as a restore does.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import os
import shutil
import signal
import stat
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support import EXAMPLES, encoded, make_copy, said
from vl_borg_hooks import cli
from vl_borg_hooks.errors import InvalidCopy, OperatorError, printable
from vl_borg_hooks.staging import verify
from vl_borg_hooks.staging.copy import StagingCopy, find_copies
from vl_borg_hooks.staging.manifest import Manifest, Partition
from vl_borg_hooks.staging.walk import DEEPEST, walk

EXTRACTED = "var/lib/default"
MANY = settings(max_examples=3 * EXAMPLES, deadline=None)
# Far more than a verification takes; a FIFO that is waited for would take forever.
DEADLINE_SECONDS = 10
# Not by a signal: that is used here, and to Hypothesis it is one more failure to try again.
pytestmark = pytest.mark.timeout(280, method="thread")


@dataclass(frozen=True)
class Step:
    """What is done to a tree: `do`, at the entry with the number `at`.

    What is made has `name` there, or comes in the place of the entry if that is None.
    """

    do: str
    at: int = 0
    name: str | None = None
    value: object = None


# What is there, looked at without following anything.


def entries(root: Path) -> list[Path]:
    """Return all that is below `root`, in one order; what can't be read has nothing in it."""
    found: list[Path] = []
    for directory, directories, files in os.walk(root):
        found += [Path(directory, name) for name in (*directories, *files)]
    return sorted(found)


def kind(path: Path) -> int:
    try:
        return stat.S_IFMT(path.lstat().st_mode)
    except OSError:
        return 0


def foreign(data: Path) -> list[Path]:
    """Return what no mirror may hold: neither directories nor files, or files known outside too."""
    found: list[Path] = []
    names: dict[int, list[Path]] = {}
    links: dict[int, int] = {}
    for path in entries(data):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            names.setdefault(status.st_ino, []).append(path)
            links[status.st_ino] = status.st_nlink
        elif not stat.S_ISDIR(status.st_mode):
            found.append(path)
    for inode, paths in names.items():
        if links[inode] > len(paths):
            found += paths
    return found


def snapshot(root: Path) -> dict[Path, tuple[object, ...]]:
    """Return all that is below `root` with its mode, owner, times and content."""
    found: dict[Path, tuple[object, ...]] = {}
    for path in (root, *entries(root)):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        found[path] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content)
    return found


@final
class Watch:
    """Tells what the kernel has opened or read in some directories, by their own names."""

    _OPENED_OR_READ = 0x20 | 0x1

    def __init__(self, directories: Sequence[Path]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._descriptor >= 0, os.strerror(ctypes.get_errno())
        self._watched: dict[int, Path] = {}
        for path in directories:
            number = libc.inotify_add_watch(
                self._descriptor, os.fsencode(path), self._OPENED_OR_READ
            )
            assert number >= 0, os.strerror(ctypes.get_errno())
            self._watched[number] = path

    def seen(self) -> list[Path]:
        """Return what was opened or read since the last call."""
        try:
            content = os.read(self._descriptor, 1 << 20)
        except BlockingIOError:
            return []
        found: list[Path] = []
        while content:
            number, _, _, length = struct.unpack_from("iIII", content)
            name = os.fsdecode(content[16 : 16 + length].rstrip(b"\0"))
            found.append(self._watched[number] / name)
            content = content[16 + length :]
        return found

    def close(self) -> None:
        os.close(self._descriptor)


@final
class Stage:
    """A sound extracted copy to take from, what lies outside, and the tree of one example."""

    def __init__(self, root: Path) -> None:
        self.template = root / "template"
        self.outside = root / "outside"
        self.tree = root / "tree"
        self.copy = StagingCopy(self.tree / EXTRACTED)
        make_copy(self.template / EXTRACTED)
        # To be led to it must not be noticed by what is missing there: it is as sound.
        make_copy(self.outside / "copy")
        (self.outside / "secret").write_bytes(b"secret")
        os.mkfifo(self.outside / "fifo")
        for path in (self.outside, *entries(self.outside)):
            os.utime(path, (1_000_000_000, 1_000_000_000))
        directories = [path for path in entries(self.outside) if path.is_dir()]
        self.watch = Watch([self.outside, *directories])
        self._as_made = snapshot(self.outside)

    @contextlib.contextmanager
    def extracted(self) -> Iterator[None]:
        """Have the sound copy extracted to `tree` in the block."""
        shutil.copytree(self.template, self.tree)
        try:
            yield
        finally:
            remove(self.tree)

    def twin(self, path: Path) -> Path:
        """Return what lies outside for `path`: the same of another copy, or all of it."""
        with contextlib.suppress(ValueError):
            twin = self.outside / "copy" / path.relative_to(self.copy.path)
            if os.path.lexists(twin):
                return twin
        return self.outside / "copy"

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """AssertionError if the block changes, opens or waits for anything outside."""
        self.watch.seen()
        with deadline():
            yield
        assert self.watch.seen() == []
        # As it was at first: the steps of the test themselves must not have touched it either.
        assert snapshot(self.outside) == self._as_made


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("stage"))
    yield stage
    stage.watch.close()


@contextlib.contextmanager
def modes_apply() -> Iterator[None]:
    """Be kept out by modes as everybody is: root without the capabilities that let it ignore them."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    # Effective, permitted and inheritable ones, the first 32 of each and then the rest.
    before, without = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == libc.capget(header, without) == 0
    dac_override, dac_read_search = 1 << 1, 1 << 2
    without[0] &= ~(dac_override | dac_read_search)
    assert libc.capset(header, without) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


@contextlib.contextmanager
def deadline() -> Iterator[None]:
    """AssertionError if the block takes too long."""

    class Late(BaseException):
        """No Exception: nothing that is under test may catch it."""

    def late(*_: object) -> None:
        raise Late

    handler = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, DEADLINE_SECONDS)
    try:
        yield
    except Late:
        raise AssertionError("it waits for something") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def remove(root: Path) -> None:
    """Remove `root`, whatever its modes and however long its paths are."""
    if kind(root) == stat.S_IFDIR:
        root.chmod(0o700)
        for _, directories, _, descriptor in os.fwalk(root):
            for name in directories:
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    os.chmod(name, 0o700, dir_fd=descriptor)
        shutil.rmtree(root)
    elif os.path.lexists(root):
        root.unlink()


# The steps. Whatever has links in it is replaced, never written to: it may be outside.


def make_link(stage: Stage, path: Path, step: Step) -> None:
    targets = {
        "absolute": str(stage.twin(path)),
        "relative": os.path.relpath(stage.twin(path), path.parent),
        "secret": str(stage.outside / "secret"),
        "fifo": os.path.relpath(stage.outside / "fifo", path.parent),
        "outside": os.path.relpath(stage.outside, path.parent),
        "itself": path.name,
        "here": ".",
        "up": "..",
        "inside": str(stage.copy.data),
        "nowhere": "no/such",
        "root": "/",
        "device": "/dev/zero",
    }
    path.symlink_to(targets[str(step.value)])


def make_hard_link(stage: Stage, path: Path, step: Step) -> None:
    twin = stage.twin(path)
    path.hardlink_to(twin if kind(twin) == stat.S_IFREG else stage.outside / "secret")


def make_device(stage: Stage, path: Path, step: Step) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


def make_socket(stage: Stage, path: Path, step: Step) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o666)


def make_fifo(stage: Stage, path: Path, step: Step) -> None:
    os.mkfifo(path)


Make = Callable[[Stage, Path, Step], None]
FOREIGN: dict[str, Make] = {
    "link": make_link,
    "hard link": make_hard_link,
    "FIFO": make_fifo,
    "socket": make_socket,
    **({"device": make_device} if os.geteuid() == 0 else {}),
}


def make_file(stage: Stage, path: Path, step: Step) -> None:
    # Never what an earlier step has made there: a FIFO would be waited for.
    with path.open("xb") as file:
        file.write(step.value if isinstance(step.value, bytes) else b"")


def make_directory(stage: Stage, path: Path, step: Step) -> None:
    path.mkdir()


def make_deep(stage: Stage, path: Path, step: Step) -> None:
    depth = DEEPEST - 4 if step.at % 2 else DEEPEST * 2
    path.mkdir()
    path.joinpath(*([path.name] * depth)).mkdir(parents=True)


def make_tree(stage: Stage, path: Path, step: Step) -> None:
    shutil.copytree(stage.template / EXTRACTED, path)


MADE: dict[str, Make] = {
    **FOREIGN,
    "file": make_file,
    "directory": make_directory,
    "deep": make_deep,
    "copy": make_tree,
}


def change_mode(stage: Stage, path: Path, step: Step) -> None:
    assert isinstance(step.value, int)
    if kind(path) == stat.S_IFDIR or is_own_file(path):
        path.chmod(step.value)


def truncate(stage: Stage, path: Path, step: Step) -> None:
    if is_own_file(path):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])


def write_json(stage: Stage, path: Path, step: Step) -> None:
    """Write to one of the files that are parsed."""
    assert isinstance(step.value, bytes)
    parsed = [path for path in entries(stage.tree) if path.suffix in (".json", ".jsonl")]
    parsed = [path for path in parsed if is_own_file(path)]
    if parsed:
        parsed[step.at % len(parsed)].write_bytes(step.value)


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    """Have `change` done to what `path` holds, if that is of the kind that it is for."""
    wrong_kind = (ValueError, RecursionError, LookupError, TypeError, AttributeError)
    if is_own_file(path):
        with contextlib.suppress(*wrong_kind):
            content = json.loads(path.read_bytes())
            change(content)
            path.write_bytes(encoded(content))


def write_manifest(stage: Stage, path: Path, step: Step) -> None:
    """Change one key of the manifest."""
    change_json(stage.copy.manifest_path, lambda fields: fields.update({step.name: step.value}))


def write_partition(stage: Stage, path: Path, step: Step) -> None:
    """Change one key of one partition in the manifest, or list it twice."""

    def change(fields: Any) -> None:
        partition = fields["partitions"][step.at % 2]
        if step.name is None:
            fields["partitions"].append(partition)
            fields["rows"] += partition["rows"]
        else:
            partition[step.name] = step.value

    change_json(stage.copy.manifest_path, change)


def write_metadata(stage: Stage, path: Path, step: Step) -> None:
    """Change one key of a part's metadata."""
    if found := sorted(stage.copy.data.rglob("metadata.json")):
        chosen = found[step.at % len(found)]
        change_json(chosen, lambda fields: fields.update({step.name: step.value}))


DONE: dict[str, Make] = {
    "remove": lambda stage, path, step: remove(path),
    "mode": change_mode,
    "truncate": truncate,
    "content": write_json,
    "manifest": write_manifest,
    "partition": write_partition,
    "metadata": write_metadata,
}


def is_own_file(path: Path) -> bool:
    """Tell whether `path` is a file of the tree alone, and no link on the way leads elsewhere."""
    if kind(path) != stat.S_IFREG or path.lstat().st_nlink != 1:
        return False
    return os.path.realpath(path) == str(path)


def take(stage: Stage, step: Step) -> None:
    """Do `step`; what a filesystem refuses is not done."""
    there = entries(stage.tree)
    if not there:
        # What the operator names may be a link: that is the operator's own word.
        return
    path = there[step.at % len(there)]
    with deadline(), contextlib.suppress(OSError):
        if step.do in DONE:
            DONE[step.do](stage, path, step)
        elif step.name is None:
            remove(path)
            MADE[step.do](stage, path, step)
        else:
            directory = path if kind(path) == stat.S_IFDIR else path.parent
            MADE[step.do](stage, directory / step.name, step)


def forge(copy: StagingCopy) -> None:
    """Have inventory and manifest agree with all files and directories that are in `copy` now.

    A stranger who writes an archive can do so: then only what verify looks for itself is found.
    """
    if not (is_own_file(copy.manifest_path) and is_own_file(copy.inventory_path)):
        return
    if kind(copy.data) != stat.S_IFDIR:
        return
    with contextlib.suppress(ValueError, RecursionError):
        fields = json.loads(copy.manifest_path.read_bytes())
        if not isinstance(fields, dict):
            return
        lines, count, size = [], 0, 0
        directories = [path for path in entries(copy.data) if kind(path) == stat.S_IFDIR]
        for directory in (copy.data, *directories):
            listed = {}
            for path in sorted(directory.iterdir()) if os.access(directory, os.R_OK) else ():
                if kind(path) == stat.S_IFREG:
                    content = path.read_bytes()
                    listed[path.name] = len(content), xxhash.xxh3_128_hexdigest(content)
            relative = "" if directory == copy.data else str(directory.relative_to(copy.data))
            lines.append(json.dumps([relative, listed]).encode() + b"\n")
            count += len(listed)
            size += sum(length for length, _ in listed.values())
        content = b"".join(lines)
        fields |= {"inventory_sha256": hashlib.sha256(content).hexdigest()}
        fields |= {"files": count, "bytes": size}
        with contextlib.suppress(InvalidCopy):
            found = verify.partitions(copy.data, [])
            fields["partitions"] = [partition.model_dump() for partition in found]
            fields["rows"] = sum(partition.rows for partition in found)
        copy.inventory_path.write_bytes(content)
        copy.manifest_path.write_bytes(encoded(fields))


# Looking at a tree as the command line does, and as a restore does.


def told(tree: Path) -> tuple[int, list[str]]:
    """Return the exit status of `verify` and its lines; AssertionError unless they are such."""
    # As strict as a terminal: what can't be encoded is an error.
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    with said() as errors, contextlib.redirect_stdout(printed):
        status = cli.main(["verify", str(tree)])
    printed.seek(0)
    lines = printed.read().split("\n")
    assert lines.pop() == ""
    assert status in (0, 1)
    assert bool(errors) is (not lines)
    assert status or all(": ok: " in line for line in lines)
    assert not status or errors or any(": ok: " not in line for line in lines)
    for line in (*lines, *errors):
        assert line.isprintable(), line
        assert line.startswith((f"{tree}: ", f"{tree}/")), line
    return status, [*lines, *errors]


def refusal(data: Path) -> str | None:
    """Return why the walk for a restore refuses `data`, None if it goes through."""
    try:
        for _ in walk(data):
            pass
    except InvalidCopy as error:
        return error.what
    return None


def as_restore_does(tree: Path) -> dict[StagingCopy, list[str]]:
    """Return the copies that a restore finds in `tree`, with what it has against each."""
    try:
        return {copy: verify.verify(copy, linked=True).problems for copy in find_copies(tree)}
    except OperatorError:
        return {}


def judge(stage: Stage, *, unprivileged: bool) -> tuple[int, list[str], bool]:
    """Verify the tree; AssertionError if anything foreign is taken for good.

    Returns the exit status, the lines, and whether there was anything foreign in a copy.
    """
    with stage.untouched(), modes_apply() if unprivileged else contextlib.nullcontext():
        status, lines = told(stage.tree)
        found = as_restore_does(stage.tree)
        refusals = {copy: refusal(copy.data) for copy in found}
    strangers = {copy: foreign(copy.data) for copy in found}
    for copy, problems in found.items():
        assert not strangers[copy] or refusals[copy]
        # A hard link is copied like any other file: what is restored has files of its own.
        assert problems or all(kind(path) == stat.S_IFREG for path in strangers[copy])
        if any(line.startswith(f"{printable(str(copy.path))}: ok: ") for line in lines):
            # A copy of ours may share files with the data, and only a restore minds.
            assert not strangers[copy] or copy.manifest().linked
            assert all(kind(path) == stat.S_IFREG for path in strangers[copy])
    return status, lines, any(strangers.values())


# Of more than 4300 digits Python refuses to print a number: a sum of two of the largest has them.
HUGE = st.sampled_from([-1, 1 << 64, 10**400, int("9" * 4300), float("nan"), 1e300])
JSON: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | HUGE
    | st.sampled_from(["", "x\ny", "\x1b[2J", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["RowsCount", "rows", "name", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
CONTENT = (
    st.binary(max_size=40)
    | JSON.map(encoded)
    | st.sampled_from(
        [b"[" * 100_000, b'{"format":' * 50_000, b"[" * 900 + b"]" * 900, b"9" * 4301]
    )
)
NAMES = st.sampled_from(
    [
        *("x", "a\nb", "\x1b[2J", os.fsdecode(b"\xff\xfe"), "-rf", "--", "%s%n", " "),
        *("x" * 255, "é" * 127, "data", "manifest.json", "partitions", "20261123", "parts.json"),
    ]
)
PLACES = st.integers(0, 10_000)
LINKS = st.sampled_from(
    [
        *("absolute", "relative", "secret", "fifo", "outside", "itself"),
        *("here", "up", "inside", "nowhere", "root", "device"),
    ]
)
FOREIGN_STEPS = st.builds(Step, st.sampled_from(list(FOREIGN)), PLACES, st.none() | NAMES, LINKS)
METADATA = ["RowsCount", "CompressedSizeBytes", "MinTimestamp", "MaxTimestamp"]
CONTENT_STEPS = st.builds(Step, st.just("content"), PLACES, value=CONTENT) | st.builds(
    Step, st.just("metadata"), PLACES, st.sampled_from(METADATA), JSON
)
MANIFEST_STEPS = (
    st.builds(Step, st.just("manifest"), PLACES, st.sampled_from(list(Manifest.model_fields)), JSON)
    | st.builds(
        Step,
        st.just("partition"),
        PLACES,
        st.sampled_from([None, *Partition.model_fields]),
        st.sampled_from(["../../x", "/etc", "", "x\ny", 1, -1]) | HUGE,
    )
    | st.builds(
        # What verify shows of a sound copy.
        Step,
        st.just("manifest"),
        PLACES,
        st.sampled_from(["rows", "files", "bytes", "instance", "created"]),
        st.sampled_from([0, 1, 43, "x", "x\ny", "\x1b[2J", "\ud800"]) | HUGE,
    )
    | st.just(Step("manifest", name="linked", value=True))
)
OTHER_STEPS = (
    st.builds(Step, st.sampled_from(list(MADE)), PLACES, st.none() | NAMES, LINKS)
    | st.builds(Step, st.sampled_from(["remove", "truncate"]), PLACES)
    | st.builds(
        Step,
        st.just("mode"),
        PLACES,
        value=st.sampled_from([0, 0o111, 0o444, 0o200, 0o600, 0o4777]),
    )
    | CONTENT_STEPS
    | MANIFEST_STEPS
)


def test_whatever_is_in_a_tree_it_is_refused_in_lines_and_nothing_outside_is_touched(
    stage: Stage,
) -> None:
    seen: Counter[str] = Counter()

    @MANY
    @example(steps=[], forged=False, unprivileged=False)
    @example(steps=[], forged=True, unprivileged=True)
    @given(
        steps=st.lists(FOREIGN_STEPS | OTHER_STEPS, max_size=5),
        forged=st.booleans(),
        unprivileged=st.booleans(),
    )
    def check(steps: list[Step], forged: bool, unprivileged: bool) -> None:
        with stage.extracted():
            for step in steps:
                take(stage, step)
            if forged:
                forge(stage.copy)
            status, _, has_foreign = judge(stage, unprivileged=unprivileged)
        seen["good" if status == 0 else "refused"] += 1
        seen["foreign"] += has_foreign
        assert steps or status == 0

    check()
    # The promises are about something.
    assert min(seen[what] for what in ("good", "refused", "foreign")) > 10, seen


def test_what_no_mirror_may_hold_is_refused_by_name_though_all_else_agrees(stage: Stage) -> None:
    @MANY
    @given(step=FOREIGN_STEPS)
    def check(step: Step) -> None:
        with stage.extracted():
            take(stage, step)
            forge(stage.copy)
            strangers = foreign(stage.copy.data) if kind(stage.copy.data) == stat.S_IFDIR else []
            _, lines, has_foreign = judge(stage, unprivileged=False)
            assert has_foreign is bool(strangers) or not lines[0].startswith(str(stage.copy.path))
        if has_foreign and (step.name or "x").isprintable():
            assert any(line.startswith(f"{path}: ") for line in lines for path in strangers), lines

    check()


def test_whatever_manifest_and_metadata_say_only_what_is_true_is_told(stage: Stage) -> None:
    seen: Counter[str] = Counter()

    @MANY
    @given(
        before=st.lists(CONTENT_STEPS, max_size=2),
        forged=st.booleans(),
        after=st.lists(MANIFEST_STEPS, max_size=2),
    )
    def check(before: list[Step], forged: bool, after: list[Step]) -> None:
        with stage.extracted():
            for step in before:
                take(stage, step)
            if forged:
                forge(stage.copy)
            for step in after:
                take(stage, step)
            status, lines, _ = judge(stage, unprivileged=False)
            if status == 0:
                data = stage.copy.data
                sizes = [path.stat().st_size for path in data.rglob("*") if path.is_file()]
                parts = data.glob("partitions/*/datadb/*/metadata.json")
                rows = sum(json.loads(path.read_bytes())["RowsCount"] for path in parts)
                expected = f"ok: {rows} rows, {len(sizes)} files, {sum(sizes)} bytes of "
                assert expected in lines[0]
        seen["good" if status == 0 else "refused"] += 1

    check()
    assert min(seen[what] for what in ("good", "refused")) > 10, seen
