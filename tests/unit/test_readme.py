"""No row in docs/faults.md without a test that causes it; no message in the README that we don't say."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A row by how it begins, and the tests that show what it says.
ROWS: dict[str, tuple[str, ...]] = {
    "the run is killed": ("test_sigkill_at_every_event", "test_the_whole_control_group_is_ended"),
    "a plugin raises": ("test_every_other_fault_at_every_hook", "test_a_plugin_that_raises_once"),
    "stdout or stderr is closed": ("test_without_standard_streams",),
    "the machine dies in the stop window": ("test_the_machine_dies_in_the_stop_window",),
    "it does not stop within": ("test_a_stop_that_hangs", "test_a_server_that_stops_late"),
    "it does not stop at all": ("test_a_server_that_stops_later_than_we_wait",),
    "the stop command fails": ("test_a_stop_command_that_fails",),
    "the start fails, then works": ("test_a_start_that_fails_twice",),
    "the start always fails": ("test_a_start_that_always_fails",),
    "a final pass in the window": ("test_a_final_pass_that_takes_too_long",),
    "something in the data": ("test_what_would_keep_it_from_starting_is_refused_before_the_stop",),
    "days are detached": ("test_days_that_are_detached_are_not_served_again_by_a_backup",),
    "`url` is wrong": ("test_a_url_of_another_server_is_found_out_at_once",),
    "the stop was not clean": ("test_a_stop_that_was_not_clean_is_told_and_noted",),
    "somebody starts it": ("test_somebody_starts_it_in_the_window",),
    "a second run": ("test_two_runs_at_once",),
    "a second borgmatic": ("test_a_second_borgmatic_while_the_first_archives",),
    "borgmatic is killed": ("test_a_borgmatic_that_is_killed_while_its_borg_goes_on",),
    "borgmatic would not archive": (
        "test_what_would_not_be_archived_is_said_before_the_stop",
        "test_an_include_that_is_overruled_is_found",
        "test_a_repository_for_other_things_is_a_warning",
    ),
    "borgmatic archives nothing": ("test_victorialogs_is_not_stopped_if_nothing_is_archived",),
    "no room for the copy": (
        "test_staging_that_is_too_small",
        "test_staging_that_has_become_too_small",
    ),
    "the copy would push": ("test_a_copy_that_would_push_victorialogs_over_its_own_limits",),
    "staging is full, read-only, or broken": (
        "test_staging_that_is_full_in_the_warm_pass",
        "test_staging_that_is_full_in_the_final_pass",
        "test_staging_that_becomes_read_only",
        "test_staging_that_is_read_only",
        "test_a_final_pass_with_an_io_error",
    ),
    "a part vanishes": ("test_a_part_that_vanishes_in_the_final_pass",),
    "a file is shortened": ("test_a_file_that_is_shortened_after_the_final_pass",),
    "`parts.json` is replaced": ("test_a_parts_json_that_is_replaced_within_the_second",),
    "a restored server": ("test_a_restored_server_that_does_not_serve_the_copy",),
    "an extracted tree": ("test_a_restore_from_a_tree_that_is_no_copy",),
}


def rows() -> list[str]:
    """The first column of the table."""
    section, _, _ = (ROOT / "docs/faults.md").read_text().partition("\n## ")
    cells = re.findall(r"^\| (.+?) \|", section, re.MULTILINE)
    assert cells[:2] == ["fault", "---"]
    return cells[2:]


def test_every_row_of_what_can_go_wrong_has_a_test_and_every_test_a_row() -> None:
    found = {row: [begin for begin in ROWS if row.startswith(begin)] for row in rows()}
    assert all(len(begins) == 1 for begins in found.values()), found
    assert [begin for (begin,) in found.values()] == list(ROWS)
    text = "".join(path.read_text() for path in (ROOT / "tests/faults").glob("test_*.py"))
    defined = set(re.findall(r"^def (test_\w+)\(", text, re.MULTILINE))
    assert {name for names in ROWS.values() for name in names} <= defined


def test_every_message_of_troubleshooting_is_one_that_we_say() -> None:
    _, _, section = (ROOT / "README.md").read_text().partition("\n## Troubleshooting")
    messages = re.findall(r"^\| `(.+?)` \|", section.partition("\n## ")[0], re.MULTILINE)
    code = "".join(path.read_text() for path in (ROOT / "vl_borg_hooks").rglob("*.py"))
    # A text can go on in the next line of the code.
    code = re.sub(r'"\s+f?"', "", code)
    assert messages
    assert [message for message in messages if message not in code] == []


def test_every_link_between_the_pages_leads_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), (page, link)
            if anchor:
                titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
                assert anchor in [title.lower().replace(" ", "-") for title in titles], (page, link)
