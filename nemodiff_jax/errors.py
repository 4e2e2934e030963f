"""The one error for what a user can mend."""


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
