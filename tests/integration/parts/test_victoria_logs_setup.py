"""Where the VictoriaLogs of the tests is looked for."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.setup import victoria_logs
from tests.setup.victoria_logs import (
    PINNED_VERSION,
    RELEASED_VERSION,
    STAND_IN,
    Unusable,
    find,
    version_of,
)

ROOT = Path(__file__).resolve().parents[3]
REAL = "victoria-logs-20260624-162912-tags-v1.51.1-0-g7c0626e0b"


def program(path: Path, says: str, status: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # On stderr, as Go programs print it.
    path.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit {status}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with none: PATH has a directory of the test's own and what `#!` lines need."""
    monkeypatch.delenv("VICTORIA_LOGS", raising=False)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "python3").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{tmp_path / 'tools'}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def cached(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "vl-borg-hooks" / f"victoria-logs-{PINNED_VERSION}"


def test_the_environment_comes_first_then_path_then_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_cache = program(cached(tmp_path), REAL)
    assert find().path == in_cache
    on_path = program(tmp_path / "bin" / "victoria-logs-prod", REAL)
    assert find().path == on_path
    named = program(tmp_path / "mine", "victoria-logs-20260101-tags-v1.44.0-0-gabc")
    monkeypatch.setenv("VICTORIA_LOGS", str(named))
    found = find()
    assert (found.path, found.real, found.version) == (named, True, "v1.44.0")
    assert found.reasons == []


# The last one is what a build without -ldflags says.
NOT_IT = [("victoria-metrics-v1", 0), (REAL, 1), ("", 0)]


@pytest.mark.parametrize(("says", "status"), NOT_IT)
def test_on_path_what_does_not_prove_to_be_it_is_passed_over(
    tmp_path: Path, says: str, status: int
) -> None:
    program(tmp_path / "bin" / "victoria-logs", says, status)
    in_cache = program(cached(tmp_path), REAL)
    found = find()
    assert found.path == in_cache
    assert "does not say that it is victoria-logs" in found.reasons[0]


@pytest.mark.parametrize(("says", "status"), NOT_IT)
def test_named_in_the_environment_what_does_not_prove_to_be_it_is_an_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    says: str,
    status: int,
) -> None:
    program(tmp_path / "bin" / "victoria-logs", REAL)
    named = program(tmp_path / "mine", says, status)
    monkeypatch.setenv("VICTORIA_LOGS", str(named))
    with pytest.raises(Unusable, match=f"VICTORIA_LOGS is set, but {named} -version does not say"):
        find()
    assert victoria_logs.main() == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert str(named) in output.err


def test_a_test_run_with_an_unusable_environment_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VICTORIA_LOGS", str(tmp_path / "nothing"))
    argv = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/unit/test_signals.py"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"VICTORIA_LOGS is set, but {tmp_path / 'nothing'} does not run" in done.stderr


PROVES = """\
import pytest

@pytest.mark.real_victorialogs
def test_only_the_real_one_can_prove_this():
    pass

def test_other():
    pass
"""


