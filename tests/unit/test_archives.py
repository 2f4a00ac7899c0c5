"""What `archives` tells of archives, and what it makes of those that it can't read."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support import make_copy, said, write_config
from vl_borg_hooks.actions.archives import Overview, archives
from vl_borg_hooks.config import load
from vl_borg_hooks.errors import OperatorError

# Answers as borgmatic does: its configuration, and what Borg says of the repository after --repository.
BORGMATIC = """\
#!/bin/sh
cd "{root}"
case "$*" in
*" --show "*) cat shown.yaml; exit ;;
esac
while [ "$1" != --repository ]; do shift; done
cd "repositories/$2" 2>/dev/null || {{ echo "Borg: no repository $2" >&2; exit 2; }}
shift 2
echo "$*" >> asked
case "$1" in
list) cat list.json ;;
extract) cat "${{2#::}}.out" ;;
esac
"""


class Place:
    """A borgmatic on PATH whose configuration includes ours, and its repositories."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.names = ["a", "b"]
        instances = [
            {
                "name": name,
                "data_path": f"/data/{name}",
                "staging_path": f"/staging/{name}",
                "service": {"systemd": "unused.service"},
            }
            for name in self.names
        ]
        self.config = write_config(root / "ours.yaml", instances, state_path=str(root / "state"))
        program = root / "bin" / "borgmatic"
        program.parent.mkdir()
        program.write_text(BORGMATIC.format(root=root))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        monkeypatch.setenv("XDG_CONFIG_HOME", str(root / "none"))
        self.repository()
        self.show()

    def show(self, hook: str = "before-create") -> None:
        """Have a configuration with all repositories, and one hook of ours."""
        names = sorted(path.name for path in (self.root / "repositories").iterdir())
        content = {
            "repositories": [{"path": name, "label": f"label {name}"} for name in names],
            "commands": [
                {"before": "configuration", "run": [f"vl-borg-hooks --config {self.config} {hook}"]}
            ],
        }
        (self.root / "shown.yaml").write_text(json.dumps(content))

    def repository(self, name: str = "one", **archives: str) -> None:
        """Have a repository whose `archives` are what is extracted of each."""
        directory = self.root / "repositories" / name
        directory.mkdir(parents=True, exist_ok=True)
        for archive, out in archives.items():
            (directory / f"{archive}.out").write_text(out)
        listed = [
            {"id": self.id(archive), "name": archive, "start": f"2026-11-0{number}T00:00:00.000000"}
            for number, archive in enumerate(archives, 1)
        ]
        text = json.dumps({"archives": listed, "repository": {"id": self.id(name)}}, indent=4)
        (directory / "list.json").write_text(text)

    @staticmethod
    def id(name: str) -> str:
        return name.encode().hex().rjust(64, "0")

    def manifest(self, instance: str, *days: str) -> str:
        copy = make_copy(
            self.root / "copies" / f"{instance}{len(days)}", instance=instance, days=days
        )
        return copy.manifest_path.read_text()

    def archives(
        self,
        *names: str,
        day: str | None = None,
        repository: str | None = None,
    ) -> Overview:
        loaded = load(self.config)
        return archives(
            *(loaded, loaded.instances(names)),
            borgmatic_config=self.root / "shown.yaml",
            repository=repository,
            day=day,
        )

    def asked(self, name: str = "one") -> list[str]:
        """What Borg was asked since the last call."""
        file = self.root / "repositories" / name / "asked"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def told(overview: Overview) -> Sequence[tuple[str, str, int]]:
    return [(one.archive, one.instance, one.rows) for one in overview.found]


def test_only_the_manifests_of_the_staging_copies_are_extracted_and_each_once(
    place: Place,
) -> None:
    a, b = place.manifest("a", "20261101", "20261102"), place.manifest("b", "20261102")
    place.repository(first=a + b, second=a)
    found = place.archives()
    assert told(found) == [("first", "a", 42), ("first", "b", 21), ("second", "a", 42)]
    assert found.problems == []
    paths = "pf:staging/a/manifest.json pf:staging/b/manifest.json --stdout"
    assert place.asked() == ["list --json", f"extract ::first {paths}", f"extract ::second {paths}"]
    assert place.archives() == found
    assert place.asked() == ["list --json"]
    assert found.found[0].line(None) == (
        "2026-11-01 00:00:00  label one  first  a: 42 rows in 2 days, 20261101 to 20261102"
    )
    assert found.found[1].line("20261102") == (
        "2026-11-01 00:00:00  label one  first  b: 21 rows in 1 day, 20261102 to 20261102, "
        "21 of them of 20261102"
    )


