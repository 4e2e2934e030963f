"""Checkpoint layouts: names of tensors, and writing folders others can read."""
