"""Batches of prompts in, one result per prompt out."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from nemodiff_jax.decode import driver
from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.decode.prefill import prefill
from nemodiff_jax.decode.results import DecodedIds, read_results
from nemodiff_jax.decode.rows import cache_capacity, make_decoder, make_rows
from nemodiff_jax.decode.state import Decoder, DecodeState, Weights
from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.cache import KVCache
from nemodiff_jax.nn.model import Transformer
from nemodiff_jax.text.stream import TextStream
from nemodiff_jax.text.tokenizer import Tokenizer


def decode_ids(
  module: Transformer,
  weights: Weights,
  config: DecodeConfig,
  prompts: Sequence[Sequence[int]],
  settings: Sequence[RowSettings],
  *,
  batch: int | None = None,
  attention: str | None = None,
  tokenizer: Tokenizer | None = None,
) -> list[DecodedIds]:
  """Decodes one batch.

  In the compiled loop; pass by pass if a row has stop strings, since text
  cannot be matched on the device.

  Args:
    module: the model.
    weights: parameters, and the drafter if linear_spec is to use it.
    config: how to decode.
    prompts: token ids, each of at least one token.
    settings: of each row.
    batch: rows to pad to, so that batches share a program; default: none.
    attention: implementation of range attention; None: chosen.
    tokenizer: for stop strings.

  Raises:
    UserError: stop strings without a tokenizer.
  """
  if any(s.stop for s in settings):
    moments = stream_ids(
      module, weights, config, prompts, settings,
      batch=batch, attention=attention, tokenizer=tokenizer,
    )  # fmt: skip
    last = collections.deque(moments, maxlen=1).pop()
    return last.results(len(prompts))
  decoder, weights, state = start(
    module, weights, config, prompts, settings, batch, attention
  )
  state = driver.run(decoder, weights, state)
  return read_results(config, state, settings)[: len(prompts)]


@dataclasses.dataclass
class Kept:
  """The cache of one row between two replies of a conversation.

  Attributes:
    cache: None before the first reply.
    ids: the tokens whose keys and values it holds.
    reused: of these, how many the last prompt began with.
  """

  cache: KVCache | None = None
  ids: list[int] = dataclasses.field(default_factory=list)
  reused: int = 0

  @property
  def bytes(self) -> int:
    """Of the cache, on all devices."""
    if self.cache is None or self.cache.k[0].is_deleted():
      return 0
    return sum(x.nbytes for x in jax.tree.leaves(self.cache))

  def reuse(
    self, prompt: Sequence[int], capacity: int
  ) -> tuple[KVCache | None, int]:
    """Gives the cache away: (cache, leading tokens of the prompt it holds).

    At least the last token of the prompt is always read again.
    """
    cache, self.cache = self.cache, None
    if cache is None or cache.k[0].is_deleted():  # Lost inside a pass.
      self.reused = 0
      return None, 0
    if (more := capacity - cache.capacity) > 0:
      leaves, kind = jax.tree.flatten(cache)
      del cache
      room = ((0, 0), (0, more), (0, 0), (0, 0))
      for i, leaf in enumerate(leaves):  # Never two whole caches at once.
        leaves[i] = jnp.pad(leaf, room)
      cache = jax.tree.unflatten(kind, leaves)
    same = 0
    for a, b in zip(self.ids, prompt[:-1], strict=False):
      if a != b:
        break
      same += 1
    self.reused = same
    return cache, same

  def keep(self, prompt: Sequence[int], moment: "Moment") -> None:
    """Takes back the cache of a reply, ended or broken off."""
    state = moment.state
    count, length = int(state.count[0]), int(state.lengths[0])
    tokens = jax.device_get(state.output.token)[0, :count].tolist()
    self.ids = [*prompt, *tokens][:length]
    self.cache = state.cache


@dataclasses.dataclass(frozen=True)
class Moment:
  """A batch between two passes.

  Attributes:
    config: how it decodes.
    settings: of each row.
    state: donated to the next pass; read it before asking for the next.
    texts: the text stream of each row; None where there is no tokenizer.
  """

  config: DecodeConfig
  settings: Sequence[RowSettings]
  state: DecodeState
  texts: Sequence[TextStream | None]

  def results(self, rows: int | None = None) -> list[DecodedIds]:
    """What is known; a row that has not ended shows 'length'."""
    done = read_results(self.config, self.state, self.settings)[:rows]
    return [
      r if text is None else dataclasses.replace(r, text=text.text)
      for r, text in zip(done, self.texts, strict=False)
    ]


def stream_ids(
  module: Transformer,
  weights: Weights,
  config: DecodeConfig,
  prompts: Sequence[Sequence[int]],
  settings: Sequence[RowSettings],
  *,
  batch: int | None = None,
  attention: str | None = None,
  tokenizer: Tokenizer | None = None,
  traced: bool = False,
  kept: Kept | None = None,
) -> Iterator[Moment]:
  """Like `decode_ids`, but yields before the first and after every pass.

  The last moment's results are those of `decode_ids`.
  """
  if tokenizer is None and any(s.stop for s in settings):
    raise UserError("stop strings need a tokenizer; use stop_token_ids.")
  decoder, weights, begun = start(
    module, weights, config, prompts, settings, batch, attention, traced, kept
  )
  rows = begun.lengths.shape[0]
  texts: list[TextStream | None] = [None] * rows
  if tokenizer is not None:
    for row, s in enumerate(settings):
      texts[row] = TextStream(tokenizer, s.stop)
  for state in driver.passes(decoder, weights, begun, texts):
    yield Moment(config, settings, state, texts)


def start(
  module: Transformer,
  weights: Weights,
  config: DecodeConfig,
  prompts: Sequence[Sequence[int]],
  settings: Sequence[RowSettings],
  batch: int | None = None,
  attention: str | None = None,
  traced: bool = False,
  kept: Kept | None = None,
) -> tuple[Decoder, Weights, DecodeState]:
  """Prefills a batch; what is returned goes to `driver`."""
  decoder = make_decoder(module, config, settings, attention, traced)
  most = max(s.max_new_tokens for s in settings)
  longest = max(map(len, prompts))
  capacity = cache_capacity(module.config, config, longest, most)
  cache, cached = (
    (None, 0) if kept is None else kept.reuse(prompts[0], capacity)
  )
  if cache is not None:
    capacity = cache.capacity
  padding = max(0, (batch or 0) - len(prompts))
  padded = [*prompts, *[()] * padding]
  asked = [*settings, *[settings[0]] * padding]
  rows = make_rows(module.config, config, asked, padded)
  state = prefill(decoder, weights, padded, rows, capacity, cache, cached)
  return decoder, weights, state
