"""A run that dies, or gets a signal, at every hook, external command and change on disk."""

from __future__ import annotations

import pytest

from tests.faults.conftest import MakeFlows, MakeSite
from tests.faults.harness import (
    SIGNALS,
    BackupFlow,
    Fault,
    Flow,
    Killer,
    RestoreFlow,
    StoppedPassFlow,
    check_recovered,
    lose_power,
    share_out,
    shuffled,
    survive_all,
)
from tests.faults.killer_plugin import HOOKS
from tests.parts.site import Site
from tests.parts.tally import NOT_REACHED, TALLY

OTHER_FAULTS = (*SIGNALS, "raise", "broken-output")
FLOWS = pytest.mark.parametrize("kind", [BackupFlow, RestoreFlow], ids=["before-create", "restore"])


def hook_of(event: str) -> str | None:
    """The hook that `event` is the start or the end of."""
    words = event.split()
    return words[1] if words[0] == "hook" and words[2] != "true" else None


def released_site(site: Site) -> Site:
    """A site with a published copy that `after-create` gives back."""
    site.install()
    site.hooks("before-create")
    return site


def test_every_hook_is_among_the_events(make_site: MakeSite, killer: Killer) -> None:
    events = killer.run(released_site(make_site()), "after-create").events
    for kind in (BackupFlow, RestoreFlow):
        flow = kind(make_site(), killer)
        try:
            events += flow.record()
        finally:
            flow.close()
    assert len(HOOKS) >= 14
    for hook in HOOKS:
        for edge in ("start", "end"):
            assert f"hook {hook} {edge} #1" in events
    for command in ("systemctl stop", "systemctl start", "rsync --recursive"):
        for edge in ("start", "end"):
            assert f"command {command} {edge} #1" in events


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "running"),
    [
        (BackupFlow, True),
        (StoppedPassFlow, True),
        (BackupFlow, False),
        (RestoreFlow, True),
        (RestoreFlow, False),
    ],
    ids=[
        "before-create",
        "before-create-stopped-pass",
        "before-create-found-stopped",
        "restore",
        "restore-found-stopped",
    ],
)
def test_sigkill_at_every_event(make_flows: MakeFlows, kind: type[Flow], running: bool) -> None:
    flows = make_flows(kind, running=running)
    events = flows[0].record()
    if kind is StoppedPassFlow:
        # Only there it differs.
        events = events[events.index("hook stop_service start #1") :]
        events = events[: events.index("hook after_start end #1")]
    survive_all(flows, [Fault(event) for event in events])


@pytest.mark.timeout(900)
@FLOWS
def test_every_other_fault_at_every_hook(make_flows: MakeFlows, kind: type[Flow]) -> None:
    flows = make_flows(kind)
    events = flows[0].record()
    hooks = {hook: [event for event in events if hook_of(event) == hook] for hook in HOOKS}
    faults = [
        Fault(edges[number % len(edges)], do)
        for edges in hooks.values()
        if edges
        for number, do in enumerate(OTHER_FAULTS)
    ]
    # An exception at both ends of a hook: before anybody else's step was done, and after.
    faults += [
        Fault(edge, "raise")
        for edges in hooks.values()
        for edge in edges
        if Fault(edge, "raise") not in faults
    ]
    survive_all(flows, faults, again_every=6)


@pytest.mark.timeout(900)
@FLOWS
def test_signals_between_the_hooks(make_flows: MakeFlows, kind: type[Flow]) -> None:
    flows = make_flows(kind)
    events = [event for event in flows[0].record() if not hook_of(event)]
    # Of a command only its end: its start is what was before it.
    events = [event for event in events if " start #" not in event or "rsync" in event]
    others = (*SIGNALS, "broken-output")
    faults = [Fault(event, others[number % 4]) for number, event in enumerate(events)]
    survive_all(flows, faults, again_every=6)


@pytest.mark.timeout(3600)
@FLOWS
def test_sigkill_at_lines_of_the_package(make_flows: MakeFlows, kind: type[Flow]) -> None:
    flows = make_flows(kind)
    lines = [event for event in flows[0].record(lines=True) if event.startswith("line")]
    assert len(lines) > 200
    before = TALLY.survived[NOT_REACHED]
    faults = shuffled([Fault(line) for line in lines], 20, seed=3)
    survive_all(flows, faults, lines=True)
    assert TALLY.survived[NOT_REACHED] - before <= len(faults) / 10


@pytest.mark.timeout(900)
def test_a_power_loss_at_every_change_on_disk_of_a_restore_is_undone_by_recover(
    make_flows: MakeFlows,
) -> None:
    flows = make_flows(RestoreFlow)
    events = flows[0].record()
    events = events[events.index("command systemctl stop end #1") :]
    kinds = ("disk", "hook is_healthy true", "hook start_service")

    def survive(flow: Flow, event: str) -> None:
        lose_power(flow, event)
        recovered = flow.site.hooks("recover", check=False)
        assert recovered.returncode == 0, recovered.stderr
        check_recovered(flow)
        TALLY.count("power loss: SIGKILL of the run and its guard (restore)")

    share_out(flows, [event for event in events if event.startswith(kinds)], survive)


@pytest.mark.timeout(900)
def test_recover_is_killed_too(make_flows: MakeFlows, killer: Killer) -> None:
    """A second recover finishes what the first one, killed at every event, did not."""
    flows = make_flows(RestoreFlow)
    restored = "hook start_service end #1"
    lose_power(flows[0], restored)
    assert (
        "was cut short: vl-borg-hooks recover finishes it" in flows[0].site.hooks("status").stdout
    )
    recorded = killer.run(flows[0].site, "recover")
    assert recorded.status == 0, recorded.stderr
    check_recovered(flows[0])

    def survive(flow: Flow, event: str) -> None:
        lose_power(flow, restored)
        killed = killer.run(flow.site, "recover", fault=Fault(event))
        if killed.fired is None:
            assert killed.status == 0, killed.stderr
            return
        again = flow.site.hooks("recover", check=False)
        assert again.returncode == 0, again.stderr
        check_recovered(flow)
        TALLY.count("SIGKILL (recover)")

    # Afterwards it only watches, asking again and again.
    events = recorded.events[: recorded.events.index("disk remove journal.json end #1") + 1]
    share_out(flows, [event for event in events if not event.startswith("hook s")], survive)
