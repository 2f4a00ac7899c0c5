"""Virtual environments of other programs that the tests run, kept in a cache for all checkouts.

`python tests/setup/environments.py` makes those that are missing, from the index that pip uses.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Debian 12's, the last of each series before 2, and the last of 2.0. The newest is in our own.
BORGMATICS = ("1.7.7", "1.8.14", "1.9.14", "2.0.13")
# 1.7 and 1.8 import pkg_resources, which newer ones lack; from Python 3.12 on, no venv has it.
SETUPTOOLS = "setuptools<81"
# With what people install programs from the index; pip is in every environment.
INSTALLERS = ("pipx>=1.7", "uv>=0.8.8")
MADE_OF = "made-of"


def cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "vl-borg-hooks"


def environment(name: str, requirements: Sequence[str]) -> Path:
    """The environment `name` with `requirements`; it is made if it is missing or has others."""
    path = cache() / name
    cache().mkdir(parents=True, exist_ok=True)
    made_of = f"{sys.version}\n{shlex.join(requirements)}\n"
    # Several checkouts can be set up at once.
    with open(cache() / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is(path, made_of):
            _run(sys.executable, "-m", "venv", "--clear", str(path))
            pip = (str(path / "bin/python"), "-m", "pip", "--disable-pip-version-check")
            _run(*pip, "install", "--quiet", *requirements)
            (path / MADE_OF).write_text(made_of)
    return path


def borgmatic(version: str) -> Path:
    """The script of borgmatic `version`."""
    made = environment(f"borgmatic-{version}", [f"borgmatic=={version}", SETUPTOOLS])
    return made / "bin" / "borgmatic"


def installers() -> Path:
    """The directory with pipx and uv."""
    return environment("installers", INSTALLERS) / "bin"


def _is(path: Path, made_of: str) -> bool:
    """Whether it is there and was made of that, by a Python that is still there."""
    try:
        return (path / MADE_OF).read_text() == made_of and (path / "bin/python").exists()
    except FileNotFoundError:
        return False


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def main() -> None:
    installers()
    for version in BORGMATICS:
        borgmatic(version)


if __name__ == "__main__":
    main()
