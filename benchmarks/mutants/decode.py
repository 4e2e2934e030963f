"""Breaks of decoding, texts, files and jobs; see `benchmarks.mutations`."""

from benchmarks.mutants import Mutation, checkpoints, jobs

MUTATIONS: tuple[Mutation, ...] = (*checkpoints.MUTATIONS, *jobs.MUTATIONS)
