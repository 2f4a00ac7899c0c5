"""Hosts, commands, files, signals: what the rest stands on."""
