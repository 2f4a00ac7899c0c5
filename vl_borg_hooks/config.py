"""The config file: its models, its defaults, and errors that name file, line and nearest key."""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system import addresses, invalid, secrets, yaml
from vl_borg_hooks.system.hosts import Host
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.system.ssh import SshHost
from vl_borg_hooks.system.yaml import Location

SYSTEM_CONFIG = Path("/etc/vl-borg-hooks/config.yaml")
# A config of dozens of instances is a tenth of it. To parse as much takes seconds.
LARGEST_CONFIG = 1 << 18
LONGEST_SECONDS = 24 * 3600

# `user@host:/path` as rsync and ssh take it; with a leading dash it would be an option.
_REMOTE = re.compile(
    r"(?P<host>(?:[A-Za-z0-9_][^\s@:/]*@)?(?:[A-Za-z0-9_][^\s@:/]*|\[[^\]\s]+\])):(?P<path>/(?!/).*)"
)

Options = TypeVar("Options", bound=BaseModel)


class ConfigError(OperatorError):
    """One or more errors in a config file, each with its line."""

    def __init__(self, errors: Sequence[str]) -> None:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(errors[0] + more, hint="run: vl-borg-hooks config validate")
        self.errors = errors


def _absolute(path: str) -> str:
    """Return `path` without trailing slashes and dots; raises ValueError."""
    if not path.startswith("/"):
        raise ValueError("must be an absolute path")
    if ".." in path.split("/"):
        raise ValueError("must be a path without '..' in it")
    if not path.isprintable():
        raise ValueError("must be a path of printable characters")
    normal = os.path.normpath(path)
    return normal[1:] if normal.startswith("//") else normal


def _data_path(value: str) -> str:
    remote = _REMOTE.fullmatch(value)
    if remote:
        return f"{remote['host']}:{_absolute(remote['path'])}"
    if not value.startswith("/"):
        raise ValueError("must be an absolute path or user@host:/path")
    return _absolute(value)


def _url(value: str) -> str:
    if re.match(r"https?://[^/]*@", value):
        raise ValueError("must have no password in it: see password_file")
    addresses.parse(value)
    return value.rstrip("/")


def _matching(pattern: str, message: str) -> AfterValidator:
    """Return what refuses text that does not match `pattern`, with the `message`."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(message)
        return value

    return AfterValidator(check)


def _between(least: float, most: float, unit: str) -> BeforeValidator:
    """Return what refuses all but a number from `least` to `most`."""

    def check(value: object) -> float:
        # Whole numbers of any size, infinity and no number at all can be written in YAML.
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not least <= value <= most
        ):
            raise ValueError(f"must be a number of {unit} from {least:g} to {most:g}")
        return float(value)

    return BeforeValidator(check)


def _argv(value: object) -> object:
    if not (
        isinstance(value, list | tuple) and value and all(isinstance(word, str) for word in value)
    ):
        raise ValueError("must be a list of words, such as [rc-service, victorialogs, stop]")
    if not all(value):
        raise ValueError("must be a list of words, none of them empty")
    return tuple(value)


def _rate(value: str) -> str:
    """Return `value` if it is what rsync takes for --bwlimit: a number of KiB, or with a unit."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([kKmMgG]?)", value)
    size = float(found[1]) * 1024 ** "kmg".index(found[2].lower() or "k") if found else 0
    # Between a thousandth and a thousand times of what disks and networks do.
    if not 1 <= size <= 1 << 30:
        raise ValueError("must be a rate from 1k to 1024g in a second, such as 50m, in quotes")
    return value


