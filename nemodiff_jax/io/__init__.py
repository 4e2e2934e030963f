"""Loading: a folder, a hub name or the embedded checkpoint; memory checks."""
