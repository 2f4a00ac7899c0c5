"""The built-in plugins, on the same hooks as all others."""

from __future__ import annotations

# They are registered in this order, and their checks are made and reported in this order.
BUILT_IN = tuple(
    f"vl_borg_hooks.steps.{name}"
    for name in ("ready", "space", "service", "passes", "snapshot", "publish", "replace")
)