# An argument list in the config; YAML has lists and no tuples.
Argv = Annotated[tuple[str, ...], BeforeValidator(_argv)]
Seconds = Annotated[float, _between(0.01, LONGEST_SECONDS, "seconds")]
Days = Annotated[float, _between(0.01, 3650, "days")]
_Variable = Annotated[
    str, _matching(r"[A-Za-z_][A-Za-z0-9_]*", "must be the name of a variable, without the $")
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class HttpAuth(_Model):
    """What VictoriaLogs, or a proxy before it, asks for: a name with a password, or a bearer token."""

    username: str | None = None
    password_file: Annotated[str, AfterValidator(_absolute)] | None = None
    password_environment: _Variable | None = None
    bearer_token_file: Annotated[str, AfterValidator(_absolute)] | None = None
    bearer_token_environment: _Variable | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> HttpAuth:
        given = {name for name in type(self).model_fields if getattr(self, name) is not None}
        if given not in (
            {"username", "password_file"},
            {"username", "password_environment"},
            {"bearer_token_file"},
            {"bearer_token_environment"},
        ):
            raise ValueError(
                "must have either username with one of password_file and password_environment, or "
                "one of bearer_token_file and bearer_token_environment"
            )
        return self

    def header(self) -> str:
        """Return the content of the header `Authorization`; raises OperatorError if it can't be read."""
        if self.username is None:
            token = _secret(self.bearer_token_file, self.bearer_token_environment)
            # RFC 6750 has even fewer characters. A blank would end it, and others can't be sent.
            if not re.fullmatch(r"[!-~]+", token):
                where = self.bearer_token_file or f"${self.bearer_token_environment}"
                raise OperatorError(f"{where} is no bearer token: it has more than visible ASCII")
            return f"Bearer {token}"
        pair = f"{self.username}:{_secret(self.password_file, self.password_environment)}"
        return f"Basic {base64.b64encode(pair.encode()).decode('ascii')}"


class Tls(_Model):
    """How the certificate of an https:// url is checked."""

    ca_file: Annotated[str, AfterValidator(_absolute)]


class AuthKey(_Model):
    """A key that VictoriaLogs asks for, from a file or the environment."""

    file: Annotated[str, AfterValidator(_absolute)] | None = None
    environment: _Variable | None = None

    @model_validator(mode="after")
    def _one_source(self) -> AuthKey:
        if (self.file is None) == (self.environment is None):
            raise ValueError("must have either file or environment")
        return self


class AuthKeys(_Model):
    """The keys of VictoriaLogs' flags -metricsAuthKey, -forceFlushAuthKey, -partitionManageAuthKey."""

    metrics: AuthKey | None = None
    force_flush: AuthKey | None = None
    partition_manage: AuthKey | None = None

    def read(self) -> dict[str, str]:
        """Return the keys that are set, by their option; raises OperatorError."""
        keys = {
            "metrics": self.metrics,
            "force_flush": self.force_flush,
            "partition_manage": self.partition_manage,
        }
        return {
            option: _secret(key.file, key.environment)
            for option, key in keys.items()
            if key is not None
        }


def _secret(file: str | None, environment: str | None) -> str:
    """Return what is in a variable of the `environment`, else in `file`; raises OperatorError."""
    return secrets.from_environment(environment) if environment else secrets.read(str(file))


class WarmOptions(_Model):
    """How the warm passes are done."""

    bwlimit: Annotated[str, AfterValidator(_rate)] | None = None


class RestoreOptions(_Model):
    """How a restore of one instance is done."""

    on_extract: bool = False
    owner: Annotated[str, _matching(r"[^:\s]+:[^:\s]+", "must be USER:GROUP")] | None = None


class Instance(_Model):
    """One VictoriaLogs process with one data directory. Times are in seconds."""

    name: Annotated[
        str,
        _matching(
            r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}",
            "must be a name of at most 64 letters, digits and _.-, a letter or digit first",
        ),
    ]
    data_path: Annotated[str, AfterValidator(_data_path)]
    staging_path: Annotated[str, AfterValidator(_absolute)]
    url: Annotated[str, AfterValidator(_url)] | None = None
    http_auth: HttpAuth | None = None
    auth_keys: AuthKeys = AuthKeys()
    tls: Tls | None = None
    url_over_ssh: bool = False
    consistency: Literal["stop", "snapshot", "auto"] = "stop"
    service: dict[str, Any] = {}
    ssh_command: Argv = ("ssh",)
    stop_timeout: Seconds = 60
    start_timeout: Seconds = 120
    max_downtime: Seconds = 300
    final_pass: Literal["auto", "frozen", "stopped"] = "auto"
    detached_days: Literal["refuse", "detach"] = "refuse"
    reread_days: Days = 30
    warm: WarmOptions = WarmOptions()
    restore: RestoreOptions = RestoreOptions()

    @property
    def host(self) -> Host:
        """The machine that the data path is on."""
        remote = _REMOTE.fullmatch(self.data_path)
        return SshHost(remote["host"], self.ssh_command) if remote else LocalHost()

    @property
    def reread_seconds(self) -> float:
        """Within which time all of the staging copy is read again, in seconds."""
        return self.reread_days * 24 * 3600

    @property
    def data_directory(self) -> str:
        """The data path as a path on its host."""
        remote = _REMOTE.fullmatch(self.data_path)
        return remote["path"] if remote else self.data_path

    @property
    def longest_recovery(self) -> float:
        """How long one try to bring VictoriaLogs back may take: a stop, a start, and our own work."""
        return self.stop_timeout + self.start_timeout + 30


