"""`after-create` gives back what the borgmatic that calls it has, and nothing of anybody else."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.parts.fakes import FakeHooks, installed
from tests.support import said, write_config
from vl_borg_hooks.actions import release as action
from vl_borg_hooks.actions.release import release
from vl_borg_hooks.config import LoadedConfig
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin import manager
from vl_borg_hooks.runs.holder import Holder
from vl_borg_hooks.runs.records import FORCE_RELEASE, RunRecords

OURS = Holder.of(os.getppid(), "borgmatic")
ANOTHERS = Holder.of(os.getpid(), "borgmatic")
DEAD = Holder(1, 1.0, "borgmatic", "2026-11-22T00:00:00+00:00")


class Place:
    """Two instances; the caller is OURS."""

    def __init__(self, hooks: FakeHooks, loaded: LoadedConfig) -> None:
        self.hooks, self.loaded = hooks, loaded
        self.records = {
            name: RunRecords(loaded.config.state_directory, name) for name in hooks.services
        }

    def lease(self, name: str, holder: Holder) -> None:
        self.records[name].create()
        self.records[name].take_lease(holder)

    def has_lease(self, name: str) -> bool:
        return (self.records[name].directory / "lease.json").exists()

    def release(self, *names: str, force: bool = False) -> None:
        release(self.loaded, self.loaded.instances(names), force=force)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(action, "calling_process", lambda: OURS)
    monkeypatch.setattr(action, "entry_points", lambda group: [group])
    return Place(*installed(monkeypatch, tmp_path, names=["a", "b"]))


def test_our_leases_are_given_back_and_plugins_learn_of_it_after_that(place: Place) -> None:
    place.lease("a", OURS)
    place.lease("b", OURS)
    left: list[bool] = []
    place.hooks.doing["after_release"] = lambda: left.append(
        place.has_lease("a") or place.has_lease("b")
    )
    place.release()
    assert place.hooks.calls == [("after_release", "a"), ("after_release", "b")]
    assert left == [False, False]


def test_it_may_be_called_at_any_time_and_any_number_of_times(place: Place) -> None:
    place.release()
    place.lease("a", OURS)
    place.release()
    place.release()
    assert not place.has_lease("a")
    assert place.hooks.names == ["after_release"] * 6


def test_the_lease_of_another_borgmatic_that_lives_is_not_given_back(place: Place) -> None:
    place.lease("a", ANOTHERS)
    place.lease("b", OURS)
    with said() as lines:
        place.release()
    assert place.records["a"].lease_holder() == ANOTHERS
    assert not place.has_lease("b")
    assert lines == [
        f"a: {ANOTHERS} keeps its lease; if nothing archives the staging copy: {FORCE_RELEASE}"
    ]
    # It is still being archived.
    assert place.hooks.calls == [("after_release", "b")]


def test_the_lease_of_a_process_that_has_ended_is_given_back(place: Place) -> None:
    place.lease("a", DEAD)
    place.release("a")
    assert not place.has_lease("a")
    assert place.hooks.calls == [("after_release", "a")]


@pytest.mark.parametrize("content", ["", "{}", "[]"])
def test_by_force_every_lease_is_given_back(place: Place, content: str) -> None:
    place.lease("a", ANOTHERS)
    place.lease("b", OURS)
    (place.records["b"].directory / "lease.json").write_text(content)
    place.release(force=True)
    assert not place.has_lease("a")
    assert not place.has_lease("b")
    assert place.hooks.calls == [("after_release", "a"), ("after_release", "b")]


LIMITED = [Holder.unknown(), replace(ANOTHERS, command="bash", is_limited=True)]


@pytest.mark.parametrize("lease", LIMITED)
@pytest.mark.parametrize("caller", [Holder.unknown(), replace(OURS, is_limited=True)])
def test_what_was_taken_by_hand_or_from_afar_is_given_back_so(
    place: Place, monkeypatch: pytest.MonkeyPatch, lease: Holder, caller: Holder
) -> None:
    monkeypatch.setattr(action, "calling_process", lambda: caller)
    place.lease("a", lease)
    place.release("a")
    assert not place.has_lease("a")


@pytest.mark.parametrize("lease", LIMITED)
def test_a_borgmatic_does_not_give_back_what_was_taken_by_hand(place: Place, lease: Holder) -> None:
    place.lease("a", lease)
    place.release("a")
    assert place.has_lease("a")


def test_what_is_done_by_hand_does_not_give_back_the_lease_of_a_borgmatic(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(action, "calling_process", Holder.unknown)
    place.lease("a", ANOTHERS)
    place.release("a")
    assert place.has_lease("a")


def test_an_instance_that_was_not_asked_for_keeps_its_lease(place: Place) -> None:
    place.lease("a", OURS)
    place.lease("b", OURS)
    place.release("a")
    assert place.has_lease("b")
    assert place.hooks.calls == [("after_release", "a")]


def test_a_plugin_that_fails_fails_the_command_after_all_leases_were_given_back(
    place: Place,
) -> None:
    place.lease("a", OURS)
    place.lease("b", OURS)
    place.hooks.failing("after_release", RuntimeError("no chat"))
    with pytest.raises(RuntimeError, match="no chat"):
        place.release()
    assert not place.has_lease("a")
    assert not place.has_lease("b")


def test_a_plugin_that_cannot_be_loaded_keeps_no_lease(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(built_in: object) -> FakeHooks:
        raise OperatorError("a plugin could not be loaded")

    place.lease("a", OURS)
    monkeypatch.setattr(manager, "load", fail)
    with pytest.raises(OperatorError):
        place.release()
    assert not place.has_lease("a")


def test_without_plugins_nothing_is_imported_that_loads_them(tmp_path: Path) -> None:
    instance = {
        "name": "default",
        "data_path": str(tmp_path / "data"),
        "staging_path": str(tmp_path / "staging"),
        "service": {"systemd": "unused.service"},
    }
    state = str(tmp_path / "state")
    config = write_config(tmp_path / "config.yaml", [instance], state_path=state)
    program = (
        "import sys; from vl_borg_hooks.cli import main; status = main(sys.argv[1:]); "
        "print(status, [name for name in sys.modules if name.split('.')[0] == 'pluggy'])"
    )
    argv = [sys.executable, "-c", program, "--config", str(config), "after-create"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0 []\n", "")
