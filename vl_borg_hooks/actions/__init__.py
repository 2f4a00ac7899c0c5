"""One module per command: what it does and in which order."""