class Config(_Model):
    """The whole file."""

    instances: list[Instance] = Field(min_length=1)
    plugins: dict[str, Any] = {}
    when_busy: Literal["fail", "skip"] = "fail"
    state_path: Annotated[str, AfterValidator(_absolute)] | None = None

    @property
    def state_directory(self) -> Path:
        """Where leases, locks and the journal of the stop window are kept; survives a reboot."""
        if self.state_path:
            return Path(self.state_path)
        if os.geteuid() == 0:
            return Path("/var/lib/vl-borg-hooks/.state")
        home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        return Path(home) / "vl-borg-hooks"


@dataclass(frozen=True)
class LoadedConfig:
    """A config with the file it came from and the line of each of its keys."""

    path: Path
    config: Config
    lines: Mapping[Location, int]

    def error(self, location: Location, message: str) -> ConfigError:
        """Return the error `message` about what is at `location` in the file."""
        return self.errors([(location, message)])

    def errors(self, problems: Iterable[tuple[Location, str]]) -> ConfigError:
        """Return the error of all `problems`: what is wrong with what is where in the file."""
        return ConfigError([describe(self.path, self.lines, *problem) for problem in problems])

    def instances(self, names: Iterable[str]) -> list[Instance]:
        """Return the instances called `names`, or all without names; raises OperatorError."""
        known = {instance.name: instance for instance in self.config.instances}
        wanted = list(dict.fromkeys(names)) or list(known)
        for name in wanted:
            if name not in known:
                raise OperatorError(
                    f"{self.path} has no instance {name!r}", hint=f"it has: {', '.join(known)}"
                )
        return [known[name] for name in wanted]


def default_path() -> Path:
    """Return the path of the config if there is no `--config`."""
    if SYSTEM_CONFIG.exists():
        return SYSTEM_CONFIG
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    user_config = Path(home) / "vl-borg-hooks" / "config.yaml"
    return user_config if user_config.exists() else SYSTEM_CONFIG


def load(path: Path) -> LoadedConfig:
    """Read and validate the config file `path`; raises OperatorError, mostly ConfigError."""
    try:
        data, lines = yaml.parse(_read(path))
    except yaml.YamlError as error:
        line = f":{error.line}" if error.line else ""
        raise ConfigError([f"{path}{line}: is not valid YAML: {error}"]) from None
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(
            [describe(path, lines, *problem) for problem in invalid.problems(error, Config)]
        ) from None
    problems = [
        describe(path, lines, location, message) for location, message in _conflicts(config)
    ]
    if problems:
        raise ConfigError(problems)
    return LoadedConfig(path, config, lines)


def describe(path: Path, lines: Mapping[Location, int], location: Location, message: str) -> str:
    """Return `FILE:LINE: key: message`, with the line of the nearest key that has one."""
    nearest = location
    while nearest and nearest not in lines:
        nearest = nearest[:-1]
    line = f":{lines[nearest]}" if nearest in lines else ""
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return f"{path}{line}: {key.lstrip('.')}: {message}" if key else f"{path}{line}: {message}"


