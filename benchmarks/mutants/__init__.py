"""One-line breaks of the sources, and the tests that should notice them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutation:
  """Replaces the one occurrence of `old` by `new`.

  Attributes:
    what: is broken, in a few words.
    file: below the root of the project.
    old: lines of the file; found there exactly once.
    new: what stands there instead.
    tests: arguments of pytest; the tests they choose should fail.
  """

  what: str
  file: str
  old: str
  new: str
  tests: tuple[str, ...]


def of_library(
  area: str, what: str, file: str, old: str, new: str, test: str
) -> Mutation:
  """One of nemodiff_jax, that a test file, or tests chosen in it, notice."""
  suite, _, words = test.partition(" ")
  chosen = ("-k", words) if words else ()
  return Mutation(
    f"{area}: {what}", f"nemodiff_jax/{file}", old, new, (suite, *chosen)
  )
