"""Breaks of training; see `benchmarks.mutations`."""

from benchmarks.mutants import Mutation

MUTATIONS: tuple[Mutation, ...] = ()
