"""Which plugins there are, which of them wins, and what they add to the config."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path
from types import ModuleType

import pluggy
import pytest
from pydantic import BaseModel, ConfigDict

from tests.parts.fakes import FakeService
from tests.support import write_config
from vl_borg_hooks import steps
from vl_borg_hooks.config import ConfigError, LoadedConfig, load
from vl_borg_hooks.errors import OperatorError, unexpected
from vl_borg_hooks.plugin import hookimpl, manager
from vl_borg_hooks.plugin.checks import Check
from vl_borg_hooks.plugin.context import Additions, Backup
from vl_borg_hooks.plugin.relay import Hooks
from vl_borg_hooks.services import ServiceFactory, ServiceManager
from vl_borg_hooks.system.hosts import Host
from vl_borg_hooks.system.local import LocalHost


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    channel: str = "#backups"
    loud: bool = False


class Plugin:
    """A plugin with a service manager, a check, and if it has a `section` one of the config."""

    def __init__(self, name: str, directory: Path, section: str = "") -> None:
        self.name, self.directory, self.section = name, directory, section

    @hookimpl
    def service_managers(self) -> Mapping[str, ServiceFactory]:
        return {"ours": self.make, self.name: self.make}

    def make(self, options: object, host: Host) -> ServiceManager:
        service = FakeService(self.directory)
        service.words = self.name
        return service

    @hookimpl
    def plugin_options(self) -> Mapping[str, type[BaseModel]]:
        return {self.section: Section} if self.section else {}

    @hookimpl
    def backup_checks(self, backup: Backup) -> list[Check]:
        return [Check(self.name, True, "")]


def install(monkeypatch: pytest.MonkeyPatch, *plugins: object) -> None:
    """Have `plugins` be all that is installed, in this order."""

    def register(self: pluggy.PluginManager, group: str) -> int:
        assert group == "vl_borg_hooks"
        for plugin in plugins:
            self.register(plugin)
        return len(plugins)

    monkeypatch.setattr(pluggy.PluginManager, "load_setuptools_entrypoints", register)


def configured(directory: Path, **sections: object) -> LoadedConfig:
    instance = {
        "name": "default",
        "data_path": str(directory / "data"),
        "staging_path": str(directory / "staging"),
        "service": {"ours": {}},
    }
    return load(write_config(directory / "config.yaml", [instance], plugins=sections))


def added(hooks: Hooks, loaded: LoadedConfig) -> Additions:
    return manager.additions(hooks, loaded, loaded.config.plugins)


def failing_to_load(self: pluggy.PluginManager, group: str) -> int:
    raise ModuleNotFoundError("No module named 'moon'")


def test_a_plugin_that_cannot_be_imported_is_no_plugin_to_go_on_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pluggy.PluginManager, "load_setuptools_entrypoints", failing_to_load)
    with pytest.raises(OperatorError) as caught:
        manager.load(steps.BUILT_IN)
    assert caught.value.what == "a plugin could not be loaded: No module named 'moon'"
    assert caught.value.hint == "fix or uninstall that plugin"


def test_a_plugin_with_a_hook_that_does_not_exist_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugin = ModuleType("misspelt")

    @hookimpl
    def before_stopp(target: object) -> None:
        pass

    vars(plugin)["before_stopp"] = before_stopp
    install(monkeypatch, plugin)
    with pytest.raises(OperatorError, match="before_stopp"):
        manager.load(())


def test_a_plugin_with_an_argument_that_does_not_exist_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugin = ModuleType("misspelt")

    @hookimpl
    def before_stop(targett: object) -> None:
        pass

    vars(plugin)["before_stop"] = before_stop
    install(monkeypatch, plugin)
    with pytest.raises(OperatorError, match="targett"):
        manager.load(())


def test_the_service_manager_of_a_later_plugin_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = Plugin("systemd", tmp_path), Plugin("second", tmp_path)
    install(monkeypatch, first, second)
    hooks = manager.load(steps.BUILT_IN)
    services = added(hooks, configured(tmp_path)).services
    assert services["ours"] == second.make
    # Of ours too.
    assert services["systemd"] == first.make
    assert set(services) >= {"ours", "systemd", "second", "command"}


def test_a_step_of_a_plugin_takes_the_place_of_an_earlier_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    class Step:
        def __init__(self, name: str, *, answers: bool) -> None:
            self.name, self.answers = name, answers

        @hookimpl
        def stop_service(self) -> bool | None:
            asked.append(self.name)
            return self.answers or None

    install(monkeypatch, Step("first", answers=True), Step("second", answers=True))
    manager.load(()).stop_service(None)  # type: ignore[arg-type]
    assert asked == ["second"]
    asked.clear()
    install(monkeypatch, Step("first", answers=True), Step("second", answers=False))
    manager.load(()).stop_service(None)  # type: ignore[arg-type]
    assert asked == ["second", "first"]


def test_the_checks_of_all_plugins_come_in_the_order_of_the_plugins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, Plugin("first", tmp_path), Plugin("second", tmp_path))
    checks = manager.load(()).backup_checks(None)  # type: ignore[arg-type]
    assert [check.name for check in checks] == ["first", "second"]


@pytest.mark.parametrize(
    ("sections", "channel", "loud"),
    [
        ({}, "#backups", False),
        ({"chat": {}}, "#backups", False),
        ({"chat": {"channel": "#logs", "loud": True}}, "#logs", True),
    ],
)
def test_a_plugin_is_given_its_section_or_the_defaults(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    sections: Mapping[str, object],
    channel: str,
    *,
    loud: bool,
) -> None:
    install(monkeypatch, Plugin("a", tmp_path, "chat"))
    found = added(manager.load(()), configured(tmp_path, **sections)).of(Section)
    assert (found.channel, found.loud) == (channel, loud)


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"chta": {}}, "plugins.chta: no plugin has this section; the nearest is chat"),
        ({"chat": {"lod": True}}, "plugins.chat.lod: unknown key; the nearest valid key is loud"),
        ({"chat": {"loud": "very"}}, "plugins.chat.loud: must be true or false"),
        ({"chat": "#logs"}, "plugins.chat: must have keys of its own: channel, loud"),
    ],
)
def test_a_wrong_section_is_an_error_with_the_line_of_its_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sections: Mapping[str, object], expected: str
) -> None:
    install(monkeypatch, Plugin("a", tmp_path, "chat"))
    loaded = configured(tmp_path, **sections)
    with pytest.raises(ConfigError) as caught:
        added(manager.load(()), loaded)
    (error,) = caught.value.errors
    place, _, message = error.partition(": ")
    assert message.startswith(expected)
    line = loaded.path.read_text().splitlines()[int(place.rpartition(":")[2]) - 1]
    assert expected.split(":")[0].rpartition(".")[2] in line


def test_all_that_is_wrong_with_sections_is_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, Plugin("a", tmp_path, "chat"))
    loaded = configured(tmp_path, chta={}, chat={"channel": 5, "loud": "very", "lod": 1})
    with pytest.raises(ConfigError) as caught:
        added(manager.load(()), loaded)
    assert [error.split(": ")[1] for error in caught.value.errors] == [
        *("plugins.chta", "plugins.chat.channel", "plugins.chat.loud", "plugins.chat.lod")
    ]


def test_an_unknown_key_in_a_section_of_a_section_has_its_own_nearest_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Room(BaseModel):
        model_config = ConfigDict(extra="forbid")

        members: int = 0

    class Rooms(BaseModel):
        rooms: dict[str, list[Room]] = {}

    class Chat:
        @hookimpl
        def service_managers(self) -> Mapping[str, ServiceFactory]:
            return {}

        @hookimpl
        def plugin_options(self) -> Mapping[str, type[BaseModel]]:
            return {"chat": Rooms}

    install(monkeypatch, Chat())
    loaded = configured(tmp_path, chat={"rooms": {"ops": [{"membres": 5}]}})
    with pytest.raises(ConfigError, match="membres: unknown key; the nearest valid key is members"):
        added(manager.load(()), loaded)


class Failing:
    """A plugin that fails in some hook."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    @hookimpl
    def before_stop(self) -> None:
        raise self.error

    @hookimpl
    def after_start(self, target: object) -> None:
        # Ours fails, and not this.
        LocalHost().run(["false"])

    @hookimpl
    def stop_service(self) -> None:
        pass


