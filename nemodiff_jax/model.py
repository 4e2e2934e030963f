"""A loaded checkpoint: the model, and the model card's calls on it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nemodiff_jax import backend
from nemodiff_jax.decode.config import (
  DecodeConfig,
  RowSettings,
  check_prompt,
  decode_config,
)
from nemodiff_jax.decode.generate import decode_ids
from nemodiff_jax.decode.memory import check_memory
from nemodiff_jax.decode.state import Weights
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import Checkpoint, open_checkpoint
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.nn.model import Transformer
from nemodiff_jax.nn.quantize import check_scheme, scheme_of
from nemodiff_jax.nn.sharding import make_mesh
from nemodiff_jax.text.chat import ChatTemplate
from nemodiff_jax.text.tokenizer import Tokenizer
from pallas_kernels.range_attention.dispatch import resolve

DTYPES = ("float32", "bfloat16")
_KEYS = 128  # Positions of a cache are a multiple of these.


@dataclasses.dataclass(frozen=True)
class Model:
  """A loaded checkpoint. All of it is data: no state changes by decoding.

  Attributes:
    config: architecture and special ids.
    tokenizer: None where the checkpoint has none.
    template: chat template; None where the checkpoint has none.
    module: the Linen module.
    weights: parameters and drafter.
    attention: implementation of range attention; None: chosen.
  """

  config: ModelConfig
  tokenizer: Tokenizer | None
  template: ChatTemplate | None
  module: Transformer
  weights: Weights
  attention: str | None = None

  def __repr__(self) -> str:
    """What it is, not its weights."""
    params = self.weights.params
    count = sum(x.size for x in jax.tree.leaves(params))
    kind = "ar only" if self.config.mask_id is None else "four modes"
    drafter = "with a drafter" if self.weights.lora else "no drafter"
    weights = jnp.dtype(self.module.dtype).name
    if (scheme := scheme_of(params)) != "none":
      weights = f"{scheme} and {weights}"
    return (
      f"Model({kind}, {count / 1e6:,.1f} M parameters, {weights},"
      f" {jax.default_backend()}, {drafter})"
    )

  def ar_generate(
    self,
    prompt_ids: Any,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    eos_token_id: int | Sequence[int] | None = None,
  ) -> tuple[np.ndarray, int]:
    """The model card's `ar_generate`: see `_card`."""
    return self._card(
      prompt_ids, "ar", max_new_tokens, temperature, eos_token_id
    )

  def generate(
    self,
    prompt_ids: Any,
    max_new_tokens: int,
    block_length: int,
    threshold: float | None = None,
    temperature: float = 0.0,
    eos_token_id: int | Sequence[int] | None = None,
  ) -> tuple[np.ndarray, int]:
    """The model card's `generate` (diffusion): see `_card`."""
    return self._card(
      prompt_ids,
      "diffusion",
      max_new_tokens,
      temperature,
      eos_token_id,
      block_length=block_length,
      threshold=threshold,
    )

  def linear_spec_generate(
    self,
    prompt_ids: Any,
    max_new_tokens: int = 128,
    block_length: int = 32,
    temperature: float = 0.0,
    eos_token_id: int | Sequence[int] | None = None,
    threshold: float = 0.0,
  ) -> tuple[np.ndarray, int]:
    """The model card's `linear_spec_generate`: see `_card`."""
    return self._card(
      prompt_ids,
      "linear_spec",
      max_new_tokens,
      temperature,
      eos_token_id,
      block_length=block_length,
      draft_threshold=threshold,
    )

  def _card(
    self, prompt_ids, mode, max_new_tokens, temperature, eos, **settings
  ) -> tuple[np.ndarray, int]:
    """Decodes equally long prompts as the released code is called.

    prompt_ids is [B, P], or [P] for one row.

    Returns:
      (ids, nfe): [B, P + n] prompts and outputs, rows that ended early filled
      with the last token they hold; and the largest nfe of the rows.
    """
    prompts = np.atleast_2d(np.asarray(prompt_ids))
    config = decode_config(self.config, mode, **settings)
    stops = None if eos is None else np.atleast_1d(eos).tolist()
    row = RowSettings(
      max_new_tokens=max_new_tokens,
      temperature=temperature,
      stop_token_ids=tuple(stops or ()),
      ignore_eos=stops is not None,
    )
    ids = [check_prompt(p.tolist(), row, self.config) for p in prompts]
    rows = [row] * len(ids)
    check_batch(self, config, ids, rows, len(ids))
    out = decode_ids(
      self.module, self.weights, config, ids, rows, attention=self.attention
    )
    width = max(len(o.token_ids) for o in out)
    full = [o.token_ids + o.token_ids[-1:] * width for o in out]
    tail = np.array([f[:width] for f in full], prompts.dtype)
    return np.concatenate([prompts, tail], 1), max(o.nfe for o in out)


