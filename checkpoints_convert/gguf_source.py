"""Reads a GGUF file of the Llama family: config and tensors.

Quantised types are made float by the `gguf` package's own functions.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_convert import convert, gguf_keys, hf_folder, values
from checkpoints_convert.lazy import Lazy
from nemodiff_jax.errors import UserError, nearest
from nemodiff_jax.io import names
from nemodiff_jax.io.checkpoint import tensor_table
from nemodiff_jax.nn.config import ModelConfig, RopeConfig


class Gguf:
  """An opened GGUF file.

  Attributes:
    path: of the file.
    config: of its model, without a mask.
  """

  def __init__(self, path: Path):
    """Reads the metadata.

    Raises:
      UserError: no complete GGUF file, or none of the Llama family.
    """
    self._gguf = _package(path)
    try:
      self._reader = self._gguf.GGUFReader(path)
    except Exception as e:  # The reader checks little: any error can come.
      raise UserError(
        f"{path}: not a complete GGUF file of known types ({e})."
      ) from e
    self.path = path
    self._tensors = {
      names.gguf_name(t.name): t
      for t in self._reader.tensors
      if "attn_rot_embd" not in t.name  # A buffer of old files.
    }
    try:
      self.config = self._config()
    except UserError as e:
      raise UserError(f"{path}: {e}") from e
    except TypeError as e:
      raise UserError(
        f"{path}: a value of the metadata is of the wrong type ({e})."
      ) from e

  def get(self, key: str, default: Any = None) -> Any:
    """A value of the metadata."""
    field = self._reader.fields.get(key)
    return default if field is None else field.contents()

  def items(self, dtype: Any = None) -> list[convert.Item]:
    """The model's tensors under their released names, float32 by default.

    Raises:
      UserError: a tensor that is missing, unknown, of another shape, or of a
        type that cannot be made float.
    """
    table = tensor_table(self.config)
    for name in self._tensors:
      if name not in table:
        scales = name.startswith(("rope_freqs", "rope_factors"))
        why = (
          " (RoPE factors, as of Llama 3.1, are not computed here)"
          if scales
          else nearest(name, table, "name")
        )
        raise UserError(f"{self.path}: unknown tensor {name!r}{why}.")
    items = []
    for name, place in table.items():
      self._check(name, place.shape)
      kind = np.dtype(dtype or np.float32)
      read = functools.partial(self._read, name, kind)
      value = Lazy(place.shape, kind, read)
      items.append(convert.Item(name, hf_folder.SINGLE, value, place))
    return items

  def _config(self) -> ModelConfig:
    fields = {key: self.get(key) for key in self._reader.fields}
    gguf_keys.check_file(self.path.name, fields)
    kind = self.get("general.architecture")
    if kind != "llama":
      raise UserError(f"general.architecture should be 'llama', got {kind!r}.")
    heads = self._need("llama.attention.head_count")
    hidden = self._need("llama.embedding_length")
    head_dim = self.get("llama.attention.key_length", hidden // (heads or 1))
    gguf_keys.check_keys("llama", fields, head_dim)
    ends = (
      self.get(f"tokenizer.ggml.{x}_token_id") for x in ("eos", "eot", "eom")
    )
    return ModelConfig(
      vocab_size=len(self._need("tokenizer.ggml.tokens")),
      hidden_size=hidden,
      intermediate_size=self._need("llama.feed_forward_length"),
      num_layers=self._need("llama.block_count"),
      num_heads=heads,
      num_kv_heads=self._one("llama.attention.head_count_kv") or heads,
      head_dim=head_dim,
      max_positions=self._need("llama.context_length"),
      rope=RopeConfig(theta=self.get("llama.rope.freq_base", 10000.0)),
      rms_norm_eps=self._need("llama.attention.layer_norm_rms_epsilon"),
      tie_embeddings="diffusion_head.weight" not in self._tensors,
      bos_id=self.get("tokenizer.ggml.bos_token_id"),
      eos_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
    )

  def _one(self, key: str) -> Any:
    """A value that may be written once for each layer; None: missing."""
    return gguf_keys.one_value(key, self.get(key))

  def _need(self, key: str) -> Any:
    value = self.get(key)
    if key != "tokenizer.ggml.tokens":
      value = gguf_keys.one_value(key, value)
    if value is None:
      raise UserError(f"{key} is missing.")
    return value

  def _check(self, name: str, shape: tuple[int, ...]) -> None:
    tensor = self._tensors.get(name)
    if tensor is None:
      raise UserError(f"{self.path}: tensor {name!r} is missing.")
    found = tuple(int(n) for n in reversed(tensor.shape))
    if found != shape:
      raise UserError(
        f"{self.path}: tensor {name!r} should have shape {shape} by the"
        f" metadata, got {found}."
      )
    try:
      self._gguf.dequantize(tensor.data[:1], tensor.tensor_type)
    except NotImplementedError as e:
      raise UserError(
        f"{self.path}: tensor {name!r} is of type {tensor.tensor_type.name},"
        " which cannot be made float; use a file of another quantisation."
      ) from e

  def _read(self, name: str, dtype: np.dtype) -> np.ndarray:
    tensor = self._tensors[name]
    value = self._gguf.dequantize(tensor.data, tensor.tensor_type)
    what = f"{self.path}: tensor {name!r}"
    values.check_finite(value, what)
    heads = {
      "q_proj.weight": self.config.num_heads,
      "k_proj.weight": self.config.num_kv_heads,
    }
    for end, count in heads.items():
      if name.endswith(end):
        value = unpermute(value, count)
    return values.cast(value, dtype, what)


def unpermute(value: np.ndarray, heads: int) -> np.ndarray:
  """Rows of q or k from GGUF's order (pairs side by side) to two halves."""
  rows, width = value.shape
  paired = value.reshape(heads, rows // heads // 2, 2, width)
  return paired.swapaxes(1, 2).reshape(rows, width)


def _package(path: Path) -> Any:
  try:
    import gguf
  except ImportError as e:
    raise UserError(
      f"{path}: to read GGUF files, install nemodiff-jax[convert]."
    ) from e
  return gguf
