"""Progress of a real rsync: its output in pieces of any size, and what is said of a pass."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support import said
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.transfer import progress, rsync
from vl_borg_hooks.transfer.progress import Parser, Point, Reporter


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a real rsync prints for a few files."""
    root = tmp_path_factory.mktemp("rsync")
    (root / "source").mkdir()
    for number in range(6):
        (root / "source" / f"{number}").write_bytes(bytes(100_000 * (number + 1)))
    argv = [*rsync.ARGUMENTS, f"{root}/source/", f"{root}/destination/"]
    printed = subprocess.run(
        argv, capture_output=True, check=True, env={**os.environ, "LC_ALL": "C"}
    )
    text = printed.stdout.decode()
    assert "\r" in text
    assert "chk=" in text
    return text


def test_the_pieces_that_output_comes_in_make_no_difference(output: str) -> None:
    whole = Parser()
    end = whole.feed(output)
    assert end == Point(2_100_000, 1)
    assert Parser(all_new=False).feed(output) == end
    assert "Number of regular files transferred: 6" in whole.text
    assert "100%" not in whole.text
    for cut in range(len(output) + 1):
        parser = Parser()
        parser.feed(output[:cut])
        assert parser.feed(output[cut:]) == end, cut
        assert parser.text == whole.text, cut
    for size in (1, 2, 3, 7):
        parser = Parser()
        points = [parser.feed(output[at : at + size]) for at in range(0, len(output), size)]
        assert points[-1] == end
        assert parser.text == whole.text
        assert [point.bytes for point in points] == sorted(point.bytes for point in points)


def test_progress_of_a_real_pass_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_SECONDS", 0)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(bytes(1_000_000))
    with said() as lines:
        result = rsync.copy(
            (LocalHost(), f"{tmp_path}/source"),
            (LocalHost(), f"{tmp_path}/destination"),
            name="warm pass",
            reporter=Reporter("default"),
            all_new=True,
        )
    assert (result.files, result.bytes) == (1, 1_000_000)
    assert lines
    assert re.search(r"^default: warm pass: 1\.0 MB copied, .*B/s, 100%$", lines[-1])
