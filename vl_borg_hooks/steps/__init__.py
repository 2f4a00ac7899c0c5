"""The built-in plugins, on the same hooks as anybody's."""
