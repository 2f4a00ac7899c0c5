"""The public API for plugins: the hooks, how plugins are found, what hooks are called with."""

from vl_borg_hooks.plugin.hookspecs import hookimpl

__all__ = ["hookimpl"]
