"""The other way to a consistent copy: the server makes snapshots while it serves."""