def load(
  checkpoint: str | None = None,
  *,
  dtype: str | None = None,
  lora: str | None = None,
  attention: str | None = None,
  quantize: str = "none",
  mesh: str | None = None,
) -> Model:
  """Loads a checkpoint; programs are kept on disk as `backend.prepare` says.

  Args:
    checkpoint: a folder, 'org/name[@revision]' on the hub, or None for the
      embedded checkpoint.
    dtype: 'float32' or 'bfloat16'; None: float32 on CPU, else bfloat16.
    lora: PEFT folder of the drafter; None: the checkpoint's own, if it has
      one; 'none': no drafter.
    attention: 'xla', 'mosaic', 'triton' or None to choose.
    quantize: 'none', or 'int8' weights: half the bytes of bfloat16.
    mesh: 'tensor:n' to share the model among the first n devices.

  Raises:
    UserError: what is wrong with the checkpoint, and what to do.
  """
  backend.prepare()
  if dtype not in (None, *DTYPES):
    raise UserError(f"dtype should be one of {DTYPES}, got {dtype!r}.")
  opened = open_checkpoint(checkpoint)
  return load_model(opened, dtype, lora, attention, quantize, mesh)


def load_model(
  checkpoint: Checkpoint,
  dtype: str | None = None,
  lora: str | None = None,
  attention: str | None = None,
  quantize: str = "none",
  mesh: str | None = None,
) -> Model:
  """Reads the weights of an opened checkpoint; arguments as in `load`."""
  check_attention(attention, checkpoint.config, dtype)
  dtype, config = dtype or default_dtype(), checkpoint.config
  check_scheme(quantize)
  devices = None if mesh is None else make_mesh(mesh, config)
  scheme = checkpoint.loaded_scheme(quantize)
  count = devices.size if devices else 1
  check_memory(
    config, DecodeConfig(), dtype, 1, 1, 1, scheme=scheme, devices=count
  )
  module = Transformer(config, jnp.dtype(dtype), devices)
  drafter = checkpoint.load_lora(lora, dtype, devices)
  params = checkpoint.load_params(dtype, quantize, devices)
  weights = Weights(params, drafter)
  return Model(
    config,
    checkpoint.tokenizer,
    checkpoint.template,
    module,
    weights,
    attention,
  )


def check_attention(
  attention: str | None, config: ModelConfig, dtype: str | None = None
) -> None:
  """Raises a UserError if attention cannot be computed as asked."""
  queries = (1, 1, config.num_heads, config.head_dim)
  keys = (1, _KEYS, config.num_kv_heads, config.head_dim)
  try:
    resolve(attention, queries, keys, jnp.dtype(dtype or default_dtype()))
  except (NotImplementedError, ValueError) as e:
    raise UserError(f"attention={attention}: {e}") from e


def default_dtype() -> str:
  """float32 on CPU (where bfloat16 is several times slower), else bfloat16."""
  return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def check_batch(
  model: Model,
  config: DecodeConfig,
  prompts: Sequence[Sequence[int]],
  settings: Sequence[RowSettings],
  batch_size: int,
) -> None:
  """Raises a UserError if a batch cannot fit beside the parameters."""
  longest = max(map(len, prompts))
  most = max(s.max_new_tokens for s in settings)
  module = model.module
  check_memory(
    model.config,
    config,
    module.dtype,
    batch_size,
    longest,
    most,
    settings=settings,
    loaded=True,
    scheme=scheme_of(model.weights.params),
    devices=module.mesh.size if module.mesh else 1,
  )
