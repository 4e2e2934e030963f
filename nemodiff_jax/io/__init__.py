"""Checkpoints: found by name, read, and checked as they are read."""