def _read(path: Path) -> str:
    """Return the text of the config; raises OperatorError if others could have written it."""
    try:
        with open(path, encoding="utf-8", opener=_not_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OperatorError(f"{path} is not a regular file")
            _refuse_others(path, os.fstat(file.fileno()))
            _refuse_others(path.resolve().parent, path.resolve().parent.stat())
            text = file.read(LARGEST_CONFIG + 1)
    except FileNotFoundError:
        raise OperatorError(
            f"there is no config file {path}",
            hint=f"run: vl-borg-hooks config generate --destination {path}",
        ) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not UTF-8 text"]) from None
    except OSError as error:
        raise OperatorError(f"could not read {path}: {error.strerror}") from None
    if len(text) > LARGEST_CONFIG:
        raise ConfigError([f"{path}: is larger than {LARGEST_CONFIG} bytes"])
    return text


def _not_waiting(path: str, flags: int) -> int:
    """Open for `open(..., opener=_not_waiting)`: does not wait for the writer of a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _refuse_others(path: Path, status: os.stat_result) -> None:
    """Raise OperatorError if users other than root and us can write `path`: we run what it names."""
    sticky_directory = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if status.st_uid not in (0, os.geteuid()):
        raise OperatorError(
            f"{path} belongs to another user (id {status.st_uid}), who could change what we run",
            hint=f"run: chown root {path}",
        )
    if status.st_mode & 0o022 and not sticky_directory:
        raise OperatorError(
            f"{path} can be written by others, who could change what we run",
            hint=f"run: chmod go-w {path}",
        )


class OptionsError(Exception):
    """The options of a service manager or plugin are wrong.

    `problems` are where below its name, and what.
    """

    def __init__(self, problems: Sequence[tuple[Location, str]]) -> None:
        super().__init__("; ".join(message for _, message in problems))
        self.problems = problems

    def below(self, location: Location) -> list[tuple[Location, str]]:
        """Return the problems of options that are at `location` of the config."""
        return [((*location, *where), message) for where, message in self.problems]


def options(model: type[Options], values: object) -> Options:
    """Return `values` of the config as a `model`; raises OptionsError."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise OptionsError(list(invalid.problems(error, model))) from None


def _conflicts(config: Config) -> Iterable[tuple[Location, str]]:
    """Yield the conflicts between parts of a config that are valid by themselves."""
    names: set[str] = set()
    taken: list[tuple[str, str]] = [(str(config.state_directory), "the state path")]
    for index, instance in enumerate(config.instances):
        here: Location = ("instances", index)
        if instance.name in names:
            yield (*here, "name"), f"there are two instances called {instance.name}"
        names.add(instance.name)
        if instance.consistency != "stop" and not instance.url:
            yield (*here, "consistency"), f"{instance.consistency} needs url:, to ask VictoriaLogs"
        if len(instance.service) != 1 and (instance.service or instance.consistency != "snapshot"):
            yield (
                (*here, "service"),
                "must name one service manager, such as systemd: victorialogs.service",
            )
        for key, message in _conflicts_of_url(instance):
            yield (*here, key), message
        paths = [("staging_path", instance.staging_path)]
        if instance.host.local_path(instance.data_directory):
            paths.append(("data_path", instance.data_path))
        for key, path in paths:
            for other, whose in taken:
                if _overlap(path, other):
                    yield (*here, key), f"{path} overlaps {whose} {other}"
            taken.append((path, f"the {key} of {instance.name}"))


def _conflicts_of_url(instance: Instance) -> Iterable[tuple[str, str]]:
    """Yield the options that make no sense with the `url` of an instance, and why not."""
    url = instance.url or ""
    if instance.tls and not url.startswith("https://"):
        yield "tls", "is only for a url that begins with https://"
    if instance.url_over_ssh and not _REMOTE.fullmatch(instance.data_path):
        yield "url_over_ssh", "is only for a data_path on another machine, user@host:/path"
    elif instance.url_over_ssh and not url:
        yield "url_over_ssh", "needs a url: the address of VictoriaLogs as seen from that machine"


def _overlap(one: str, other: str) -> bool:
    """Say whether one path is the other or lies in it; links are resolved as far as they exist."""
    first, second = (Path(os.path.realpath(path)) for path in (one, other))
    return first == second or first in second.parents or second in first.parents
