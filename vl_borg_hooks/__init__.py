"""Consistent, deduplicated VictoriaLogs backups from the borgmatic you already run."""

__version__ = "0.1.0"
# The entry-point group that a package names its plugin under.
PLUGINS = "vl_borg_hooks"
