"""A copy of a data directory: mirror, inventory, manifest, proof."""
