"""The swap: wherever it or its undoing is ended, what was there before comes back."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import final

import pytest

from tests.parts.fakes import FakeHost
from tests.support import tree
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system.hosts import Owner
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.victorialogs.layout import WORKING_DIRECTORY
from vl_borg_hooks.victorialogs.swap import (
    RESTORED,
    Kept,
    Swap,
    holds_data,
    kept_data,
    refuse_planted,
)

Content = Mapping[str, str]

# What was there, and what is put in its place: overlapping, disjoint, and each of them empty.
CASES: dict[str, tuple[Content, Content]] = {
    "the usual": (
        {"partitions/20261101/x": "old", "delete_tasks.json": "old"},
        {"partitions/20261101/x": "new", "partitions/20261102/x": "new"},
    ),
    "both with a file": (
        {"partitions/a": "old", "delete_tasks.json": "old"},
        {"partitions/a": "new", "delete_tasks.json": "new"},
    ),
    "file only in the new": (
        {"partitions/a": "old"},
        {"partitions/a": "new", "delete_tasks.json": "new"},
    ),
    "disjoint": ({"a/x": "old", "b": "old"}, {"c/x": "new", "d": "new"}),
    "nothing was there": ({}, {"partitions/a": "new", "delete_tasks.json": "new"}),
    "nothing comes": ({"partitions/a": "old", "delete_tasks.json": "old"}, {}),
    "a file for a directory": ({"x": "old", "y/z": "old"}, {"x/z": "new", "y": "new"}),
}


class Killed(BaseException):
    """The run ended here, as by SIGKILL."""


@final
class DyingHost(LocalHost):
    """Is killed before or after its nth change."""

    def __init__(self, survives: int, *, after: bool) -> None:
        self.left = survives
        self.after = after

    def _change(self) -> bool:
        """Count a change; tell whether we die of it."""
        self.left -= 1
        if self.left == -1 and not self.after:
            raise Killed
        return self.left == -1

    def rename(self, source: str, destination: str) -> None:
        dies = self._change()
        super().rename(source, destination)
        if dies:
            raise Killed

    def make_directory(self, path: str, mode: int) -> None:
        dies = self._change()
        super().make_directory(path, mode)
        if dies:
            raise Killed

    def remove_tree(self, path: str) -> None:
        dies = self._change()
        super().remove_tree(path)
        if dies:
            raise Killed


def fill(directory: Path, content: Content) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def visible(data: Path) -> dict[str, tuple[str, object]]:
    """Return the tree without our working directory."""
    return {
        path: what for path, what in tree(data).items() if not path.startswith(WORKING_DIRECTORY)
    }


def prepared(root: Path, case: str) -> tuple[Path, list[str]]:
    """Return a fresh data directory, ready for the swap, and the names of what is in it."""
    old, new = CASES[case]
    data = root / "data"
    shutil.rmtree(data, ignore_errors=True)
    fill(data, old)
    (data / "flock.lock").touch()
    (data / "lost+found").mkdir()
    fill(data / WORKING_DIRECTORY / "incoming", new)
    return data, sorted({name.split("/")[0] for name in old})


@pytest.mark.parametrize("case", CASES)
def test_a_swap_puts_the_new_in_place_and_keeps_the_old(tmp_path: Path, case: str) -> None:
    data, names = prepared(tmp_path, case)
    incoming = visible(data / WORKING_DIRECTORY / "incoming")
    before = visible(data)
    Swap(LocalHost(), str(data), names).do()
    kept = {"flock.lock", "lost+found"}
    assert visible(data) == {**incoming, **{name: before[name] for name in kept}}
    replaced = visible(data / WORKING_DIRECTORY / "replaced")
    assert replaced == {name: what for name, what in before.items() if name not in kept}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_what_was_there_comes_back_from_wherever_swap_and_undo_were_killed(
    tmp_path: Path, case: str, *, after: bool
) -> None:
    """Kill the swap at each of its changes, then its undo at each, then the undo of that too."""
    data, names = prepared(tmp_path, case)
    expected = visible(data)
    kills = 0

    def run(steps: tuple[int, ...]) -> list[bool]:
        """Run a swap and then undoes, each killed at its step; tell for each whether it was."""
        data, names = prepared(tmp_path, case)
        killed: list[bool] = []
        for number, step in enumerate(steps):
            swap = Swap(DyingHost(step, after=after), str(data), names)
            try:
                swap.do() if number == 0 else swap.undo()
            except Killed:
                killed.append(True)
            else:
                killed.append(False)
        # The last one is let live, in a process of its own.
        Swap(LocalHost(), str(data), names).undo()
        assert visible(data) == expected, steps
        Swap(LocalHost(), str(data), names).undo()
        assert visible(data) == expected, steps
        Swap(LocalHost(), str(data), names).clean_up()
        assert tree(data) == expected, steps
        return killed

    swap_step = -1
    while True:
        swap_step += 1
        swap_killed = run((swap_step,))[0]
        kills += swap_killed
        undo_step = -1
        while True:
            undo_step += 1
            undo_killed = run((swap_step, undo_step))[1]
            kills += undo_killed
            again_step = -1
            while undo_killed:
                again_step += 1
                if not run((swap_step, undo_step, again_step))[2]:
                    break
                kills += 1
            if not undo_killed:
                break
        if not swap_killed:
            break
    # It did happen, and more often than there are renames.
    assert kills > len(set(names) | {name.split("/")[0] for name in CASES[case][1]})


@pytest.mark.parametrize("case", CASES)
def test_what_a_server_made_meanwhile_in_the_place_of_the_old_goes(
    tmp_path: Path, case: str
) -> None:
    # Killed with the old set aside: a server that was started then made an empty storage.
    data, names = prepared(tmp_path, case)
    expected = visible(data)
    old = CASES[case][0]
    top = sorted({name.split("/")[0] for name in old})
    with pytest.raises(Killed):
        Swap(DyingHost(len(top), after=True), str(data), names).do()
    for name in top:
        (data / name).write_text("made by a server")
    Swap(LocalHost(), str(data), names).undo()
    assert visible(data) == expected


def test_what_the_restored_server_made_beside_it_goes_too(tmp_path: Path) -> None:
    data, names = prepared(tmp_path, "file only in the new")
    expected = visible(data)
    Swap(LocalHost(), str(data), names).do()
    (data / "made_by_the_new_server.json").write_text("would apply to the old data")
    Swap(LocalHost(), str(data), names).undo()
    assert visible(data) == expected


def test_nothing_is_touched_where_nothing_was_begun(tmp_path: Path) -> None:
    data, names = prepared(tmp_path, "the usual")
    before = tree(data)
    Swap(LocalHost(), str(data), names).undo()
    assert tree(data) == before


def test_cleaning_up_where_there_is_nothing_is_no_error(tmp_path: Path) -> None:
    Swap(LocalHost(), str(tmp_path / "nothing")).clean_up()


def keep_replaced(data: Path, names: list[str]) -> Kept:
    """Make the swap and keep what it has replaced."""
    swap = Swap(LocalHost(), str(data), names)
    swap.do()
    swap.keep(swap.replaced)
    swap.clean_up()
    (kept,) = kept_data(LocalHost(), str(data))
    return kept


def test_what_is_kept_says_when_it_was_replaced_and_is_left_by_all_that_cleans_up(
    tmp_path: Path,
) -> None:
    data, names = prepared(tmp_path, "the usual")
    before = visible(data)
    kept = keep_replaced(data, names)
    assert kept.since
    assert timedelta() <= datetime.now(timezone.utc) - kept.since < timedelta(minutes=1)
    (data / WORKING_DIRECTORY / "frozen").mkdir()
    Swap(LocalHost(), str(data)).discard_leftovers()
    Swap(LocalHost(), str(data)).clean_up()
    assert [path.name for path in (data / WORKING_DIRECTORY).iterdir()] == ["kept"]
    assert {
        **tree(Path(kept.path)),
        "flock.lock": ("file", b""),
        "lost+found": before["lost+found"],
    } == before


@pytest.mark.parametrize("name", ["by hand", "20261122"])
def test_what_somebody_else_keeps_there_is_kept_too(tmp_path: Path, name: str) -> None:
    data, _ = prepared(tmp_path, "the usual")
    path = data / WORKING_DIRECTORY / "kept" / name / "partitions"
    path.mkdir(parents=True)
    Swap(LocalHost(), str(data)).discard_leftovers()
    assert path.exists()
    (kept,) = kept_data(LocalHost(), str(data))
    assert (kept.path, kept.since) == (str(path.parent), None)


@pytest.mark.parametrize("step", range(4))
def test_what_is_removed_is_either_whole_or_not_offered_any_more(tmp_path: Path, step: int) -> None:
    data, names = prepared(tmp_path, "the usual")
    kept = keep_replaced(data, names)
    whole = tree(Path(kept.path))
    with contextlib.suppress(Killed):
        Swap(DyingHost(step, after=False), str(data)).discard(kept)
    found = kept_data(LocalHost(), str(data))
    assert found in ([], [kept])
    assert not found or tree(Path(kept.path)) == whole
    Swap(LocalHost(), str(data)).discard_leftovers()
    assert kept_data(LocalHost(), str(data)) == found
    assert bool(found) is (data / WORKING_DIRECTORY).exists()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_return_to_what_is_kept_can_be_killed_anywhere_and_loses_nothing(
    tmp_path: Path, *, after: bool
) -> None:
    """The kept data is not a copy of anything: it is either in place, or still kept."""
    step = -1
    killed = True
    while killed:
        step += 1
        data, names = prepared(tmp_path, "both with a file")
        old = visible(data)
        kept = keep_replaced(data, names)
        new = visible(data)
        names = sorted(
            {name.split("/")[0] for name in new if name not in ("flock.lock", "lost+found")}
        )
        killed = False
        try:
            Swap(DyingHost(step, after=after), str(data), names, kept.source).do()
        except Killed:
            killed = True
        else:
            assert visible(data) == old
        for undo_step in range(8):
            try:
                Swap(DyingHost(undo_step, after=after), str(data), names, kept.source).undo()
            except Killed:
                continue
        assert visible(data) == new
        assert set(tree(Path(kept.path))) == set(old) - {"flock.lock", "lost+found"}
    assert step > 4


def test_what_a_server_has_stored_in_the_place_of_what_was_not_moved_yet_is_kept(
    tmp_path: Path,
) -> None:
    data, names = prepared(tmp_path, "the usual")
    expected = visible(data)
    with pytest.raises(Killed):
        Swap(DyingHost(len(names), after=True), str(data), names).do()
    fill(data, {"partitions/20261130/x": "logs of a client", "delete_tasks.json": "made"})
    Swap(LocalHost(), str(data), names).undo()
    assert visible(data) == expected
    Swap(LocalHost(), str(data)).clean_up()
    (kept,) = kept_data(LocalHost(), str(data))
    assert tree(Path(kept.path))["partitions/20261130/x"] == ("file", b"logs of a client")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, False),
        ({"delete_tasks.json": "[]"}, False),
        ({"partitions/20261122/x": ""}, True),
        ({"notes.txt": ""}, True),
    ],
)
def test_what_a_new_server_makes_is_nothing_to_keep(
    tmp_path: Path, content: Content, *, expected: bool
) -> None:
    data = tmp_path / "data"
    assert not holds_data(LocalHost(), str(data))
    (data / "partitions").mkdir(parents=True)
    fill(data, {"flock.lock": "", f"{WORKING_DIRECTORY}/kept/a/b": "", **content})
    assert holds_data(LocalHost(), str(data)) is expected


def test_what_root_keeps_is_left_to_root_and_no_reason_to_remove_it(tmp_path: Path) -> None:
    data, names = prepared(tmp_path, "the usual")
    kept = keep_replaced(data, names)
    before = tree(data)
    host = FakeHost(user=1000, owners={WORKING_DIRECTORY: Owner(0, 0)})
    with pytest.raises(OperatorError, match="belongs to root: it may hold logs") as caught:
        refuse_planted(host, str(data))
    assert caught.value.hint == "run this as root"
    refuse_planted(host, str(data), unless_roots=True)
    Swap(host, str(data)).discard_leftovers()
    assert tree(data) == before
    assert Path(kept.path).is_dir()
    planted = FakeHost(user=1000, owners={WORKING_DIRECTORY: Owner(1001, 0)})
    with pytest.raises(OperatorError, match="belongs to user 1001, and not to us"):
        refuse_planted(planted, str(data), unless_roots=True)


@pytest.mark.parametrize(("ending", "what"), [("", "replaced data"), (RESTORED, "restored data")])
def test_what_is_kept_says_what_it_is(tmp_path: Path, ending: str, what: str) -> None:
    data, names = prepared(tmp_path, "the usual")
    swap = Swap(LocalHost(), str(data), names)
    swap.do()
    swap.keep(swap.replaced, ending)
    (kept,) = kept_data(LocalHost(), str(data))
    assert kept.what == what
    assert kept.since
