"""A return to replaced data, and its removal: of which instances, and what if there are several."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.fakes import FakeHooks, FakeService, installed, no_guard
from tests.support import make_partition, said, tree
from vl_borg_hooks.actions.replaced import discard_replaced, roll_back
from vl_borg_hooks.config import LoadedConfig
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.runs.records import Expected, Journal, RunRecords

NAME = "20261122T101112.000001Z"


class Place:
    """Instances `a` and `b`, which have stored a day each."""

    def __init__(self, directory: Path, hooks: FakeHooks, loaded: LoadedConfig) -> None:
        self.hooks, self.loaded = hooks, loaded
        self.directory = directory
        for name in ("a", "b"):
            make_partition(self.data(name) / "partitions/20261122")

    def data(self, name: str) -> Path:
        return self.directory / f"{name}-data"

    def keep(self, name: str, when: str = NAME) -> Path:
        """Have data of 20261121 be kept since `when`."""
        kept = self.data(name) / ".vl-borg-hooks/kept" / when
        make_partition(kept / "partitions/20261121")
        return kept

    def days(self, name: str) -> list[str]:
        return sorted(path.name for path in (self.data(name) / "partitions").iterdir())

    def roll_back(self, *, yes: bool = True, discard: bool = False, dry_run: bool = False) -> None:
        instances = self.loaded.config.instances
        roll_back(self.loaded, instances, start=False, discard=discard, yes=yes, dry_run=dry_run)

    def discard(self, *, dry_run: bool = False) -> None:
        discard_replaced(self.loaded, self.loaded.config.instances, dry_run=dry_run)

    def kept(self, name: str) -> list[Path]:
        return list((self.data(name) / ".vl-borg-hooks/kept").glob("*"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    hooks, loaded = installed(monkeypatch, tmp_path, names=["a", "b"])
    no_guard(monkeypatch, hooks.calls)
    yield Place(tmp_path, hooks, loaded)
    for service in hooks.services.values():
        assert isinstance(service, FakeService)
        service.die()


@pytest.mark.parametrize("running", [True, False])
def test_only_an_instance_with_replaced_data_returns_to_it(place: Place, *, running: bool) -> None:
    place.keep("a")
    service = place.hooks.services["a"]
    assert isinstance(service, FakeService)
    if running:
        service.live()
    place.roll_back()
    assert (place.days("a"), place.days("b")) == (["20261121"], ["20261122"])
    assert service.running is running
    (kept,) = place.kept("a")
    assert (kept / "partitions/20261122").is_dir()


def test_what_a_return_replaces_is_removed_if_the_operator_says_so(place: Place) -> None:
    place.keep("a")
    place.roll_back(discard=True)
    assert place.days("a") == ["20261121"]
    assert not (place.data("a") / ".vl-borg-hooks").exists()


def test_a_return_needs_the_operators_word(place: Place) -> None:
    place.keep("a")
    before = tree(place.data("a"))
    with pytest.raises(OperatorError) as caught:
        place.roll_back(yes=False)
    assert caught.value.what == (
        f"21 rows are in {place.data('a')}, 21 are in the replaced data: day 20261122 "
        "will be replaced; what is replaced is kept until you remove it"
    )
    place.roll_back(yes=False, dry_run=True)
    assert tree(place.data("a")) == before


def test_which_of_several_sets_is_meant_is_the_operators_choice(place: Place) -> None:
    first, second = place.keep("a"), place.keep("a", "by hand")
    before = tree(place.data("a"))
    with pytest.raises(OperatorError, match="not one set of kept data, but 2: ") as caught:
        place.roll_back()
    assert all(str(path) in caught.value.what for path in (first, second))
    assert tree(place.data("a")) == before


def test_without_replaced_data_there_is_nothing_to_return_to(place: Place) -> None:
    with pytest.raises(OperatorError, match="there is no replaced data to return to"):
        place.roll_back()


def test_a_return_to_data_that_can_not_be_counted_is_made_all_the_same(place: Place) -> None:
    kept = place.keep("a")
    (kept / "partitions/20261121/datadb/parts.json").write_text("{}")
    with said() as lines:
        place.roll_back()
    assert any("that it is served can't be proved by its rows" in line for line in lines)
    assert place.days("a") == ["20261121"]


def test_replaced_data_is_removed_of_all_instances_that_have_some(place: Place) -> None:
    kept = place.keep("a")
    with said() as lines:
        place.discard(dry_run=True)
        assert kept.exists()
        place.discard()
    assert not (place.data("a") / ".vl-borg-hooks").exists()
    assert any(line.startswith(f"a: would remove {kept} (replaced data): ") for line in lines)
    assert any(line.startswith(f"a: removed {kept} (replaced data): ") for line in lines)
    assert lines.count("b: no replaced data is kept") == 2


def test_what_a_killed_return_still_needs_is_not_removed_before_it_was_undone(
    place: Place,
) -> None:
    """Half of the kept data is in place, and all of the data of before is put away."""
    kept = place.keep("a")
    (kept / "delete_tasks.json").write_text("[]")
    records = RunRecords(place.loaded.config.state_directory, "a")
    records.create()
    replaced = place.data("a") / ".vl-borg-hooks/replaced"
    replaced.mkdir()
    (place.data("a") / "partitions").rename(replaced / "partitions")
    (kept / "partitions").rename(place.data("a") / "partitions")
    expected = Expected({"20261121": 21}, 1)
    source = f"kept/{NAME}"
    records.note(Journal("restore --rollback", False, ["partitions"], source, expected))
    place.discard()
    assert place.days("a") == ["20261122"]
    assert not (place.data("a") / ".vl-borg-hooks").exists()
