"""What outlives a run: lock, journal, lease; the borgmatic that runs us, or another caller."""
