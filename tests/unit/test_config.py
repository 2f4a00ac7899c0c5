"""The config file: defaults, and errors that name file, line and nearest key."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tests.support import EXAMPLES, umask
from vl_borg_hooks import cli, config
from vl_borg_hooks.config import ConfigError, HttpAuth, Instance, load
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.system.ssh import SshHost

MANY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def text(top: str = "", extra: str = "", **changes: str | None) -> str:
    """Return a config of one instance: keys in lines 2 to 5, `extra` in 6, `top` last."""
    keys: dict[str, str | None] = {
        "name": "default",
        "data_path": "/srv/data",
        "staging_path": "/srv/staging",
        "service": "{systemd: victorialogs.service}",
    }
    keys.update(changes)
    lines = [f"{key}: {value}" for key, value in keys.items() if value is not None]
    lines += [extra] if extra else []
    return "instances:\n  - " + "\n    ".join(lines) + "\n" + top


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def writer(content: str | bytes) -> Path:
        path = tmp_path / "config.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(0o600)
        return path

    return writer


Write = Callable[[str | bytes], Path]


def errors_of(path: Path) -> list[str]:
    """Return the errors in `path`, without its name before each."""
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert all(error.startswith(str(path)) for error in caught.value.errors)
    return [error.removeprefix(str(path)).lstrip(": ") for error in caught.value.errors]


def test_every_option_that_is_left_out_has_its_default(write: Write) -> None:
    loaded = load(write(text()))
    assert loaded.config.model_dump() == {
        "instances": [
            {
                "name": "default",
                "data_path": "/srv/data",
                "staging_path": "/srv/staging",
                "url": None,
                "http_auth": None,
                "auth_keys": {"metrics": None, "force_flush": None, "partition_manage": None},
                "tls": None,
                "url_over_ssh": False,
                "consistency": "stop",
                "service": {"systemd": "victorialogs.service"},
                "ssh_command": ("ssh",),
                "stop_timeout": 60,
                "start_timeout": 120,
                "max_downtime": 300,
                "final_pass": "auto",
                "detached_days": "refuse",
                "reread_days": 30,
                "warm": {"bwlimit": None},
                "restore": {"on_extract": False, "owner": None},
            }
        ],
        "plugins": {},
        "when_busy": "fail",
        "state_path": None,
    }


def test_the_state_is_kept_where_it_survives_a_reboot(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = load(write(text())).config
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert parsed.state_directory == Path("/var/lib/vl-borg-hooks/.state")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/home/x/state")
    assert parsed.state_directory == Path("/home/x/state/vl-borg-hooks")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/x")
    assert parsed.state_directory == Path("/home/x/.local/state/vl-borg-hooks")
    monkeypatch.undo()
    assert load(write(text("state_path: /srv/state/"))).config.state_directory == Path("/srv/state")


def test_every_option_that_is_given_counts(write: Write) -> None:
    extra = (
        "url: http://127.0.0.1:9428/\n    ssh_command: [ssh, -i, key file]\n    stop_timeout: 1\n"
        "    start_timeout: 2.5\n    max_downtime: 3\n    restore: {on_extract: true, owner: 'a:b'}"
    )
    instance = load(write(text(extra=extra, data_path="/srv//data/./x/"))).config.instances[0]
    assert instance.url == "http://127.0.0.1:9428"
    assert list(instance.ssh_command) == ["ssh", "-i", "key file"]
    assert (instance.stop_timeout, instance.start_timeout, instance.max_downtime) == (1, 2.5, 3)
    assert instance.restore.on_extract
    assert instance.restore.owner == "a:b"
    assert instance.data_directory == "/srv/data/x"
    assert isinstance(instance.host, LocalHost)


PLAIN = (
    "should",
    "Input",
    "valid dict",
    "type=",
    "pydantic",
    "https://",
    "unable to",
    "Value error",
)
NUMBERS = {
    "stop_timeout": "seconds from 0.01 to 86400",
    "start_timeout": "seconds from 0.01 to 86400",
    "max_downtime": "seconds from 0.01 to 86400",
    "reread_days": "days from 0.01 to 3650",
}
NO_NUMBERS = [
    *(".inf", "-.inf", ".nan", "1e12", "1.0e+12", "-1", "0", "9" * 400, "true", "'5'", "soon"),
    *("null", "[1]", "{a: 1}", "2026-01-01"),
]


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("option", NUMBERS)
def test_a_number_out_of_its_range_is_refused_with_the_range(
    write: Write, option: str, value: str
) -> None:
    (error,) = errors_of(write(text(extra=f"{option}: {value}")))
    assert error == f"6: instances[0].{option}: must be a number of {NUMBERS[option]}"


@pytest.mark.parametrize("value", [".inf", ".nan", "1e12", "-1", "0", "9" * 400, "true", "'5'"])
def test_a_commands_time_out_of_its_range_is_refused_too(
    write: Write, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    words = "stop: [a], start: [a], status: [a]"
    path = write(text(service=f"{{command: {{{words}, timeout: {value}}}}}"))
    assert cli.main(["config", "validate", "--config", str(path)]) == 1
    expected = "service.command.timeout: must be a number of seconds from 0.01 to 86400"
    assert capsys.readouterr().out == f"{path}:5: instances[0].{expected}\n"


@pytest.mark.parametrize(
    "rate", ["'0'", "'0.5'", "1025g", "99999999999g", "50", "fast", "1e9", "'-1'"]
)
def test_a_rate_that_rsync_would_refuse_is_refused(write: Write, rate: str) -> None:
    (error,) = errors_of(write(text(extra=f"warm: {{bwlimit: {rate}}}")))
    assert error.startswith("6: instances[0].warm.bwlimit: must be ")


@pytest.mark.parametrize("rate", ["'1'", "50m", "1.5G", "1024g", "'500'", "100K"])
def test_a_rate_that_rsync_takes_is_taken(write: Write, rate: str) -> None:
    load(write(text(extra=f"warm: {{bwlimit: {rate}}}")))


AUTH = "instances[0].http_auth: must have either username with one of password_file and password_"

WRONG = ["5", "true", ".inf", "[]", "[[]]", "{}", "{a: 1}", "''", "null", "2026-01-01", "[1, x]"]


@pytest.mark.parametrize("value", WRONG)
def test_whatever_is_wrong_with_an_option_is_said_in_plain_words(write: Write, value: str) -> None:
    options = [
        *((option, f"{option}: {value}") for option in Instance.model_fields),
        *((f"warm.{option}", f"warm: {{{option}: {value}}}") for option in ["bwlimit"]),
        *((f"restore.{o}", f"restore: {{{o}: {value}}}") for o in ("on_extract", "owner")),
        *(
            (f"http_auth.{option}", f"http_auth: {{{option}: {value}}}")
            for option in HttpAuth.model_fields
        ),
        ("tls.ca_file", f"tls: {{ca_file: {value}}}"),
        ("auth_keys.metrics", f"auth_keys: {{metrics: {value}}}"),
        ("auth_keys.metrics.file", f"auth_keys: {{metrics: {{file: {value}}}}}"),
    ]
    required = ("name", "data_path", "staging_path", "service")
    for option, line in options:
        content = text(**{option: value}) if option in required else text(extra=line)
        try:
            load(write(content))
        except ConfigError as error:
            said = error.errors
        else:
            said = []
        assert not [each for each in said for phrase in PLAIN if phrase in each], (option, said)
        assert all(re.search(r"config\.yaml:\d+: ", each) for each in said), (option, said)


def test_every_error_of_a_service_is_listed(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(text(service="{command: {stop: a, strat: [a], status: [a], timeout: .inf}}"))
    assert cli.main(["--config", str(path), "config", "validate"]) == 1
    said = capsys.readouterr().out
    assert [line.split(": ")[1].rpartition(".")[2] for line in said.splitlines()] == [
        *("stop", "start", "timeout", "strat")
    ]
    assert not [phrase for phrase in PLAIN if phrase in said]


def test_a_key_is_read_from_a_file_or_from_the_environment(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("of a file\n")
    (tmp_path / "key").chmod(0o600)
    keys = f"{{metrics: {{file: {tmp_path}/key}}, force_flush: {{environment: VL_TEST_KEY}}}}"
    instance = load(write(text(extra=f"auth_keys: {keys}"))).config.instances[0]
    monkeypatch.setenv("VL_TEST_KEY", "of a variable")
    assert instance.auth_keys.read() == {"metrics": "of a file", "force_flush": "of a variable"}
    monkeypatch.delenv("VL_TEST_KEY")
    with pytest.raises(OperatorError, match=r"there is no \$VL_TEST_KEY in the environment"):
        instance.auth_keys.read()


@pytest.mark.parametrize(
    ("auth", "header"),
    [
        ("{username: operator, password_file: FILE}", "Basic b3BlcmF0b3I6YWJjLURFRg=="),
        ("{username: operator, password_environment: VL_TEST}", "Basic b3BlcmF0b3I6eC15"),
        ("{bearer_token_file: FILE}", "Bearer abc-DEF"),
        ("{bearer_token_environment: VL_TEST}", "Bearer x-y"),
    ],
)
def test_a_password_and_a_token_become_the_header_that_they_are_sent_in(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, auth: str, header: str
) -> None:
    (tmp_path / "secret").write_text("abc-DEF\n")
    (tmp_path / "secret").chmod(0o600)
    monkeypatch.setenv("VL_TEST", "x-y")
    content = text(extra=f"http_auth: {auth.replace('FILE', f'{tmp_path}/secret')}")
    (instance,) = load(write(content)).config.instances
    assert instance.http_auth
    assert instance.http_auth.header() == header


@pytest.mark.parametrize("token", ["two words", "caf\u00e9", "tab\t"])
def test_what_is_no_bearer_token_is_not_sent_and_not_told(
    write: Write, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    (instance,) = load(
        write(text(extra="http_auth: {bearer_token_environment: VL_TEST}"))
    ).config.instances
    assert instance.http_auth
    monkeypatch.setenv("VL_TEST", token)
    with pytest.raises(OperatorError, match=r"\$VL_TEST is no bearer token") as caught:
        instance.http_auth.header()
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:9428/logs", "https://logs.example.com", "http://[::1]:9428"),
        *("unix:/run/x.sock", "unix:/run/x.sock:/logs"),
    ],
)
def test_the_address_of_a_server_may_be_a_port_or_a_unix_socket_with_a_prefix(
    write: Write, url: str
) -> None:
    (instance,) = load(write(text(extra=f'url: "{url}/"'))).config.instances
    assert instance.url == url


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("{metric: {file: /k}}", "metric: unknown key; the nearest valid key is metrics"),
        ("{metrics: {fil: /k}}", "metrics.fil: unknown key; the nearest valid key is file"),
        ("{metrics: {}}", "metrics: must have either file or environment"),
        ("{metrics: {file: k}}", "metrics.file: must be an absolute path"),
    ],
)
def test_a_key_that_is_not_told_rightly_is_named(write: Write, keys: str, expected: str) -> None:
    error, *_ = errors_of(write(text(extra=f"auth_keys: {keys}")))
    assert error.endswith(f"instances[0].auth_keys.{expected}")


SECOND = """
  - name: other
    data_path: {data}
    staging_path: {staging}
    service: {{systemd: other.service}}
