"""Where the VictoriaLogs of the tests is looked for."""

from __future__ import annotations

import hashlib
import sys
import tarfile
from pathlib import Path

import pytest

from tests.setup import victoria_logs
from tests.setup.victoria_logs import PINNED_VERSION, STAND_IN, Unusable, find, version_of

REAL = "victoria-logs-20250718-162912-tags-v1.26.0-0-g7c0626e0b"


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


@pytest.mark.parametrize(("says", "status"), [("victoria-metrics-v1", 0), (REAL, 1)])
def test_what_does_not_prove_to_be_it_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, status: int
) -> None:
    monkeypatch.setenv("VICTORIA_LOGS", str(program(tmp_path / "mine", says, status)))
    on_path = program(tmp_path / "bin" / "victoria-logs", REAL)
    found = find()
    assert found.path == on_path
    assert "does not say that it is victoria-logs" in found.reasons[0]


def test_another_version_in_the_cache_is_passed_over(tmp_path: Path) -> None:
    program(cached(tmp_path), "victoria-logs-20260101-tags-v1.44.0-0-gabc")
    found = find()
    assert found.path == STAND_IN
    assert found.reasons[2].endswith("is v1.44.0")


def test_without_any_the_stand_in_is_named_loudly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = cached(tmp_path).with_name(f"{cached(tmp_path).name}.failed")
    failed.parent.mkdir(parents=True)
    failed.write_text("go_install: refused an hour ago\n")
    found = find()
    assert not found.real
    assert len(found.reasons) == 3
    assert victoria_logs.main() == 3
    output = capsys.readouterr()
    assert output.out == f"{STAND_IN}\n"
    assert "NO REAL VictoriaLogs" in output.err
    for reason in (*found.reasons, "go_install: refused an hour ago"):
        assert reason in output.err


def fake_go(tmp_path: Path, version: str) -> None:
    """A `go` that installs what says to be `version`, and counts its calls in a file."""
    installs = f'echo "echo victoria-logs-tags-{version} >&2" > "$GOBIN/victoria-logs"'
    go = tmp_path / "bin" / "go"
    go.parent.mkdir(exist_ok=True)
    go.write_text(
        f'#!/bin/sh\necho called >> {tmp_path}/calls\necho "#!/bin/sh" > "$GOBIN/victoria-logs"\n'
        f'{installs.replace("> ", ">> ")}\n/bin/chmod +x "$GOBIN/victoria-logs"\n'
    )
    go.chmod(0o755)


def test_go_install_fills_the_cache(tmp_path: Path) -> None:
    fake_go(tmp_path, PINNED_VERSION)
    assert victoria_logs.fill_cache(retry=False) == []
    assert find().path == cached(tmp_path)


def test_what_could_not_be_had_is_asked_for_again_only_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_go(tmp_path, "v0.0.1")
    monkeypatch.setattr(victoria_logs, "RELEASE", (tmp_path / "nowhere").as_uri())
    first = victoria_logs.fill_cache(retry=False)
    assert first[0] == "go_install: go_install gave v0.0.1"
    assert "can't be downloaded" in first[1]
    assert victoria_logs.fill_cache(retry=False) == first
    assert (tmp_path / "calls").read_text().count("called") == 1
    victoria_logs.fill_cache(retry=True)
    assert (tmp_path / "calls").read_text().count("called") == 2


@pytest.mark.parametrize("tampered", [False, True])
def test_a_release_is_taken_only_with_its_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tampered: bool
) -> None:
    release = tmp_path / "release"
    binary = program(release / "victoria-logs-prod", REAL)
    name = f"victoria-logs-linux-amd64-{PINNED_VERSION}"
    with tarfile.open(release / f"{name}.tar.gz", "w:gz") as tar:
        tar.add(binary, "victoria-logs-prod")
    content = (release / f"{name}.tar.gz").read_bytes()
    digest = hashlib.sha256(content + (b"!" if tampered else b"")).hexdigest()
    (release / f"{name}_checksums.txt").write_text(f"{digest}  {name}.tar.gz\n")
    monkeypatch.setattr(victoria_logs, "RELEASE", release.as_uri())
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    fake_go(tmp_path, "v0.0.1")
    reasons = victoria_logs.fill_cache(retry=False)
    assert find().real is not tampered
    assert any("checksum" in reason for reason in reasons) is tampered


def test_the_real_one_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = program(tmp_path / "bin" / "victoria-logs", REAL)
    assert victoria_logs.main() == 0
    output = capsys.readouterr()
    assert output.out == f"{path}\n"
    assert output.err == f"VictoriaLogs v1.26.0: {path}\n"


def test_a_stand_in_is_never_taken_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VICTORIA_LOGS", str(STAND_IN))
    found = find()
    assert found.path == STAND_IN
    assert not found.real


def test_what_does_not_run_is_unusable(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="does not run"):
        version_of(tmp_path / "nothing")
