"""What a plugin can rely on: steps that it replaces, occasions that it learns of, its own options."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import pytest

from tests.parts import copying_plugin
from tests.parts.locking_site import LockingSite, the_line
from tests.support import make_copy, make_data, make_partition, run_command_line, tree, write_config
from vl_borg_hooks.runs.records import Journal, RunRecords
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.staging.verify import verify

pytestmark = pytest.mark.timeout(120)


@final
class Plugged:
    """A site whose config has a section for the plugin, which is installed as anybody's is."""

    def __init__(self, site: LockingSite) -> None:
        self.site = site
        self.report = site.root / "report.jsonl"
        self.directory = site.root / "site-packages"
        metadata = self.directory / "copying_plugin-1.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: copying-plugin\nVersion: 1\n"
        )
        (metadata / "entry_points.txt").write_text("[vl_borg_hooks]\ncopying = copying_plugin\n")
        shutil.copy(copying_plugin.__file__, self.directory)
        # rsync may say its version, and nothing else: who passes does it without.
        self.tools = site.root / "tools"
        self.tools.mkdir()
        (self.tools / "rsync").write_text(
            f'#!/bin/sh\n[ "$1" = --version ] || exit 99\nexec {shutil.which("rsync")} --version\n'
        )
        (self.tools / "rsync").chmod(0o755)
        self.configure()

    def configure(self, *more: Mapping[str, object], **options: object) -> None:
        """Write the config, with the plugin's `options` and `more` instances."""
        section = {"report": str(self.report), **options}
        write_config(
            self.site.config,
            [self.site.fields, *more],
            state_path=str(self.site.root / "state"),
            plugins={"copying": section},
        )

    def environment(self, *, rsync: bool = True) -> dict[str, str]:
        path = os.environ["PATH"] if rsync else f"{self.tools}:{os.environ['PATH']}"
        return {"PYTHONPATH": str(self.directory), "PATH": path}

    def run(self, *arguments: str | Path, rsync: bool = True) -> Any:
        return self.site.command(*arguments, environment=self.environment(rsync=rsync))

    def learned(self, hook: str) -> list[dict[str, Any]]:
        """What was learned in `hook`, in order, without the hook's name."""
        if not self.report.exists():
            return []
        lines = [json.loads(line) for line in self.report.read_text().splitlines()]
        return [
            {key: value for key, value in line.items() if key != "hook"}
            for line in lines
            if line["hook"] == hook
        ]


@pytest.fixture
def plugged(site: LockingSite) -> Plugged:
    return Plugged(site)


