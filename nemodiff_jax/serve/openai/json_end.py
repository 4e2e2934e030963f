"""Where a JSON value ends in a text that comes in pieces."""


class JsonEnd:
  """Looks for the end of an object or a list.

  Attributes:
    done: whether it has been seen.
  """

  def __init__(self):
    self.done = False
    self._depth = 0
    self._quoted = False
    self._escaped = False

  def push(self, text: str) -> int:
    """How much of `text` belongs to the value; call with what comes next."""
    if self.done:
      return 0
    for i, c in enumerate(text):
      if self._quoted:
        if self._escaped:
          self._escaped = False
        elif c == "\\":
          self._escaped = True
        elif c == '"':
          self._quoted = False
      elif c == '"':
        self._quoted = True
      elif c in "{[":
        self._depth += 1
      elif c in "}]":
        self._depth -= 1
      if self._depth <= 0 and not self._quoted:
        self.done = True
        return i + 1
    return len(text)
