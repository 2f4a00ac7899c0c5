"""README's install lines as they are written, each with a real borgmatic."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.borgmatic_site import NEWEST, BorgmaticSite
from tests.parts.healthchecks import Healthchecks
from tests.parts.locking_site import LockingSite
from tests.setup import environments
from vl_borg_hooks import __version__

ROOT = Path(__file__).parents[2]
WHEEL = "dist/*.whl"
# How README's lines begin, in their order.
MAKE = "pip wheel "
PIPX = "pipx inject "
UV = "uv tool install "
PIP = "/opt/borgmatic/bin/pip install "
OWN = ("python3 -m venv /opt/vl-borg-hooks", "/opt/vl-borg-hooks/bin/pip install ")
# The unit tests that use a dependency most, for its lowest version.
TESTS_OF = {
    "pluggy": ("manager", "run"),
    "psutil": ("borgmatic", "processes"),
    "pydantic": ("config", "records"),
    "ruamel-yaml": ("archiving", "config"),
    "sh": ("commands", "hosts"),
    "tqdm": ("progress",),
    "xxhash": ("publish", "staging"),
}


def lines() -> list[str]:
    """The commands of README's section, without their comments."""
    _, _, section = (ROOT / "README.md").read_text().partition("\n## Install\n")
    block = section.partition("```sh\n")[2].partition("```")[0]
    return [line.partition("#")[0].strip() for line in block.splitlines() if line]


class Machine:
    """A home and an /opt of its own, in which README's lines are run."""

    def __init__(self, root: Path, checkout: Path) -> None:
        self.root = root
        self.checkout = checkout
        self.programs = root / "home" / ".local" / "bin"
        self.programs.mkdir(parents=True)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PIPX_", "UV_", "XDG_", "VIRTUAL_ENV"))
        }
        self.environment = {
            **kept,
            "HOME": str(root / "home"),
            "PATH": f"{self.programs}:{environments.installers()}:{kept['PATH']}",
            # What has been downloaded is used again.
            "PIP_CACHE_DIR": self._of_pip("cache", "dir"),
            "PIPX_DEFAULT_PYTHON": sys.executable,
            "UV_PYTHON": sys.executable,
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_CACHE_DIR": str(environments.cache() / "uv"),
            **self._index_of_pip(),
        }

    def run(self, line: str) -> str:
        """Run a line as a shell does; what it prints if it succeeds."""
        done = subprocess.run(
            ["sh", "-c", re.sub("(^| )/opt/", rf"\1{self.root}/opt/", line)],
            cwd=self.checkout,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        return done.stdout

    def install(self, begins: tuple[str, ...], what: str = WHEEL) -> None:
        """Run the lines that begin so, with `what` instead of the wheel."""
        chosen = [line for line in lines() if line.startswith(begins)]
        assert len(chosen) == len(begins)
        for line in chosen:
            self.run(line.replace(WHEEL, what))

    @staticmethod
    def _of_pip(*arguments: str) -> str:
        argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    def _index_of_pip(self) -> dict[str, str]:
        """What makes uv use the index that pip uses."""
        found = {
            "UV_DEFAULT_INDEX": self._of_pip("config", "get", "global.index-url"),
            "SSL_CERT_FILE": os.environ.get("PIP_CERT", ""),
        }
        return {name: value for name, value in found.items() if value}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the wheel that README's first line makes."""
    made = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, made)
    shutil.copytree(ROOT / "vl_borg_hooks", made / "vl_borg_hooks")
    Machine(tmp_path_factory.mktemp("maker"), made).install((MAKE,))
    return made


@pytest.fixture
def machine(tmp_path: Path, checkout: Path) -> Machine:
    return Machine(tmp_path, checkout)


@pytest.fixture
def healthchecks() -> Iterator[Healthchecks]:
    with Healthchecks() as running:
        yield running


def backs_up(
    machine: Machine, healthchecks: Healthchecks, version: str, *, borgmatic: Path, ours: Path
) -> BorgmaticSite:
    """AssertionError if `borgmatic create` with our include does not archive a staging copy.

    Returns the site, whose repository has one archive.
    """
    assert machine.run(f"{ours} --version").strip() == __version__
    site = BorgmaticSite(
        machine.root / "place", version, healthchecks, borgmatic=borgmatic, ours=ours
    )
    with site.locking.server:
        site.locking.server.start()
        site.borgmatic("create")
        (archive,) = site.archives()
    listed = site.run("borg", "list", "--short", f"{site.repository}::{archive}").stdout
    assert str(site.locking.staging.manifest_path).lstrip("/") in listed.splitlines()
    return site


def test_every_line_is_tried() -> None:
    begins = (MAKE, PIPX, UV, PIP, *OWN)
    assert [begin for line in lines() for begin in begins if line.startswith(begin)] == [*begins]
    assert len(lines()) == len(begins)


@pytest.mark.parametrize("what", [WHEEL, "vl-borg-hooks"])
def test_beside_a_borgmatic_of_pipx(
    machine: Machine, healthchecks: Healthchecks, what: str
) -> None:
    machine.run("pipx install borgmatic")
    published(machine)
    machine.install((PIPX,), what)
    programs = machine.programs
    backs_up(
        *(machine, healthchecks, NEWEST),
        borgmatic=programs / "borgmatic",
        ours=programs / "vl-borg-hooks",
    )


