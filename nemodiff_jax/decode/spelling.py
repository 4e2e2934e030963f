"""Passes of a trace with the texts of their tokens, for who looks at them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nemodiff_jax.decode.config import RowSettings
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.text.stream import TextStream
from nemodiff_jax.text.tokenizer import Tokenizer


class Spelling:
  """Spells the passes of one row as they come."""

  def __init__(
    self,
    tokenizer: Tokenizer,
    spell: Callable[[int], str],
    model: ModelConfig,
    row: RowSettings,
  ):
    """Before the first pass.

    Args:
      tokenizer: of the model.
      spell: the text of a token by itself.
      model: the architecture.
      row: settings, from `prompts.finish_row`.
    """
    self._stream = TextStream(tokenizer, row.stop)
    self._spell = spell
    self._mask = model.mask_id
    own = () if row.ignore_eos else model.eos_ids
    self._ends = {*own, *row.stop_token_ids}  # These are no text.
    self._told: set[int] = set()

  def push(
    self, passes: Sequence[Mapping[str, Any]], ended: bool
  ) -> dict[str, Any]:
    """`passes`, and the `pieces` of the ids that are new in them.

    Of every pass, `texts` has what each of its `tokens` adds to the output:
    all of them together are the output's text. A mask on the canvas is None.

    Args:
      passes: entries of `decode.trace`.
      ended: nothing follows.
    """
    made = [self._pass(p, ended and p is passes[-1]) for p in passes]
    shown = {
      i
      for p in made
      for i in (*p["canvas"], *p["proposed"], *p["tokens"])
      if i is not None
    }
    new = sorted(shown - self._told)
    self._told |= shown
    return {"passes": made, "pieces": {str(i): self._spell(i) for i in new}}

  def _pass(self, found: Mapping[str, Any], last: bool) -> dict[str, Any]:
    texts = [self._text(i) for i in found["tokens"]]
    if last and texts:
      shown = len(self._stream.text)
      texts[-1] += self._stream.close()[shown:]
    canvas = [None if i == self._mask else i for i in found["canvas"]]
    return {**found, "canvas": canvas, "texts": texts}

  def _text(self, token: int) -> str:
    if token in self._ends:
      return ""
    before = len(self._stream.text)
    self._stream.push(token)
    return self._stream.text[before:]
