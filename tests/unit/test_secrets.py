"""A password or a key from a file: what is no secret is refused, and nothing is waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import said
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system import secrets

CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "could not read {path}: No such file or directory"),
    "a FIFO": (os.mkfifo, "{path} is not a regular file; name a file there"),
    "a directory": (Path.mkdir, "could not read {path}: Is a directory"),
    "an endless device": (
        lambda path: path.symlink_to("/dev/zero"),
        "{path} is not a regular file; name a file there",
    ),
    "a link to itself": (
        lambda path: path.symlink_to(path),
        "could not read {path}: Too many levels of symbolic links",
    ),
    "large": (
        lambda path: path.write_bytes(b"x" * 65_537),
        "{path} is larger than 65536 bytes: it is not a secret",
    ),
    "empty": (Path.touch, "{path} is empty"),
    "only the end of a line": (lambda path: path.write_text("\n"), "{path} is empty"),
    "binary": (lambda path: path.write_bytes(b"\xff\xfe"), "{path} is not UTF-8 text"),
    "of two lines": (
        lambda path: path.write_text("one\ntwo\n"),
        "{path} has more than one line, or a NUL",
    ),
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("case", CASES)
def test_what_is_no_secret_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    make, expected = CASES[case]
    path = tmp_path / "secret"
    make(path)
    with pytest.raises(OperatorError) as caught:
        secrets.read(str(path))
    assert str(caught.value) == expected.format(path=path)


def test_a_secret_is_read_through_a_link_without_the_end_of_its_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("pass word ü\r\n")
    (tmp_path / "data").chmod(0o440)
    (tmp_path / "secret").symlink_to("data")
    with said() as lines:
        assert secrets.read(str(tmp_path / "secret")) == "pass word ü"
    assert lines == []


def test_a_secret_that_every_user_can_read_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("x")
    path.chmod(0o644)
    with said() as lines:
        assert secrets.read(str(path)) == "x"
    assert lines == [f"{path} can be read by every user of this machine: run: chmod o-r {path}"]


def test_an_empty_variable_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VL_TEST_SECRET", "")
    with pytest.raises(OperatorError, match=r"^\$VL_TEST_SECRET is empty$"):
        secrets.from_environment("VL_TEST_SECRET")