"""


def second(data: str = "/srv/data2", staging: str = "/srv/staging2", name: str = "other") -> str:
    """Return a second instance; its keys are in lines 7 to 10."""
    return SECOND.format(data=data, staging=staging).replace("name: other", f"name: {name}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # Unknown keys, at each level, with the nearest valid one.
        (text("state_pth: /x"), ["6: state_pth: unknown key; the nearest valid key is state_path"]),
        (
            text(extra="staging: /x"),
            ["6: instances[0].staging: unknown key; the nearest valid key is staging_path"],
        ),
        (
            text(extra="restore:\n      on_extrakt: true"),
            [
                "7: instances[0].restore.on_extrakt: unknown key; the nearest valid key is on_extract"
            ],
        ),
        (
            text(extra="warm:\n      bwlimt: 5M"),
            ["7: instances[0].warm.bwlimt: unknown key; the nearest valid key is bwlimit"],
        ),
        (
            text(extra="qqq: 1"),
            ["6: instances[0].qqq: unknown key; the nearest valid key is "],
        ),
        # Missing.
        (text(name=None), ["2: instances[0].name: is missing"]),
        (
            text(service=None),
            ["2: instances[0].service: must name one service manager, such as systemd:"],
        ),
        (
            text(extra="consistency: snapshot"),
            ["6: instances[0].consistency: snapshot needs url:, to ask VictoriaLogs"],
        ),
        (
            text(extra="consistency: auto"),
            ["6: instances[0].consistency: auto needs url:, to ask VictoriaLogs"],
        ),
        (
            text(service=None, extra="consistency: auto\n    url: http://127.0.0.1:9428"),
            ["2: instances[0].service: must name one service manager, such as systemd:"],
        ),
        ("state_path: /x\n", ["instances: is missing"]),
        ("instances: []\n", ["1: instances: must have at least 1 in it"]),
        ("", ["must have keys of its own: instances, plugins, when_busy, state_path"]),
        ("# nothing\n", ["must have keys of its own: instances"]),
        ("- name: x\n", ["must have keys of its own: instances"]),
        ("just words\n", ["must have keys of its own: instances"]),
        ("instances: 5\n", ["1: instances: must be a list"]),
        ("instances: [5]\n", ["1: instances[0]: must have keys of its own: name, "]),
        # Wrong types: nothing is guessed from a string or a number.
        (text(name="5"), ["2: instances[0].name: must be text"]),
        (text(data_path="[/srv]"), ["3: instances[0].data_path: must be text"]),
        (text(service="systemd"), ["5: instances[0].service: must have keys of its own"]),
        (text(extra="stop_timeout: soon"), ["6: instances[0].stop_timeout: must be a number"]),
        (text(extra="stop_timeout: 0"), ["6: instances[0].stop_timeout: must be a number"]),
        (text(extra="max_downtime: '5'"), ["6: instances[0].max_downtime: must be a number"]),
        (text(extra="max_downtime: true"), ["6: instances[0].max_downtime: must be a number"]),
        (text(extra="ssh_command: ssh"), ["6: instances[0].ssh_command: must be a list of words"]),
        (text(extra="ssh_command: []"), ["6: instances[0].ssh_command: "]),
        (
            text(extra="ssh_command: [ssh, '']"),
            ["6: instances[0].ssh_command: must be a list of words, none"],
        ),
        (text(extra="restore: {owner: nobody}"), ["6: instances[0].restore.owner: "]),
        (
            text(extra="restore:\n      on_extract: 1"),
            ["7: instances[0].restore.on_extract: must be true or false"],
        ),
        # Names, paths, addresses.
        (text(name="../x"), ["2: instances[0].name: "]),
        (text(name="a/b"), ["2: instances[0].name: "]),
        (text(name=".state"), ["2: instances[0].name: "]),
        (text(name="-x"), ["2: instances[0].name: "]),
        (text(name='"a\\nb"'), ["2: instances[0].name: "]),
        (text(name='"a\\n"'), ["2: instances[0].name: "]),
        (text(name="x" * 65), ["2: instances[0].name: "]),
        (text(staging_path="srv"), ["4: instances[0].staging_path: must be an absolute path"]),
        (text(staging_path="h:/srv"), ["4: instances[0].staging_path: must be an absolute path"]),
        (text(staging_path="/a/../b"), ["4: instances[0].staging_path: must be a path"]),
        (text(staging_path='"/a\\0b"'), ["4: instances[0].staging_path: must be a path"]),
        (text(data_path="srv"), ["3: instances[0].data_path: must be an absolute path or user@"]),
        (text(data_path="h:/a/../b"), ["3: instances[0].data_path: must be a path without '..'"]),
        (text("state_path: state"), ["6: state_path: must be an absolute path"]),
        (text(extra="url: 127.0.0.1:9428"), ["6: instances[0].url: must be the address of"]),
        (text(extra="url: file:///etc/passwd"), ["6: instances[0].url: must be the address of"]),
        (text(extra="url: http://a:99999"), ["6: instances[0].url: must be the address of"]),
        (text(extra="url: 'http://[::1'"), ["6: instances[0].url: must be the address of"]),
        (text(extra="url: unix:run/x.sock"), ["6: instances[0].url: must be the address of"]),
        (text(extra="url: unix:/run/x.sock:logs"), ["6: instances[0].url: must be the address of"]),
        (text(extra=f"url: unix:/{'x' * 107}"), ["6: instances[0].url: must have a path of at "]),
        # Who we are, and how it is reached.
        (text(extra="http_auth: {}"), [f"6: {AUTH}"]),
        (text(extra="http_auth: {username: a}"), [f"6: {AUTH}"]),
        (text(extra="http_auth: {password_file: /a}"), [f"6: {AUTH}"]),
        (text(extra="http_auth:\n      username: a\n      bearer_token_file: /a"), [f"6: {AUTH}"]),
        (
            text(extra="http_auth: {bearer_token_file: /a, bearer_token_environment: A}"),
            [f"6: {AUTH}"],
        ),
        (
            text(extra="http_auth: {bearer_token_file: a}"),
            ["6: instances[0].http_auth.bearer_token_file: must be an absolute path"],
        ),
        (
            text(extra="http_auth: {bearer_token: a}"),
            ["6: instances[0].http_auth.bearer_token: unknown key; the nearest valid key is bear"],
        ),
        (text(extra="tls: {}"), ["6: instances[0].tls.ca_file: is missing"]),
        (
            text(extra="tls: {insecure: true}"),
            [
                "6: instances[0].tls.ca_file: is missing",
                "6: instances[0].tls.insecure: unknown key; the nearest valid key is ca_file",
            ],
        ),
        (
            text(extra="url: http://a\n    tls: {ca_file: /a}"),
            ["7: instances[0].tls: is only for a url that begins with https://"],
        ),
        (text(extra="tls: {ca_file: /a}"), ["6: instances[0].tls: is only for a url that begins"]),
        (
            text(extra="url: http://a\n    url_over_ssh: true"),
            ["7: instances[0].url_over_ssh: is only for a data_path on another machine"],
        ),
        (
            text(data_path="u@h:/srv/data", extra="url_over_ssh: true"),
            ["6: instances[0].url_over_ssh: needs a url: the address of VictoriaLogs as seen from"],
        ),
        # What is valid alone but not together.
        (
            text(service="{}"),
            ["5: instances[0].service: must name one service manager"],
        ),
        (
            text(service="{systemd: a, command: {}}"),
            ["5: instances[0].service: must name one service manager"],
        ),
        (
            text(staging_path="/srv/data"),
            ["3: instances[0].data_path: /srv/data overlaps the staging_path of default /srv/data"],
        ),
        (
            text(staging_path="/srv/data/in/it"),
            ["3: instances[0].data_path: /srv/data overlaps the staging_path of default"],
        ),
        (
            text(data_path="/srv/staging/data"),
            ["3: instances[0].data_path: /srv/staging/data overlaps the staging_path of default"],
        ),
        (
            text(second(staging="/srv/staging/b")),
            ["9: instances[1].staging_path: /srv/staging/b overlaps the staging_path of default"],
        ),
        (
            text(second(staging="/srv")),
            [
                "9: instances[1].staging_path: /srv overlaps the staging_path of default",
                "9: instances[1].staging_path: /srv overlaps the data_path of default",
                "8: instances[1].data_path: /srv/data2 overlaps the staging_path of other",
            ],
        ),
        (
            text(second(data="/srv/data")),
            ["8: instances[1].data_path: /srv/data overlaps the data_path of default /srv/data"],
        ),
        (
            text("state_path: /srv/staging/state"),
            ["4: instances[0].staging_path: /srv/staging overlaps the state path"],
        ),
        (
            text("state_path: /srv/data/state"),
            ["3: instances[0].data_path: /srv/data overlaps the state path"],
        ),
        (
            text(second(name="default")),
            ["7: instances[1].name: there are two instances called default"],
        ),
        # Several at once.
        (
            text("colour: red", name="'?'", extra="urll: x"),
            ["2: instances[0].name: ", "6: instances[0].urll: ", "7: colour: "],
        ),
        # No YAML at all, or none that we take.
        (text(extra="url: ["), [": is not valid YAML: "]),
        ("a: b\n\tc: d\n", ["2: is not valid YAML: "]),
        (text(extra="name: twice"), ["6: is not valid YAML: found duplicate key"]),
        ("&a [*a]\n", ["is not valid YAML: "]),
        (
            "a: &a {b: *a}\n",
            ["instances: is missing", "1: a: unknown key; the nearest valid key is "],
        ),
        ("a: *b\n", ["1: is not valid YAML: found undefined alias"]),
        ("a: \x00\n", ["is not valid YAML: "]),
        ("[" * 1000, ["is not valid YAML: "]),
        ("a: !!timestamp 2001-99-99\n", ["is not valid YAML: "]),
        ("a: 2001-99-99\n", ["is not valid YAML: "]),
        (b"instances: \xff\xfe\n", ["is not UTF-8 text"]),
        ("#" * (1 << 18) + "\n", ["is larger than 262144 bytes"]),
    ],
)
def test_each_error_has_its_line_its_key_and_what_is_wrong(
    write: Write, content: str | bytes, expected: list[str]
) -> None:
    found = errors_of(write(content))
    assert len(found) == len(expected), found
    for error, start in zip(sorted(found), sorted(expected), strict=True):
        # The line first, if it is known.
        assert error.startswith(start) if start[:1].isdigit() else start in error


def bomb(pattern: str) -> str:
    """Ten lines; each is nine times the one before, by what `pattern` does with nine aliases."""
    lines = ["a0: &a0 {x: 1}"]
    for depth in range(1, 10):
        aliases = ", ".join([f"*a{depth - 1}"] * 9)
        lines.append(f"a{depth}: &a{depth} " + pattern.format(aliases=aliases))
    return "\n".join(lines) + "\n"


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "content",
    [
        bomb("[{aliases}]"),
        bomb("{{<<: [{aliases}], y: 1}}"),
        "[" * 200_000,
        "{a: " * 60_000,
        "- " * 100_000,
        "? " * 50_000,
        "&a " * 50_000,
        "\0" * 1000,
        "a: b\n" * 50_000,
        "k: " + "9" * 200_000,
        "- - - *a\n",
    ],
    ids=["lists", "merges", "[", "{", "-", "?", "&", "NUL", "twice", "digits", "no alias"],
)
def test_yaml_that_would_have_no_end_ends_with_one_line(write: Write, content: str) -> None:
    path = write(content)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).isprintable()
    assert len(caught.value.errors[0]) < 400


def test_an_alias_bomb_is_called_what_it_is(write: Write) -> None:
    (error,) = errors_of(write(bomb("[{aliases}]") + text()))
    assert error == "is not valid YAML: with its aliases, it has more than 20000 values"


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/tty"])
def test_a_device_is_no_config(device: str) -> None:
    with pytest.raises(OperatorError, match=f"{device}( is not a regular file|: )"):
        load(Path(device))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (text(extra="url: ["), 7),
        (text(extra="name: twice"), 6),
        ("a: 1\nb: *nothing\n", 2),
        ("a: !!timestamp 2001-99-99\n", None),
    ],
)
def test_an_error_in_the_yaml_has_its_line(write: Write, content: str, line: int | None) -> None:
    path = write(content)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:{line}: " if line else f"{path}: ")


def test_several_errors_are_one_line_that_says_how_many_more(write: Write) -> None:
    path = write(text("colour: red", extra="urll: x"))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert "(and 1 more)" in str(caught.value)
    assert "vl-borg-hooks config validate" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_links_do_not_hide_that_paths_overlap(write: Write, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    content = text(data_path=f"{tmp_path}/data", staging_path=f"{tmp_path}/link/staging")
    expected = f"3: instances[0].data_path: {tmp_path}/data overlaps the staging_path of default"
    assert errors_of(write(content))[0].startswith(expected)


def test_paths_on_another_host_overlap_with_none_here(write: Write) -> None:
    load(write(text(data_path="host:/srv/staging")))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (text(service="{systemd: 5}"), ":5: instances[0].service.systemd"),
        (text(service="{systemd: 'a b'}"), ":5: instances[0].service.systemd"),
        (
            text(service="\n      systemd:\n        unit: x\n        command_prefix: sudo"),
            ":8: instances[0].service.systemd.command_prefix: ",
        ),
        (
            text(service="\n      command:\n        stop: [a]\n        start: [a]"),
            ":6: instances[0].service.command.status: ",
        ),
        (
            text(
                service="\n      command:\n        stop: []\n        start: [a]\n        status: [a]"
            ),
            ":7: instances[0].service.command.stop: ",
        ),
        (
            text(service="\n      command: {stop: [a], start: [a], status: [a, 5]}"),
            ":6: instances[0].service.command.status: ",
        ),
        (
            text(service="{sytemd: x.service}"),
            ":5: instances[0].service.sytemd: is not a service manager; there are: command, systemd",
        ),
    ],
)
def test_errors_in_the_service_name_their_line(
    write: Write, capsys: pytest.CaptureFixture[str], content: str, expected: str
) -> None:
    path = write(content)
    assert cli.main(["--config", str(path), "config", "validate"]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"{path}{expected}")
    assert out.count("\n") == 1


def test_an_unknown_key_of_a_service_names_the_nearest_valid_one(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = "stop: [a], start: [a], status: [a], timeot: 3"
    path = write(text(service=f"{{command: {{{keys}}}}}"))
    assert cli.main(["--config", str(path), "config", "validate"]) == 1
    assert "timeot: unknown key; the nearest valid key is timeout" in capsys.readouterr().out


def test_validate_lists_every_error(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(text("colour: red", name="'?'", extra="urll: x"))
    assert cli.main(["--config", str(path), "config", "validate"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_config_that_others_can_write_is_refused(write: Write, mode: int) -> None:
    path = write(text())
    path.chmod(mode)
    with pytest.raises(OperatorError, match=f"{path} can be written by others.*chmod go-w"):
        load(path)


def test_a_config_in_a_directory_that_others_can_write_is_refused(
    write: Write, tmp_path: Path
) -> None:
    path = write(text())
    tmp_path.chmod(0o777)
    with pytest.raises(OperatorError, match="can be written by others"):
        load(path)
    # A sticky one, such as /tmp, lets others make files but not replace ours.
    tmp_path.chmod(0o1777)
    load(path)


def test_a_link_to_a_config_is_as_safe_as_what_it_leads_to(write: Write, tmp_path: Path) -> None:
    write(text())
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    safe, unsafe = tmp_path / "safe.yaml", tmp_path / "unsafe.yaml"
    safe.symlink_to("config.yaml")
    load(safe)
    with umask(0o077):
        (tmp_path / "open" / "c.yaml").write_text(text())
    unsafe.symlink_to("open/c.yaml")
    with pytest.raises(OperatorError, match="can be written by others"):
        load(unsafe)


def test_a_config_of_another_user_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(text())
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
        owner = 12345
    else:
        owner = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(OperatorError, match=rf"belongs to another user \(id {owner}\)"):
        load(path)


def test_a_missing_config_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"there is no config file .*config generate"):
        load(tmp_path / "none.yaml")


def test_a_directory_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"could not read .*: Is a directory"):
        load(tmp_path)


@pytest.mark.timeout(10)
def test_a_fifo_is_no_config_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yaml", 0o600)
    with pytest.raises(OperatorError, match=f"{tmp_path}/config.yaml is not a regular file"):
        load(tmp_path / "config.yaml")


def test_the_config_of_the_system_comes_before_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, user = tmp_path / "system.yaml", tmp_path / "vl-borg-hooks" / "config.yaml"
    monkeypatch.setattr(config, "SYSTEM_CONFIG", system)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config.default_path() == system
    user.parent.mkdir()
    user.touch()
    assert config.default_path() == user
    system.touch()
    assert config.default_path() == system


def test_instances_are_chosen_by_name_and_an_unknown_one_names_those_there_are(
    write: Write,
) -> None:
    loaded = load(write(text(second())))
    assert [instance.name for instance in loaded.instances([])] == ["default", "other"]
    assert [instance.name for instance in loaded.instances(["other", "other"])] == ["other"]
    with pytest.raises(OperatorError, match="has no instance 'third'; it has: default, other"):
        loaded.instances(["other", "third"])


@pytest.mark.parametrize(
    ("data_path", "destination", "directory"),
    [
        ("user@host:/srv/data/", "user@host", "/srv/data"),
        ("host:/srv", "host", "/srv"),
        ("a.b-c@logs-1.example.net:/srv/with space", "a.b-c@logs-1.example.net", "/srv/with space"),
        ("user@[2001:db8::1]:/srv", "user@[2001:db8::1]", "/srv"),
        ("[::1]:/srv", "[::1]", "/srv"),
        ("host:/srv/a:b@c", "host", "/srv/a:b@c"),
    ],
)
def test_a_remote_data_path_is_a_destination_and_a_directory(
    write: Write, data_path: str, destination: str, directory: str
) -> None:
    instance = load(write(text(data_path=f"'{data_path}'"))).config.instances[0]
    assert isinstance(instance.host, SshHost)
    assert instance.host.destination == destination
    assert instance.data_directory == directory


@pytest.mark.parametrize(
    "data_path",
    [
        "-oProxyCommand=touch /tmp/x:/srv",
        "-oProxyCommand=x:/srv",
        "-l@host:/srv",
        "user@-oProxyCommand=x:/srv",
        "a b@host:/srv",
        "user@ho st:/srv",
        "user@host:srv",
        "user@host:",
        "@host:/srv",
        "host::module/srv",
        "rsync://host/srv",
        "user@[-x y]:/srv",
        "user@host:/srv/../etc",
        "user@host\\n:/srv",
    ],
)
def test_a_hostile_remote_data_path_is_refused(write: Write, data_path: str) -> None:
    assert "data_path: must be" in errors_of(write(text(data_path=f'"{data_path}"')))[0]


@contextmanager
def written(content: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "config.yaml")
        path.write_bytes(content)
        path.chmod(0o600)
        yield path


def loads_or_refuses(content: bytes) -> None:
    """Load `content`; any exception but OperatorError gets out, and the message is one line."""
    with written(content) as path:
        try:
            load(path)
        except OperatorError as error:
            message = str(error)
        else:
            message = ""
    assert not message or message.isprintable()


SYNTAX = "-:[]{},&*!|>'\"%@`#?~<= \n\t.0123456789abcdefxyz\\/"
WORDS = st.sampled_from(
    [
        *[
            "instances",
            "name",
            "<<",
            "!!set",
            "!!omap",
            "!!binary",
            "!!timestamp",
            "!!float",
            "!!int",
            "!x",
            "&a",
            "*a",
            "---",
            "...",
        ],
        *[
            "|",
            ">",
            "{",
            "}",
            "[",
            "]",
            "=",
            "1:20:30",
            "0o7",
            ".inf",
            "2001-01-01",
            "2001-13-01",
            "'",
            '"',
            "\\ud800",
            "%YAML",
            "a",
            "?",
        ],
        *("%YAML 1.1\n", "? ", ": ", "- ", "\n", "  "),
    ]
)


@MANY
@given(
    st.text()
    | st.text(alphabet=SYNTAX)
    | st.lists(WORDS).map("".join)
    | st.lists(WORDS).map(" ".join)
)
def test_any_text_is_loaded_or_refused(content: str) -> None:
    loads_or_refuses(content.encode("utf-8", "surrogatepass"))


@MANY
@given(st.binary())
def test_any_bytes_are_loaded_or_refused(content: bytes) -> None:
    loads_or_refuses(content)


SCALARS: Any = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates()
PATHS = st.sampled_from(
    ["/a", "/a/b", "/b", "h:/a", "u@[::1]:/x", "/\ud800", "/a\0", "../x", "/\n"]
)
KEYS = st.sampled_from([*Instance.model_fields, "instances", "state_path", "on_extract", "owner"])
ANYTHING = st.recursive(
    SCALARS | PATHS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)
NEARLY = st.fixed_dictionaries(
    {
        "instances": st.lists(
            st.fixed_dictionaries(
                {
                    "name": st.sampled_from(["a", "b"]) | ANYTHING,
                    "data_path": PATHS | ANYTHING,
                    "staging_path": PATHS | ANYTHING,
                    "service": st.just({"systemd": "x"}) | ANYTHING,
                },
                optional={
                    "url": st.text() | st.sampled_from(["http://a", "unix:/a", "https://a:1/b"]),
                    "ssh_command": ANYTHING,
                    "restore": ANYTHING,
                    "max_downtime": st.floats() | st.integers(),
                },
            ),
            max_size=3,
        )
    },
    optional={"state_path": PATHS | ANYTHING},
)


@MANY
@given(ANYTHING | NEARLY)
def test_any_structure_is_loaded_or_refused(structure: object) -> None:
    from io import BytesIO

    stream = BytesIO()
    YAML(typ="safe", pure=True).dump(structure, stream)
    loads_or_refuses(stream.getvalue())


def test_a_path_that_no_file_can_have_is_refused(write: Write) -> None:
    expected = "4: instances[0].staging_path: must be a path of printable characters"
    assert errors_of(write(text(staging_path='"/\\ud800"'))) == [expected]
