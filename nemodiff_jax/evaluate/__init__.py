"""Measures a checkpoint: accuracy, tokens per forward, likelihood, speed."""
