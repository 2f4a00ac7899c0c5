"""Consistent, deduplicated VictoriaLogs backups from the borgmatic you already run."""

__version__ = "0.1.0"
