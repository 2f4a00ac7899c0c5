"""The stop window: stop, lock, start, proof; the guard; the state VictoriaLogs was found in."""
