"""Other programs that the tests run, in a cache for all checkouts: virtual environments, and Debian's.

`python tests/setup/environments.py` makes those that are missing, from the index that pip uses, and
from Debian's packages.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import requires
from pathlib import Path

# Debian 12's, the last of each series before 2, and the last of 2.0. The newest is in our own.
BORGMATICS = ("1.7.7", "1.8.14", "1.9.14", "2.0.13")
# 1.7 and 1.8 import pkg_resources, which newer ones lack; from Python 3.12 on, no venv has it.
SETUPTOOLS = "setuptools<81"
# With what people install programs from the index; pip is in every environment.
INSTALLERS = ("pipx>=1.7", "uv>=0.8.8")
MADE_OF = "made-of"
DISTRIBUTION = "vl-borg-hooks"
# Python 3.10, as pyproject.toml has it.
OLDEST_MINOR = 10
DEBIANS = "borgmatic"
# A program of a package that is unpacked and not installed. What it runs gets nothing of this: with
# PYTHONPATH, our own Python would find Debian's packages too.
LAUNCHER = """\
#!/usr/bin/python3
import runpy, sys
sys.path[0] = "{root}/usr/lib/python3/dist-packages"
runpy.run_path("{root}/usr/bin/{name}", run_name="__main__")
"""


class Unavailable(Exception):
    """Why a program can't be had on this machine, in one line."""


def cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "vl-borg-hooks"


def environment(name: str, requirements: Sequence[str], python: str = sys.executable) -> Path:
    """The environment `name` with `requirements`; it is made if it is missing or has others."""

    def make(path: Path) -> None:
        _run(python, "-m", "venv", "--clear", str(path))
        pip = (str(path / "bin/python"), "-m", "pip", "--disable-pip-version-check")
        _run(*pip, "install", "--quiet", *requirements)

    version = _output(python, "-c", "import sys; print(sys.version)")
    made_of = f"{version}{shlex.join(requirements)}\n"
    return _made(name, made_of, "bin/python", make)


def _made(name: str, made_of: str, program: str, make: Callable[[Path], None]) -> Path:
    """The directory `name` in the cache; made anew if it is not of this, or its program is gone."""
    path = cache() / name
    cache().mkdir(parents=True, exist_ok=True)
    # Several checkouts can be set up at once.
    with open(cache() / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is(path, made_of, program):
            make(path)
            (path / MADE_OF).write_text(made_of)
    return path


def borgmatic(version: str) -> Path:
    """The script of borgmatic `version`."""
    made = environment(f"borgmatic-{version}", [f"borgmatic=={version}", SETUPTOOLS])
    return made / "bin" / "borgmatic"


def oldest_python() -> str:
    """The oldest Python that we run on, of those that this machine has."""
    for minor in range(OLDEST_MINOR, sys.version_info.minor):
        name = f"python3.{minor}"
        # pyenv's name for it does not work unless that version is switched on.
        pyenvs = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/{name}"))
        for python in (shutil.which(name), *map(str, pyenvs)):
            with contextlib.suppress(subprocess.CalledProcessError):
                if python and _output(python, "-c", "import ensurepip, venv") == "":
                    return python
    return sys.executable


def lowest() -> dict[str, str]:
    """The lowest version that we ask for, of each of our dependencies."""
    asked = [each for each in requires(DISTRIBUTION) or [] if "extra ==" not in each]
    return dict(each.split(">=") for each in asked)


def floors() -> Path:
    """The Python of an environment with the lowest version of each of our dependencies."""
    pinned = [f"{name}=={version}" for name, version in sorted(lowest().items())]
    tools = ("pytest", "pytest-timeout", "hypothesis")
    return environment("floors", [*pinned, *tools], oldest_python()) / "bin" / "python"


def installers() -> Path:
    """The directory with pipx and uv."""
    return environment("installers", INSTALLERS) / "bin"


def debians_borgmatic() -> Path:
    """The script of the borgmatic that this machine's Debian has as a package, beside its Borg.

    It runs on Debian's Python and with Debian's packages only. They are unpacked, and not installed:
    the machine stays as it is. Unavailable if there is no such Debian.
    """
    for needed in ("apt-get", "dpkg-deb", "/usr/bin/python3"):
        if shutil.which(needed) is None:
            raise Unavailable(f"{needed} is not on this machine")
    # As if nothing was installed: with all that it depends on.
    resolve = (
        *("apt-get", "--simulate", "--option=Dir::State::status=/dev/null"),
        *("--no-install-recommends", "install", DEBIANS),
    )
    try:
        packages = _output(*resolve)
    except subprocess.CalledProcessError:
        # No list of packages yet. Only root can have it.
        try:
            _run("apt-get", "--quiet", "update")
            packages = _output(*resolve)
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"apt-get has no package {DEBIANS}: {error}") from error
    # Each line names a package and its version. What is no program or module of Python's is here.
    found = re.findall(r"^Inst ((?:borg|python3-(?!minimal)).*)$", packages, re.MULTILINE)
    wanted = [line.split()[0] for line in found]

    def make(path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)
        (path / "bin").mkdir(parents=True)
        with tempfile.TemporaryDirectory() as directory:
            subprocess.run(
                ["apt-get", "--quiet", "download", *wanted],
                cwd=directory,
                check=True,
                capture_output=True,
            )
            for package in Path(directory).iterdir():
                _run("dpkg-deb", "--extract", str(package), str(path))
        for name in ("borgmatic", "borg"):
            program = path / "bin" / name
            program.write_text(LAUNCHER.format(root=path, name=name))
            program.chmod(0o755)

    made_of = "\n".join(sorted(found))
    return _made("debians-borgmatic", made_of, "bin/borgmatic", make) / "bin" / "borgmatic"


def _is(path: Path, made_of: str, program: str) -> bool:
    """Whether it is there and was made of that, by a Python that is still there."""
    try:
        return (path / MADE_OF).read_text() == made_of and (path / program).exists()
    except FileNotFoundError:
        return False


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _output(*argv: str) -> str:
    done = subprocess.run(
        argv, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    return done.stdout


def main() -> None:
    installers()
    for version in BORGMATICS:
        borgmatic(version)
    floors()
    # The test that needs it says why it is skipped.
    with contextlib.suppress(Unavailable):
        debians_borgmatic()


if __name__ == "__main__":
    main()
