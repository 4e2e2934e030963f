"""The one error for what a user can mend, and the name that was meant."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
  """Says what was expected, what was found and what to do.

  Commands print it without a traceback and exit with 2; a JSONL job turns it
  into an error line.

  Attributes:
    kind: a short stable name, such as 'bad_value' or 'too_long'.
  """

  def __init__(self, message: str, kind: str = "bad_value"):
    super().__init__(message)
    self.kind = kind


def nearest(name: str, known: Iterable[str], what: str) -> str:
  """' (nearest known WHAT: ...)', or '' where nothing is near."""
  found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  return f" (nearest known {what}: {found[0]!r})" if found else ""
