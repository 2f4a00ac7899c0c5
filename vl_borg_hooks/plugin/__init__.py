"""The public API for plugins: the hooks, how plugins are found, what hooks are called with."""
