"""Training of tri-mode models."""