@pytest.mark.parametrize("what", [WHEEL, "vl-borg-hooks"])
def test_beside_a_borgmatic_of_uv(machine: Machine, healthchecks: Healthchecks, what: str) -> None:
    machine.run("uv tool install borgmatic")
    published(machine)
    machine.install((UV,), what)
    programs = machine.programs
    backs_up(
        *(machine, healthchecks, NEWEST),
        borgmatic=programs / "borgmatic",
        ours=programs / "vl-borg-hooks",
    )


@pytest.mark.parametrize(
    ("version", "what"), [("1.7.7", WHEEL), ("1.8.4", WHEEL), (NEWEST, "vl-borg-hooks")]
)
def test_beside_a_borgmatic_of_pip(
    machine: Machine, healthchecks: Healthchecks, version: str, what: str
) -> None:
    borgmatic = "borgmatic" if version == NEWEST else f"borgmatic=={version}"
    machine.run(f"{sys.executable} -m venv /opt/borgmatic")
    machine.run(f"/opt/borgmatic/bin/pip install '{borgmatic}' '{environments.SETUPTOOLS}'")
    published(machine)
    machine.install((PIP,), what)
    assert "No broken requirements" in machine.run("/opt/borgmatic/bin/pip check")
    programs = machine.root / "opt/borgmatic/bin"
    backs_up(
        *(machine, healthchecks, version),
        borgmatic=programs / "borgmatic",
        ours=programs / "vl-borg-hooks",
    )


@pytest.mark.parametrize("what", [WHEEL, "vl-borg-hooks"])
def test_in_an_environment_of_its_own(
    machine: Machine, healthchecks: Healthchecks, what: str
) -> None:
    """For the package that Debian has, with Debian's Python and Borg; to the restore."""
    try:
        borgmatic = environments.debians_borgmatic()
    except environments.Unavailable as reason:
        pytest.skip(f"no borgmatic of Debian's: {reason}")
    published(machine)
    machine.install(OWN, what)
    ours = machine.root / "opt/vl-borg-hooks/bin/vl-borg-hooks"
    version = machine.run(f"{borgmatic} --version").strip()
    site = backs_up(machine, healthchecks, version, borgmatic=borgmatic, ours=ours)
    archived = site.locking.served()
    lost = site.locking.data / "partitions" / "20261121"
    shutil.rmtree(lost)
    extracted = site.root / "extracted"
    extracted.mkdir()
    site.borgmatic("extract", "--archive", "latest", "--destination", str(extracted))
    copy = extracted / str(site.locking.staging.path).lstrip("/")
    with site.locking.server:
        site.locking.server.start()
        site.run(
            str(ours), "--config", str(site.locking.config), "restore", "--from", str(copy), "--yes"
        )
        assert site.locking.server.running
    assert site.locking.served() == archived


def test_each_dependency_has_tests_that_run_with_its_lowest_version() -> None:
    assert TESTS_OF.keys() == environments.lowest().keys()


def test_the_lowest_versions_of_all_dependencies_do(checkout: Path, tmp_path: Path) -> None:
    floors = environments.floors()
    (wheel,) = checkout.glob(WHEEL)
    # On top of the environment that all checkouts share, one with our wheel.
    own = tmp_path / "own"
    python = str(own / "bin" / "python")
    finished(str(floors), "-m", "venv", "--without-pip", str(own))
    (shared,) = floors.parents[1].glob("lib/python3*/site-packages")
    (packages,) = own.glob("lib/python3*/site-packages")
    (packages / "floors.pth").write_text(f"{shared}\n")
    pip = (str(floors), "-m", "pip", "--disable-pip-version-check", "--python", python)
    finished(*pip, "install", "--quiet", "--no-deps", str(wheel))
    site = LockingSite(tmp_path / "site")
    ours = (str(own / "bin" / "vl-borg-hooks"), "--config", str(site.config))
    with site.server:
        site.server.start()
        assert finished(*ours, "--version").strip() == __version__
        finished(*ours, "config", "validate")
        finished(*ours, "before-create", "--dry-run")
        assert not site.published
        finished(*ours, "before-create")
        assert site.published
    files = sorted({f"tests/unit/test_{name}.py" for names in TESTS_OF.values() for name in names})
    tests = finished(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files)
    assert re.search(r"^\d+ passed", tests, re.MULTILINE), tests


def finished(*argv: str) -> str:
    """What it prints; AssertionError with all it said if it fails."""
    done = subprocess.run(
        argv,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}"
    return done.stdout


def published(machine: Machine) -> None:
    """Have pip and uv find our wheel by its name, as they will once it is published."""
    found = f"{machine.checkout}/dist"
    machine.environment["PIP_FIND_LINKS"] = (
        f"{found} {os.environ.get('PIP_FIND_LINKS', '')}".strip()
    )
    machine.environment["UV_FIND_LINKS"] = found