class Around:
    """A plugin around all others, which is not to blame."""

    @hookimpl(wrapper=True)
    def before_stop(self) -> Generator[None, None, None]:
        yield


def loaded_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> Hooks:
    def register(self: pluggy.PluginManager, group: str) -> int:
        self.register(Failing(error), "the-culprit")
        self.register(Around(), "the-bystander")
        return 2

    monkeypatch.setattr(pluggy.PluginManager, "load_setuptools_entrypoints", register)
    return manager.load(steps.BUILT_IN)


def test_an_error_in_a_plugin_says_which_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = loaded_with(monkeypatch, ValueError("boom"))
    with pytest.raises(ValueError, match="boom") as caught:
        hooks.before_stop(None)  # type: ignore[arg-type]
    assert unexpected(caught.value).what == (
        "unexpected ValueError: boom (in the plugin the-culprit)"
    )
    hooks = loaded_with(monkeypatch, OperatorError("nobody answers the phone", hint="call again"))
    with pytest.raises(OperatorError) as refused:
        hooks.before_stop(None)  # type: ignore[arg-type]
    assert str(refused.value) == "the plugin the-culprit: nobody answers the phone; call again"


def test_what_our_own_code_refuses_is_not_blamed_on_the_plugin_that_called_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(OperatorError) as caught:
        loaded_with(monkeypatch, ValueError()).after_start(None)  # type: ignore[arg-type]
    assert caught.value.what == "false failed: exit status 1"


def test_an_error_in_our_own_steps_names_no_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AttributeError) as caught:
        loaded_with(monkeypatch, ValueError()).stop_service(None)  # type: ignore[arg-type]
    assert "(in the plugin" not in str(unexpected(caught.value))


def test_a_section_without_a_plugin_for_it_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch)
    with pytest.raises(ConfigError, match=r"plugins\.chat: no installed plugin has options"):
        added(manager.load(()), configured(tmp_path, chat={}))


@pytest.mark.parametrize("section", ["chat", "another name for the same model"])
def test_two_plugins_with_the_same_section_or_model_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, section: str
) -> None:
    install(monkeypatch, Plugin("a", tmp_path, "chat"), Plugin("b", tmp_path, section))
    with pytest.raises(OperatorError, match=f"two plugins have options under plugins: {section}:"):
        added(manager.load(()), configured(tmp_path))


def test_a_make_copy_that_returns_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Step:
        @hookimpl
        def make_copy(self) -> object:
            return True

    install(monkeypatch, Step())
    with pytest.raises(OperatorError, match="returned True, which is not a Copied"):
        manager.load(()).make_copy(None)  # type: ignore[arg-type]
