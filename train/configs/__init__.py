"""Configurations of training runs."""
