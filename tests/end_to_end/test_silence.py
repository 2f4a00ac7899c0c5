"""What borgmatic logs of our hooks, at each of its verbosities, and what its monitor is told."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.parts.borgmatic_site import NEWEST, BorgmaticSite
from tests.parts.healthchecks import Healthchecks

# What a good run says last, and what begins each of our lines.
STORY = "published: "
OURS = "vl-borg-hooks: "


@pytest.fixture(scope="module", params=["1.7.7", "2.0.13", NEWEST])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BorgmaticSite]:
    with Healthchecks() as healthchecks:
        site = BorgmaticSite(tmp_path_factory.mktemp("place"), request.param, healthchecks)
        with site.locking.server:
            site.locking.server.start()
            yield site


only_newest = pytest.mark.parametrize("place", [NEWEST], indirect=True)


@pytest.fixture(autouse=True)
def _as_it_was(place: BorgmaticSite) -> Iterator[None]:
    yield
    place.locking.configure(data_path=str(place.locking.data), service=place.locking.server.service)
    place.write_config()
    place.healthchecks.taken()


def verbosities(place: BorgmaticSite) -> list[int]:
    """Those that this borgmatic has: -2 is newer."""
    return [-1, 0, 1, 2] if place.series == "1.7" else [-2, -1, 0, 1, 2]


def told(place: BorgmaticSite, done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """What came where borgmatic shows what a hook says, and what came on the other stream.

    1.7 logs it as warnings, which are on its stderr.
    """
    return (done.stderr, done.stdout) if place.series == "1.7" else (done.stdout, done.stderr)


def test_a_good_run(place: BorgmaticSite) -> None:
    """Nothing at all below verbosity 1, so that cron sends no mail; from there on, its story."""
    for verbosity in verbosities(place):
        before = place.archives()
        done = place.borgmatic("--verbosity", str(verbosity), "create")
        assert done.returncode == 0
        assert len(place.archives()) == len(before) + 1
        assert place.healthchecks.taken() == ["start", "success"]
        if verbosity < 1:
            assert (done.stdout, done.stderr) == ("", ""), verbosity
            continue
        shown, other = told(place, done)
        assert f"{OURS}default: {STORY}" in shown, verbosity
        assert OURS not in other


def test_the_default_is_silence(place: BorgmaticSite) -> None:
    done = place.borgmatic("create")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def fails(place: BorgmaticSite, why: str) -> None:
    """AssertionError if a run does not fail at each verbosity, or does not say why."""
    before = place.archives()
    every = verbosities(place)
    runs = place.borgmatics(*(("--verbosity", str(verbosity), "create") for verbosity in every))
    for verbosity, done in zip(every, runs, strict=True):
        assert done.returncode == 1, verbosity
        if verbosity == -2:
            assert (done.stdout, done.stderr) == ("", "")
            continue
        # 2.0 logs a hook's stderr as answers, which it does not show at -1.
        assert "rror" in done.stderr, verbosity
        if verbosity >= 0 or place.series != "2.0":
            shown = done.stdout if place.series == "2.0" else done.stderr
            assert f"{OURS}default: {why}" in shown, verbosity
    assert place.archives() == before
    pings = place.healthchecks.taken()
    assert "success" not in pings
    # 1.7 runs before_everything before all else: its monitor hears nothing, and misses a success.
    assert pings.count("fail") == (0 if place.series == "1.7" else len(every))


def test_a_failed_run(place: BorgmaticSite) -> None:
    missing = str(place.root / "no-such-data")
    place.locking.configure(data_path=missing)
    fails(place, missing)


def test_a_refused_run(place: BorgmaticSite) -> None:
    with place.records.run_lock("restore"):
        fails(place, "another run holds this instance")


def unclean(place: BorgmaticSite) -> None:
    """Have each run warn: that the server has not stopped cleanly."""
    command = dict(place.locking.server.service["command"])  # type: ignore[call-overload]
    command["exit_status"] = ["echo", "255"]
    place.locking.configure(service={"command": command})


def test_json_stays_json(place: BorgmaticSite) -> None:
    unclean(place)
    done = place.borgmatic("create", "--json")
    (created,) = json.loads(done.stdout)
    assert created["archive"]["stats"]["nfiles"]
    assert "did not stop cleanly" in done.stderr


def test_a_warning_is_a_warning(place: BorgmaticSite) -> None:
    """borgmatic shows it from its verbosity 0 on, and logs it at that level; 2.0 has no such one."""
    unclean(place)
    for verbosity in (-1, 0):
        log = place.root / f"log-{verbosity}"
        done = place.borgmatic(
            *("--verbosity", str(verbosity), "--log-file", str(log), "--log-file-verbosity", "0"),
            "create",
        )
        shown = done.stdout if place.series == "2.0" else done.stderr
        assert ("did not stop cleanly" in shown) == (verbosity == 0)
        (line,) = [line for line in log.read_text().splitlines() if OURS in line]
        level = "ANSWER" if place.series == "2.0" else "WARNING"
        assert re.search(rf"\] {level}: (\S+: )?warning: {OURS}default: .* did not stop", line), (
            line
        )


def test_the_config_of_borgmatic_has_a_verbosity_too(place: BorgmaticSite) -> None:
    if place.series != "1.7":
        place.write_config(verbosity=1)
        assert STORY in place.borgmatic("create").stdout


def change_hook(place: BorgmaticSite, old: str, new: str) -> None:
    include = place.root / "include.yaml"
    text = include.read_text()
    assert old in text
    include.write_text(text.replace(old, new))


@only_newest
def test_a_verbosity_of_our_own_counts_more(place: BorgmaticSite) -> None:
    change_hook(place, " before-create", " --verbosity 0 before-create")
    assert STORY in place.borgmatic("create").stdout


@only_newest
def test_a_hook_that_logs_elsewhere_says_all_of_it_there(place: BorgmaticSite) -> None:
    """As without borgmatic: nobody else has a log of it."""
    log = place.root / "hook.log"
    change_hook(place, " before-create", f" before-create 2>>{log}")
    done = place.borgmatic("create")
    assert (done.stdout, done.stderr) == ("", "")
    assert f"{OURS}default: {STORY}" in log.read_text()
