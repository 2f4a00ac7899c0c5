"""One module a command: what it does, in which order."""
