"""The repository itself: its style, its types, and what is built from it."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from vl_borg_hooks import __version__

ROOT = Path(__file__).parents[2]
CONTENTS = {"py.typed", "config.example.yaml", "cli.py", "services/systemd.py"}


def run(*arguments: str | Path) -> str:
    """Run a module of this Python in the repository; its output if it succeeds."""
    completed = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout
    return completed.stdout


@pytest.mark.parametrize("check", ["ruff-check", "ruff-format", "mypy", "imports"])
def test_nothing_is_to_be_complained_about(check: str) -> None:
    """The checks that `.pre-commit-config.yaml` lists."""
    said = run("-m", "pre_commit", "run", "--all-files", "--color=never", check)
    assert "Passed" in said


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist and the wheel that was built from it."""
    directory = tmp_path_factory.mktemp("built")
    # hatchling is here already: no network is needed.
    run("-m", "build", "--no-isolation", "--outdir", directory)
    return directory


def test_the_wheel_holds_the_package_and_its_data(built: Path) -> None:
    with zipfile.ZipFile(built / f"vl_borg_hooks-{__version__}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
    assert {f"vl_borg_hooks/{name}" for name in CONTENTS} <= names
    assert not {name for name in names if name.startswith(("tests", "config-examples"))}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_holds_what_the_tests_need(built: Path) -> None:
    prefix = f"vl_borg_hooks-{__version__}"
    with tarfile.open(built / f"{prefix}.tar.gz") as sdist:
        names = set(sdist.getnames())
    assert {f"{prefix}/vl_borg_hooks/{name}" for name in CONTENTS} <= names
    assert {f"{prefix}/{name}" for name in ("LICENSE", "README.md", "Makefile")} <= names
    assert f"{prefix}/tests/integration/{Path(__file__).name}" in names
    assert not {name for name in names if "__pycache__" in name}


def test_the_wheel_installs_and_brings_the_command(built: Path, tmp_path: Path) -> None:
    # Its dependencies are those of this Python, which it can see.
    venv.create(tmp_path, with_pip=False)
    run(
        *("-m", "pip", "--disable-pip-version-check", "--python", tmp_path / "bin/python"),
        *("install", "--quiet", "--no-deps", "--no-index"),
        next(built.glob("*.whl")),
    )
    command = tmp_path / "bin/vl-borg-hooks"
    printed = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == __version__
    where = "import vl_borg_hooks; print(vl_borg_hooks.__file__)"
    printed = subprocess.run(
        [tmp_path / "bin/python", "-I", "-c", where], capture_output=True, text=True, check=True
    )
    assert printed.stdout.startswith(str(tmp_path))
