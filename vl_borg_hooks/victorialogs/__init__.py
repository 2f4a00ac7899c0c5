"""All that we know of VictoriaLogs: its storage on disk, its lock, its HTTP API."""
