"""Breaks of decoding, texts, files and jobs; see `benchmarks.mutations`."""

from benchmarks.mutants import Mutation, jobs

MUTATIONS: tuple[Mutation, ...] = (*jobs.MUTATIONS,)