@pytest.mark.parametrize("arguments", [(), ("--no-skips",)])
def test_a_run_on_the_stand_in_says_so_at_its_end_and_skips_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("VICTORIA_LOGS", str(STAND_IN))
    (tmp_path / "test_sample.py").write_text(PROVES)
    argv = [sys.executable, "-m", "pytest", "-rs", *arguments, "-c", str(ROOT / "pyproject.toml")]
    argv += ["-p", "tests.conftest", f"--rootdir={tmp_path}", str(tmp_path / "test_sample.py")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == (1 if arguments else 0), done.stdout + done.stderr
    assert "1 passed, 1 skipped" in done.stdout
    assert "test_only_the_real_one_can_prove_this - Skipped: no real VictoriaLogs" in done.stdout
    # The last thing on the screen but pytest's own count.
    assert "NO REAL VictoriaLogs: the tests run against a stand-in" in done.stdout[-1500:]


def test_another_version_in_the_cache_is_passed_over(tmp_path: Path) -> None:
    program(cached(tmp_path), "victoria-logs-20260101-tags-v1.44.0-0-gabc")
    found = find()
    assert found.path == STAND_IN
    assert found.reasons[1].endswith("is v1.44.0")


def test_without_any_the_stand_in_is_named_loudly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = cached(tmp_path).with_name(f"{cached(tmp_path).name}.failed")
    failed.parent.mkdir(parents=True)
    failed.write_text("go_build: refused an hour ago\n")
    found = find()
    assert not found.real
    assert len(found.reasons) == 2
    assert victoria_logs.main() == 3
    output = capsys.readouterr()
    assert output.out == f"{STAND_IN}\n"
    assert "NO REAL VictoriaLogs" in output.err
    for reason in (*found.reasons, "go_build: refused an hour ago"):
        assert reason in output.err


def fake_go(tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `go` that builds what says to be `version`, and counts its calls in a file."""
    go = program(tmp_path / "bin" / "go", "")
    go.write_text(
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/calls
while [ "$1" != -o ]; do shift; done
printf '#!/bin/sh\necho victoria-logs-tags-{version} >&2\n' > "$2"
/bin/chmod +x "$2"
"""
    )
    # The other way to build needs the network.
    monkeypatch.setattr(victoria_logs, "GO_FROM_PYPI", str(tmp_path / "no-such-package"))


def test_a_go_build_of_the_pinned_module_fills_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_go(tmp_path, PINNED_VERSION, monkeypatch)
    assert victoria_logs.fill_cache(retry=False) == []
    assert find().path == cached(tmp_path)
    called = (tmp_path / "calls").read_text()
    assert f"-C {ROOT}/tests/setup/victoria-logs -mod=readonly" in called
    assert called.endswith("github.com/VictoriaMetrics/VictoriaLogs/app/victoria-logs\n")


def test_what_could_not_be_had_is_asked_for_again_only_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_go(tmp_path, "v0.0.1", monkeypatch)
    monkeypatch.setattr(victoria_logs, "RELEASE", (tmp_path / "nowhere").as_uri())
    first = victoria_logs.fill_cache(retry=False)
    assert first[0] == f"go_build: it gave v0.0.1 instead of {PINNED_VERSION}"
    assert first[1].startswith("go_build_with_pypi: ")
    assert "can't be downloaded" in first[2]
    assert victoria_logs.fill_cache(retry=False) == first
    assert len((tmp_path / "calls").read_text().splitlines()) == 1
    victoria_logs.fill_cache(retry=True)
    assert len((tmp_path / "calls").read_text().splitlines()) == 2


@pytest.mark.parametrize("tampered", [False, True])
def test_a_release_is_taken_only_with_its_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tampered: bool
) -> None:
    release = tmp_path / "release"
    says = f"victoria-logs-20260601-tags-{RELEASED_VERSION}-0-gabc"
    binary = program(release / "victoria-logs-prod", says)
    name = f"victoria-logs-linux-amd64-{RELEASED_VERSION}"
    with tarfile.open(release / f"{name}.tar.gz", "w:gz") as tar:
        tar.add(binary, "victoria-logs-prod")
    content = (release / f"{name}.tar.gz").read_bytes()
    digest = hashlib.sha256(content + (b"!" if tampered else b"")).hexdigest()
    (release / f"{name}_checksums.txt").write_text(f"{digest}  {name}.tar.gz\n")
    monkeypatch.setattr(victoria_logs, "RELEASE", release.as_uri())
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    fake_go(tmp_path, "v0.0.1", monkeypatch)
    reasons = victoria_logs.fill_cache(retry=False)
    assert find().real is not tampered
    assert any("does not have the release's checksum" in reason for reason in reasons) is tampered


def test_the_real_one_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = program(tmp_path / "bin" / "victoria-logs", REAL)
    assert victoria_logs.main() == 0
    output = capsys.readouterr()
    assert output.out == f"{path}\n"
    assert output.err == f"bootstrap: VictoriaLogs v1.51.1: {path}\n"


def test_a_stand_in_is_never_taken_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VICTORIA_LOGS", str(STAND_IN))
    found = find()
    assert found.path == STAND_IN
    assert not found.real


def test_what_does_not_run_is_unusable(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="does not run"):
        version_of(tmp_path / "nothing")
