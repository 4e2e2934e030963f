"""What each pass did, for streams that ask for it (`include_passes`)."""

from typing import Any

from nemodiff_jax.decode.trace import masked
from nemodiff_jax.serve.contract import Event, Job
from nemodiff_jax.serve.served import Served
from nemodiff_jax.text.stream import TextStream


class Passes:
  """The passes of a choice, with the texts of their tokens."""

  def __init__(self, served: Served, job: Job):
    """Before the first pass of a job."""
    self._served = served
    self._stream = TextStream(served.text_tokenizer(), job.row.stop)
    self._told: set[int] = set()

  def push(self, event: Event) -> dict[str, Any]:
    """`passes` of an event, and the `pieces` of ids that are new in them.

    Of every pass, `texts` has what each of its `tokens` adds to the output:
    all of them together are the output's text.
    """
    passes, mask = [], self._served.config.mask_id
    last = event.passes[-1] if event.passes else None
    for found in event.passes:
      ids = found["tokens"]
      # The token that ends a row by its id is no text.
      ends = found is last and event.finish_reason == "stop"
      by_id = ends and not isinstance(event.matched, str)
      texts = [self._text(i) for i in ids[: len(ids) - by_id]]
      texts += [""] * (len(ids) - len(texts))
      if found is last and event.finish_reason is not None and texts:
        before = self._stream.text
        texts[-1] += self._stream.close()[len(before) :]
      passes.append(masked(dict(found), mask) | {"texts": texts})
    shown = {
      i
      for p in passes
      for i in (*p["canvas"], *p["proposed"], *p["tokens"])
      if i is not None
    }
    new = sorted(shown - self._told)
    self._told |= shown
    pieces = {str(i): self._served.spelled(i) for i in new}
    return {"passes": passes, "pieces": pieces}

  def _text(self, token: int) -> str:
    before = self._stream.text
    self._stream.push(token)
    return self._stream.text[len(before) :]
