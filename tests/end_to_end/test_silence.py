"""What borgmatic logs of our hooks, at each of its verbosities, and what its monitor is told."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.borgmatic_site import NEWEST, BorgmaticSite
from tests.parts.healthchecks import Healthchecks

# What a good run says last, and what begins each of our lines.
STORY = "published: "
OURS = "vl-borg-hooks: "
VERBOSITIES = (-2, -1, 0, 1, 2)


@pytest.fixture(scope="module", params=["1.7.7", "2.0.13", NEWEST])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BorgmaticSite]:
    with Healthchecks() as healthchecks:
        site = BorgmaticSite(tmp_path_factory.mktemp("place"), request.param, healthchecks)
        with site.locking.server:
            site.locking.server.start()
            yield site


@pytest.fixture(autouse=True)
def _as_it_was(place: BorgmaticSite) -> Iterator[None]:
    yield
    place.locking.configure(data_path=str(place.locking.data), service=place.locking.server.service)
    place.write_config()
    place.healthchecks.taken()


def possible(place: BorgmaticSite, verbosity: int) -> bool:
    """Whether that borgmatic has this verbosity: -2 is newer."""
    return verbosity >= -1 or place.series != "1.7"


@pytest.mark.parametrize("verbosity", VERBOSITIES)
def test_a_good_run(place: BorgmaticSite, verbosity: int) -> None:
    """Nothing at all below verbosity 1, so that cron sends no mail; from there on, its story."""
    if not possible(place, verbosity):
        return
    before = place.archives()
    done = place.borgmatic("--verbosity", str(verbosity), "create")
    assert done.returncode == 0
    assert len(place.archives()) == len(before) + 1
    assert place.healthchecks.taken() == ["start", "success"]
    if verbosity < 1:
        assert (done.stdout, done.stderr) == ("", "")
        return
    # borgmatic 1.7 logs all that a hook says as warnings, which are on its stderr.
    told, untold = done.stdout, done.stderr
    if place.series == "1.7":
        told, untold = untold, told
    assert f"{OURS}default: {STORY}" in told
    assert OURS not in untold
    # Commands are shown as borgmatic's own are.
    assert ("<Command" in told) == (verbosity == 2)


def test_the_default_is_silence(place: BorgmaticSite) -> None:
    done = place.borgmatic("create")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("verbosity", VERBOSITIES)
def test_a_failed_run(place: BorgmaticSite, verbosity: int) -> None:
    if not possible(place, verbosity):
        return
    place.locking.configure(data_path=str(place.root / "no-such-data"))
    before = place.archives()
    done = place.borgmatic("--verbosity", str(verbosity), "create", check=False)
    assert done.returncode == 1
    assert place.archives() == before
    assert place.healthchecks.taken()[-1] == "fail"
    if verbosity >= -1:
        assert f"{OURS}default: {place.root / 'no-such-data'}" in done.stderr
    else:
        assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("verbosity", VERBOSITIES)
def test_a_refused_run(place: BorgmaticSite, verbosity: int) -> None:
    if not possible(place, verbosity):
        return
    before = place.archives()
    with place.records.run_lock("restore"):
        done = place.borgmatic("--verbosity", str(verbosity), "create", check=False)
    assert done.returncode == 1
    assert place.archives() == before
    assert place.healthchecks.taken()[-1] == "fail"
    if verbosity >= -1:
        assert "another run holds this instance" in done.stderr
    else:
        assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("options", [(), ("--verbosity", "1")], ids=["default", "verbose"])
def test_json_stays_json(place: BorgmaticSite, options: tuple[str, ...]) -> None:
    unclean(place)
    done = place.borgmatic(*options, "create", "--json")
    # borgmatic's own information comes before it, if it is asked for.
    lines = done.stdout.splitlines()
    (created,) = json.loads(lines[-1] if options else done.stdout)
    assert created["archive"]["stats"]["nfiles"]
    assert OURS not in done.stdout
    assert "did not stop cleanly" in done.stderr


def unclean(place: BorgmaticSite) -> None:
    """Have each run warn: that the server has not stopped cleanly."""
    command = dict(place.locking.server.service["command"])  # type: ignore[call-overload]
    command["exit_status"] = ["echo", "255"]
    place.locking.configure(service={"command": command})


@pytest.mark.parametrize("verbosity", VERBOSITIES)
def test_a_warning_is_a_warning(place: BorgmaticSite, verbosity: int) -> None:
    """borgmatic shows it from its verbosity 0 on, and logs it at that level."""
    if not possible(place, verbosity):
        return
    unclean(place)
    log = place.root / f"log-{verbosity}"
    arguments = ("--verbosity", str(verbosity), "--log-file", str(log), "--log-file-verbosity", "0")
    done = place.borgmatic(*arguments, "create")
    assert ("did not stop cleanly" in done.stderr) == (verbosity >= 0)
    assert "did not stop cleanly" not in done.stdout
    if verbosity <= 0:
        (line,) = [line for line in log.read_text().splitlines() if OURS in line]
        assert re.search(r"\] WARNING: (\S+: )?warning: vl-borg-hooks: default: .* did not stop", line)


def test_the_config_of_borgmatic_has_a_verbosity_too(place: BorgmaticSite) -> None:
    if place.series in ("1.7", "1.8", "1.9"):
        return
    place.write_config(verbosity=1)
    assert STORY in place.borgmatic("create").stdout
    assert place.borgmatic("--verbosity", "0", "create").stdout == ""


def test_a_verbosity_of_our_own_counts_more(place: BorgmaticSite) -> None:
    include = place.root / "include.yaml"
    text = include.read_text()
    assert " before-create" in text
    include.write_text(text.replace(" before-create", " --verbosity 0 before-create"))
    done = place.borgmatic("create")
    assert STORY in (done.stderr if place.series == "1.7" else done.stdout)
    include.write_text(text.replace(" before-create", " --verbosity -1 before-create"))
    assert STORY not in place.borgmatic("--verbosity", "1", "create").stdout


def test_a_hook_that_logs_elsewhere_says_all_of_it_there(place: BorgmaticSite) -> None:
    """As without borgmatic: nobody else has a log of it."""
    log = place.root / "hook.log"
    include = place.root / "include.yaml"
    text = include.read_text()
    hook = re.search(r"- (.* before-create)$", text, re.MULTILINE)
    assert hook
    include.write_text(text.replace(hook[1], f"{hook[1]} 2>>{log}"))
    with contextlib.suppress(FileNotFoundError):
        log.unlink()
    done = place.borgmatic("create")
    assert (done.stdout, done.stderr) == ("", "")
    assert f"{OURS}default: {STORY}" in Path(log).read_text()
