"""Which copies a restore takes, and in which order it calls the plugins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.parts.fakes import FakeHooks, FakeService, installed
from tests.support import make_copy, make_partition, said
from vl_borg_hooks.actions import restore as action
from vl_borg_hooks.actions.restore import restore, restore_extracted
from vl_borg_hooks.config import LoadedConfig
from vl_borg_hooks.errors import InvalidCopy, OperatorError
from vl_borg_hooks.plugin.checks import Check
from vl_borg_hooks.runs.records import Journal, RunRecords

IN_ORDER = ["before_restore", "restore_checks", "put_in_place", "after_restore"]


class Place:
    """Instances `a` and `b`, and a directory that borgmatic has extracted to."""

    def __init__(self, directory: Path, hooks: FakeHooks, loaded: LoadedConfig) -> None:
        self.hooks, self.loaded = hooks, loaded
        self.root = directory / "extracted"
        self.root.mkdir()

    def extract(self, name: str, *, where: str = "") -> Path:
        """Have a copy of instance `name` be extracted."""
        path = self.root / "var/lib/staging" / (where or name)
        make_copy(path, instance=name)
        return path

    def restore(
        self, *names: str, every: bool = False, dry_run: bool = False, yes: bool = False
    ) -> None:
        restore(
            *(self.loaded, self.loaded.instances(names), self.root),
            start=False,
            discard=False,
            yes=yes,
            dry_run=dry_run,
            every=every,
        )

    @property
    def restored(self) -> list[str]:
        return list(self.hooks.placed)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    hooks, loaded = installed(monkeypatch, tmp_path, names=["a", "b"])
    yield Place(tmp_path, hooks, loaded)
    for service in hooks.services.values():
        assert isinstance(service, FakeService)
        service.die()


def test_each_instance_gets_its_own_copy_wherever_that_was_extracted_to(place: Place) -> None:
    paths = {"a": place.extract("a", where="one"), "b": place.extract("b", where="deep/two")}
    place.restore()
    assert place.hooks.placed == paths
    assert place.hooks.calls == [(hook, name) for name in ("a", "b") for hook in IN_ORDER]
    assert place.hooks.told == {"a": None, "b": None}


def test_two_copies_of_one_instance_are_a_choice_that_the_operator_has_to_make(
    place: Place,
) -> None:
    paths = place.extract("a", where="monday"), place.extract("a", where="tuesday")
    with pytest.raises(InvalidCopy) as caught:
        place.restore("a")
    assert caught.value.what.startswith(f"{place.root} holds two copies of a: ")
    assert all(str(path) in caught.value.what for path in paths)
    assert caught.value.hint == "name one of them with --from"
    assert place.hooks.calls == []


@pytest.mark.parametrize("every", [True, False])
def test_a_directory_without_any_copy_is_an_error(place: Place, *, every: bool) -> None:
    with pytest.raises(InvalidCopy, match="holds no staging copy"):
        place.restore(every=every)
    assert place.hooks.calls == []


@pytest.mark.parametrize("every", [True, False])
def test_copies_of_other_instances_only_are_an_error(place: Place, *, every: bool) -> None:
    place.extract("c")
    with pytest.raises(InvalidCopy) as caught:
        place.restore(every=every)
    assert caught.value.what == f"{place.root} holds copies of c, none of a, b"
    assert place.hooks.calls == []


def test_an_instance_without_a_copy_is_left_as_it_is(place: Place) -> None:
    place.extract("a")
    with said() as lines:
        place.restore()
    assert f"{place.root} holds no copy of b: not restored" in lines
    assert place.restored == ["a"]


def test_an_instance_without_a_copy_that_was_asked_for_is_an_error_before_anything_is_touched(
    place: Place,
) -> None:
    place.extract("a")
    with pytest.raises(InvalidCopy) as caught:
        place.restore("a", "b", every=True)
    assert caught.value.what.endswith("holds copies of a, none of b")
    assert place.hooks.calls == []


def test_an_instance_that_was_not_asked_for_is_left_as_it_is(place: Place) -> None:
    place.extract("a")
    place.extract("b")
    place.restore("b", every=True)
    assert place.restored == ["b"]


def test_a_manifest_that_cannot_be_read_keeps_no_other_copy_from_being_restored(
    place: Place,
) -> None:
    path = place.extract("a")
    (place.extract("b", where="broken") / "manifest.json").write_text("{}")
    with said() as lines:
        place.restore()
    assert place.hooks.placed == {"a": path}
    assert any("broken/manifest.json: has format None" in line for line in lines)
    with pytest.raises(InvalidCopy, match="has format None"):
        place.restore("b")
    with pytest.raises(InvalidCopy, match="has format None"):
        place.restore("a", "b", every=True)


def test_two_copies_of_an_instance_that_was_not_asked_for_do_not_matter(place: Place) -> None:
    path = place.extract("a")
    for where in ("one", "two"):
        place.extract("b", where=where)
        place.extract("unknown", where=f"unknown {where}")
    place.restore("a", every=True)
    assert place.hooks.placed == {"a": path}


def test_data_is_replaced_only_with_the_operators_word_after_all_checks(place: Place) -> None:
    place.extract("a")
    data = Path(place.loaded.config.instances[0].data_directory)
    make_partition(data / "partitions/20261120")
    with pytest.raises(OperatorError) as caught:
        place.restore("a")
    assert caught.value.what == (
        f"21 rows are in {data}, 42 are in the copy of 2026-11-22T00:00:00+00:00: day 20261120 "
        "will be replaced; what is replaced is kept until you remove it"
    )
    assert caught.value.hint == "nothing was changed; to replace it, add --yes"
    assert place.hooks.names == ["before_restore", "restore_checks", "after_restore"]
    with said() as lines:
        place.restore("a", dry_run=True)
        place.restore("a", yes=True)
    assert lines.count(f"a: {caught.value.what}") == 2
    assert place.restored == ["a"]


@pytest.mark.parametrize("content", ["not JSON", '["missing"]'])
def test_data_that_cannot_be_counted_is_told_of_and_replaced_too(
    place: Place, content: str
) -> None:
    place.extract("a")
    data = Path(place.loaded.config.instances[0].data_directory)
    make_partition(data / "partitions/20261120")
    (data / "partitions/20261120/datadb/parts.json").write_text(content)
    with pytest.raises(OperatorError, match=f"an unknown number of rows is in {data}, 42 are in"):
        place.restore("a")
    place.restore("a", yes=True)


def test_a_copy_that_is_damaged_is_not_restored(place: Place) -> None:
    path = place.extract("a")
    (path / "data/partitions/20261122/datadb/18A0000000000000/index.bin").write_bytes(b"x")
    with pytest.raises(InvalidCopy) as caught:
        place.restore("a")
    assert str(caught.value).startswith(f"a: {path}/data/partitions/20261122/")
    assert place.hooks.calls == []


def test_a_dry_run_makes_the_checks_and_nothing_else(place: Place) -> None:
    place.extract("a")
    with said() as lines:
        place.restore("a", dry_run=True)
    assert place.hooks.calls == [("restore_checks", "a")]
    assert any("would restore 42 rows" in line for line in lines)
    place.hooks.checks["a"] = [Check("room", False, "no room")]
    with pytest.raises(OperatorError, match="no room"):
        place.restore("a", dry_run=True)


def test_what_a_killed_run_left_is_finished_before_anything_else(place: Place) -> None:
    place.extract("a")
    records = RunRecords(place.loaded.config.state_directory, "a")
    records.create()
    records.note(Journal("before-create", found_running=True))
    place.restore("a")
    assert place.hooks.names == ["start_service", "is_healthy", *IN_ORDER]


@pytest.mark.parametrize("hook", ["before_restore", "restore_checks", "put_in_place"])
def test_plugins_learn_of_a_failure_and_the_instances_after_it_are_not_restored(
    place: Place, hook: str
) -> None:
    place.extract("a")
    place.extract("b")
    error = OperatorError("it failed")
    place.hooks.failing(hook, error)
    with pytest.raises(OperatorError) as caught:
        place.restore()
    assert caught.value is error
    assert place.hooks.names == [*IN_ORDER[: IN_ORDER.index(hook) + 1], "after_restore"]
    assert place.hooks.told == {"a": error}


def test_a_check_that_fails_ends_the_restore(place: Place) -> None:
    place.extract("a")
    place.hooks.checks["a"] = [Check("room", False, "no room", "make some")]
    with pytest.raises(OperatorError) as caught:
        place.restore("a")
    assert str(caught.value) == ("a: no room; VictoriaLogs is stopped; make some")
    assert place.restored == []


def test_an_after_restore_that_fails_does_not_hide_the_failure_of_the_restore(
    place: Place,
) -> None:
    place.extract("a")
    place.hooks.failing("put_in_place", OperatorError("it failed"))
    place.hooks.failing("after_restore", RuntimeError("no chat"))
    with said() as lines, pytest.raises(OperatorError, match="it failed"):
        place.restore("a")
    assert any("after_restore failed too: no chat" in line for line in lines)


def test_an_after_restore_that_fails_is_the_failure_of_a_restore_that_went_well(
    place: Place,
) -> None:
    place.extract("a")
    place.hooks.failing("after_restore", RuntimeError("no chat"))
    with pytest.raises(OperatorError, match="unexpected RuntimeError: no chat"):
        place.restore("a")
    assert place.hooks.names == IN_ORDER


def on_extract(
    directory: Path, monkeypatch: pytest.MonkeyPatch, *, wanted: bool
) -> tuple[Place, list[str]]:
    """Instance `a`, extracted by a borgmatic, with `on_extract`; what `after-extract` has said."""
    options = {"restore": {"on_extract": wanted}}
    place = Place(directory, *installed(monkeypatch, directory, names=["a"], **options))
    place.extract("a")
    monkeypatch.setattr(action, "extract_destination", lambda: place.root)
    with said() as lines:
        restore_extracted(place.loaded, place.loaded.config.instances, dry_run=False)
    return place, lines


@pytest.mark.parametrize("extracted", ["nothing", "another"])
def test_what_was_extracted_without_a_copy_of_the_instance_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extracted: str
) -> None:
    options = {"restore": {"on_extract": True}}
    place = Place(tmp_path, *installed(monkeypatch, tmp_path, names=["a"], **options))
    if extracted == "another":
        place.extract("b")
    monkeypatch.setattr(action, "extract_destination", lambda: place.root)
    with said() as lines:
        restore_extracted(place.loaded, place.loaded.config.instances, dry_run=False)
    (line,) = lines
    assert line.startswith(f"nothing is restored: {place.root}")
    assert place.hooks.calls == []


def test_the_option_is_the_operators_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_partition(tmp_path / "a-data/partitions/20261120")
    place, lines = on_extract(tmp_path, monkeypatch, wanted=True)
    assert place.restored == ["a"]
    assert any("21 rows are in" in line and "is kept" in line for line in lines)


def test_what_was_extracted_is_restored_if_the_config_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = on_extract(tmp_path, monkeypatch, wanted=True)
    assert place.restored == ["a"]


def test_what_was_extracted_is_only_that_unless_the_config_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, lines = on_extract(tmp_path, monkeypatch, wanted=False)
    assert place.hooks.calls == []
    assert lines == ["restore: on_extract: is not set for any instance: nothing is restored"]


def restore_as(place: Place, name: str, *, of: Sequence[str] = (), yes: bool = False) -> None:
    action.restore_as(
        *(place.loaded, name, place.root), of=of, start=False, discard=False, yes=yes, dry_run=False
    )


def test_a_copy_of_an_instance_that_the_config_does_not_have_goes_into_the_named_one(
    place: Place,
) -> None:
    path = place.extract("old")
    with said() as lines:
        restore_as(place, "b")
    assert place.hooks.placed == {"b": path}
    assert any(line.startswith("b: restored: 42 rows, ") and " of old" in line for line in lines)


def test_whose_copy_takes_the_place_of_what_is_there_is_said_before(place: Place) -> None:
    place.extract("old")
    data = Path(place.loaded.config.instances[1].data_directory)
    make_partition(data / "partitions/20261120")
    with pytest.raises(OperatorError, match="42 are in the copy of old of 2026-11-22"):
        restore_as(place, "b")
    assert place.restored == []
    restore_as(place, "b", yes=True)
    assert place.restored == ["b"]


def test_of_several_copies_one_is_named_by_the_instance_that_it_is_of(place: Place) -> None:
    place.extract("a")
    path = place.extract("old")
    with pytest.raises(OperatorError, match="holds copies of a, old, but one is wanted"):
        restore_as(place, "b")
    with pytest.raises(OperatorError, match="but one is wanted"):
        restore_as(place, "b", of=["a", "old"])
    with pytest.raises(InvalidCopy, match="holds copies of a, old, none of c"):
        restore_as(place, "b", of=["c"])
    restore_as(place, "b", of=["old"])
    assert place.hooks.placed == {"b": path}


def test_two_copies_of_one_instance_are_a_choice_for_another_instance_too(place: Place) -> None:
    for where in ("monday", "tuesday"):
        place.extract("old", where=where)
    with pytest.raises(InvalidCopy, match="holds two copies of old"):
        restore_as(place, "b")


def test_a_copy_goes_into_no_instance_that_the_config_does_not_have(place: Place) -> None:
    place.extract("a")
    with pytest.raises(OperatorError, match="has no instance 'c'"):
        restore_as(place, "c")