def test_those_that_hold_a_day_or_are_of_an_instance_are_chosen(place: Place) -> None:
    a, b = place.manifest("a", "20261101", "20261102"), place.manifest("b", "20261102")
    place.repository(first=a + b)
    assert told(place.archives(day="20261101")) == [("first", "a", 42)]
    assert told(place.archives("b")) == [("first", "b", 21)]
    assert told(place.archives("b", day="20261101")) == []
    assert told(place.archives(day="20990101")) == []


def test_a_day_is_eight_digits(place: Place) -> None:
    with pytest.raises(OperatorError, match="'2026-11-01' is not a day such as 20240131"):
        place.archives(day="2026-11-01")


def test_what_is_known_is_forgotten_with_the_archive_and_read_again_if_damaged(
    place: Place,
) -> None:
    a = place.manifest("a", "20261101")
    place.repository(first=a, second=a)
    place.archives()
    directory = place.root / "state" / ".archives" / place.id("one")
    assert [path.stat().st_mode & 0o77 for path in (directory, *directory.iterdir())] == [0] * 3
    (first,) = directory.glob(f"{place.id('first')}-*")
    first.write_text("[{}]")
    place.asked()
    assert told(place.archives()) == [("first", "a", 21), ("second", "a", 21)]
    assert len(place.asked()) == 2
    place.repository(second=a)
    assert told(place.archives()) == [("second", "a", 21)]
    assert [path.name[:64] for path in directory.iterdir()] == [place.id("second")]


def test_an_archive_without_a_copy_is_not_asked_again(place: Place) -> None:
    place.repository(first="")
    assert place.archives() == Overview([], [])
    place.asked()
    assert place.archives() == Overview([], [])
    assert place.asked() == ["list --json"]


HOSTILE = {
    "no JSON": "manifest",
    "another format": '{"format": 3}',
    "half": '{"format": 2, "instance": "a"}',
    "deep": "[" * 100_000,
    "too many": "{}" * 1000,
    "a large number": '{"format": 2, "rows": ' + "9" * 10_000 + "}",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_manifest_that_is_none_is_told_of_and_the_others_are_listed(
    place: Place, what: str
) -> None:
    place.repository(first=HOSTILE[what], second=place.manifest("a", "20261101"))
    for _ in range(2):
        found = place.archives()
        assert told(found) == [("second", "a", 21)]
        (problem,) = found.problems
        assert "manifest.json in first of label one in " in problem
        assert "\n" not in problem


def test_a_manifest_without_end_is_not_read_to_its_end(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vl_borg_hooks.archiving.archives.LARGEST_MANIFEST", 1000)
    place.repository(first="x" * 100_000)
    (problem,) = place.archives().problems
    assert "Borg prints more than 2000 bytes" in problem


def test_a_repository_that_is_not_there_does_not_hide_the_others(place: Place) -> None:
    place.repository("one", first=place.manifest("a", "20261101"))
    place.repository("two")
    place.show()
    (place.root / "repositories" / "two").rename(place.root / "gone")
    found = place.archives()
    assert told(found) == [("first", "a", 21)]
    (problem,) = found.problems
    assert "label two in " in problem
    assert "Borg: no repository two" in problem


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"archives": [{"id": "../x"}]}', "{}{}"])
def test_a_list_that_is_none_is_a_problem_of_that_repository(place: Place, text: str) -> None:
    (place.root / "repositories" / "one" / "list.json").write_text(text)
    (problem,) = place.archives().problems
    assert "what Borg lists is not understood" in problem


def test_a_repository_is_named_by_label_or_path(place: Place) -> None:
    a = place.manifest("a", "20261101")
    place.repository("one", first=a)
    place.repository("two", second=a)
    place.show()
    assert told(place.archives(repository="label two")) == [("second", "a", 21)]
    assert place.asked("one") == []
    with pytest.raises(OperatorError, match="no borgmatic config has a repository three"):
        place.archives(repository="three")


def test_without_a_name_the_usual_configurations_that_include_ours_are_taken(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.repository(first=place.manifest("a", "20261101"))
    usual = place.root / "home" / "borgmatic.d" / "usual.yaml"
    usual.parent.mkdir(parents=True)
    usual.touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place.root / "home"))
    loaded = load(place.config)
    options = {"borgmatic_config": None, "repository": None, "day": None}
    assert told(archives(loaded, loaded.instances([]), **options)) == [("first", "a", 21)]
    place.show(hook="after-create")
    with pytest.raises(OperatorError) as caught:
        archives(loaded, loaded.instances([]), **options)
    assert f"no borgmatic config includes that of {place.config} ({usual})" in caught.value.what
    (place.root / "shown.yaml").write_text("no configuration")
    with said() as lines, pytest.raises(OperatorError):
        archives(loaded, loaded.instances([]), **options)
    assert any(str(usual) in line for line in lines)


def test_without_borgmatic_there_is_nothing_to_ask(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(OperatorError, match="borgmatic is not on PATH"):
        place.archives()
