"""Attention kernels. Nothing here imports the rest of the project."""