def test_a_plugin_replaces_how_the_copy_is_made(plugged: Plugged) -> None:
    site = plugged.site
    first = site.server.pid
    done = plugged.run("before-create", rsync=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert verify(site.staging).problems == []
    assert tree(site.staging.data) == site.content()
    # It was stopped and started again, and the plugin was told so.
    assert site.server.running
    assert site.server.pid != first
    assert plugged.learned("after_start") == [{"instance": "default", "downtime": True}]
    manifest = site.staging.manifest()
    assert plugged.learned("after_backup") == [
        {"instance": "default", "files": manifest.files, "rows": manifest.rows, "error": None}
    ]
    # A plugin that leaves the step to ours gets rsync, which fails here.
    plugged.configure(replaces=False)
    assert "rsync exit status 99" in the_line(plugged.run("before-create", rsync=False))
    assert not site.published


def test_a_stop_window_of_a_plugin_leaves_a_stopped_server_stopped(plugged: Plugged) -> None:
    site = plugged.site
    site.server.stop()
    done = plugged.run("before-create", rsync=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert verify(site.staging).problems == []
    assert not site.server.running
    assert plugged.learned("after_start") == []


def test_a_plugin_that_does_not_return_what_it_has_done_is_found(plugged: Plugged) -> None:
    plugged.configure(forgets=True)
    line = the_line(plugged.run("before-create"))
    assert "make_copy of a plugin has stopped VictoriaLogs and then left the step to us" in line
    assert "VictoriaLogs is running" in line
    # It was not stopped a second time.
    assert len(plugged.learned("after_start")) == 1
    assert not plugged.site.published
    make_copy(plugged.site.root / "extracted")
    line = the_line(plugged.run("restore", "--from", plugged.site.root / "extracted", "--yes"))
    assert "put_in_place of a plugin has stopped VictoriaLogs and then left the step to us" in line
    assert "VictoriaLogs is running" in line
    assert len(plugged.learned("after_start")) == 2


def test_a_plugin_replaces_how_a_copy_is_put_in_place(plugged: Plugged) -> None:
    site = plugged.site
    assert plugged.run("before-create").returncode == 0
    extracted = site.root / "extracted"
    shutil.copytree(site.staging.path, extracted)
    expected = tree(extracted / "data")
    shutil.rmtree(site.data / "partitions")
    make_partition(site.data / "partitions" / "20261124")
    done = plugged.run("restore", "--from", extracted, "--yes", rsync=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert site.content() == expected
    assert site.server.running
    assert plugged.learned("after_restore") == [{"instance": "default", "error": None}]


def test_after_backup_learns_of_a_check_that_failed(plugged: Plugged) -> None:
    plugged.configure(wrong=["the moon is full"])
    line = the_line(plugged.run("before-create"))
    assert "default: the moon is full; VictoriaLogs is running; make it right" in line
    learned = plugged.learned("after_backup")
    assert learned == [
        {"instance": "default", "files": None, "rows": None, "error": learned[0]["error"]}
    ]
    assert "the moon is full" in learned[0]["error"]
    assert plugged.learned("after_start") == []


def test_all_checks_that_fail_are_reported(plugged: Plugged) -> None:
    site = plugged.site
    site.fields["data_path"] = str(site.root / "nothing")
    plugged.configure(wrong=["the moon is full", "the tide is high"])
    listed = plugged.run("config", "validate")
    assert listed.returncode == 1
    lines = listed.stdout.splitlines()
    wanted = ("is not a VictoriaLogs data directory", "the moon is full", "the tide is high")
    assert len(lines) == len(wanted), lines
    for line, words in zip(lines, wanted, strict=True):
        assert line.startswith(f"{site.config}:")
        assert words in line
    # Those after the first are warnings, so that the failure itself stays one line.
    said = run_command_line(
        "--config", site.config, "before-create", environment=plugged.environment()
    )
    assert [line.partition(": warning: ")[2] for line in said.stderr.splitlines()[:2]] == [
        "default: the moon is full; make it right",
        "default: the tide is high; make it right",
    ]
    assert "is not a VictoriaLogs data directory" in said.stderr.splitlines()[-1]


def test_with_two_instances_a_failure_of_one_is_what_both_learn(
    plugged: Plugged, tmp_path: Path
) -> None:
    site = plugged.site
    other = {**site.fields, "name": "other", "data_path": str(make_data(tmp_path / "other"))}
    other["staging_path"] = str(tmp_path / "other-staging")
    # Found stopped; and its parts don't hold what their metadata says.
    other["service"] = {"command": {"stop": ["true"], "start": ["true"], "status": ["false"]}}
    (tmp_path / "other/partitions/20261121/datadb/18A0000000000000/index.bin").write_bytes(b"short")
    plugged.configure(other, replaces=False)
    assert "other: the staging copy is not consistent" in the_line(plugged.run("before-create"))
    learned = {entry["instance"]: entry for entry in plugged.learned("after_backup")}
    assert set(learned) == {"default", "other"}
    # The first one's copy was published, and was withdrawn because the second one failed.
    assert learned["default"]["rows"]
    assert learned["other"]["rows"] is None
    for entry in learned.values():
        assert "other: the staging copy is not consistent" in entry["error"]
    assert not site.published
    assert not StagingCopy(tmp_path / "other-staging").manifest_path.exists()


@pytest.mark.parametrize("hook", ["before_backup", "after_backup", "after_start"])
def test_an_occasion_that_fails_makes_the_run_fail(plugged: Plugged, hook: str) -> None:
    plugged.configure(failing=[hook])
    line = the_line(plugged.run("before-create"))
    assert (
        f"default: unexpected RuntimeError: {hook} of a plugin (in the plugin copying); "
        "VictoriaLogs is running"
    ) in line
    assert not plugged.site.published
    assert len(plugged.learned("after_backup")) == 1


def test_an_after_start_that_fails_does_not_hide_that_victorialogs_is_down(
    plugged: Plugged,
) -> None:
    site = plugged.site
    commands = {action: site.server.argv(action) for action in ("stop", "status")}
    site.fields |= {"service": {"command": {**commands, "start": ["false"]}}, "start_timeout": 1}
    plugged.configure(failing=["after_start"])
    line = the_line(plugged.run("before-create"))
    assert "VICTORIALOGS IS DOWN" in line
    assert "of a plugin" not in line
    assert plugged.learned("after_start") == [{"instance": "default", "downtime": False}]
    # Once it can be started, an operator does not have to wait for the guard, which goes on trying.
    site.fields["service"] = site.server.service
    plugged.configure()
    assert plugged.run("recover").returncode == 0
    assert site.server.running


@pytest.mark.parametrize("how", ["is broken", "has a wrong section"])
def test_a_plugin_that_cannot_be_used_does_not_keep_victorialogs_down(
    plugged: Plugged, how: str
) -> None:
    """A run was killed in its stop window; then the plugin was upgraded, and the machine boots."""
    site = plugged.site
    site.server.stop()
    records = RunRecords(site.root / "state", "default")
    records.create()
    records.note(Journal("before-create", found_running=True))
    if how == "is broken":
        (plugged.directory / "copying_plugin.py").write_text("import nothing_that_is_there\n")
    else:
        plugged.configure(replaces="often")
    assert plugged.run("before-create").returncode == 1
    assert not site.server.running
    done = run_command_line("--config", site.config, "recover", environment=plugged.environment())
    assert done.returncode == 0, done.stderr
    assert "warning: recovering without plugins: " in done.stderr
    assert site.server.running
    assert records.journal() is None


def test_a_plugin_learns_of_the_release(plugged: Plugged) -> None:
    assert plugged.run("before-create").returncode == 0
    assert plugged.learned("after_release") == []
    done = plugged.run("after-create")
    assert (done.returncode, done.stderr) == (0, "")
    assert plugged.learned("after_release") == [{"instance": "default"}]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"copying": {"report": "/r", "repalces": True}}, "plugins.copying.repalces: unknown key"),
        ({"copying": {"report": "/r", "replaces": "often"}}, "plugins.copying.replaces: must be"),
        ({"copying": {}}, "plugins.copying.report: is missing"),
        ({}, "plugins.copying.report: is missing"),
        ({"copyng": {}}, "plugins.copyng: no plugin has this section; the nearest is copying"),
    ],
)
def test_a_plugins_options_are_validated_with_the_config(
    plugged: Plugged, section: Mapping[str, object], expected: str
) -> None:
    site = plugged.site
    write_config(site.config, [site.fields], state_path=str(site.root / "state"), plugins=section)
    checked = plugged.run("config", "validate")
    assert checked.returncode == 1
    assert expected in checked.stdout
    line = the_line(plugged.run("before-create"))
    assert expected in line
    # The line of the key, or of the nearest one that is there.
    assert f"{site.config}:" in line
    assert site.server.running
