"""What a run starts from: a checkpoint, or a new small model."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import Checkpoint, open_checkpoint
from nemodiff_jax.io.hf_config import to_hf
from nemodiff_jax.nn.config import ModelConfig, RopeConfig
from nemodiff_jax.nn.model import Params, init_params
from nemodiff_jax.text.chat import ChatTemplate
from nemodiff_jax.text.tokenizer import Tokenizer
from train.record import RECORD
from train.sources import Arithmetic, family_shares
from train.stack import stack_layers
from train.tokenizer import CHAT_TEMPLATE, MASK, train_tokenizer

# Copied beside the weights of an export.
_SIDE_FILES = (
  "tokenizer.json",
  "tokenizer.model",
  "tekken.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "generation_config.json",
  "chat_template.jinja",
  "chat_template.json",
)


@dataclasses.dataclass(frozen=True)
class Start:
  """A model whose weights are not read yet.

  Attributes:
    config: of the model, with what config.model changes in it.
    checkpoint: config.json, tokenizer, template, and weights unless new.
    new: whether the weights are made from the seed.
  """

  config: ModelConfig
  checkpoint: Checkpoint
  new: bool

  @property
  def tokenizer(self) -> Tokenizer | None:
    """The checkpoint's."""
    return self.checkpoint.tokenizer

  @property
  def template(self) -> ChatTemplate | None:
    """The checkpoint's."""
    return self.checkpoint.template

  def shapes(self) -> Params:
    """Shapes of what `params` gives; nothing is read."""
    make = lambda: stack_layers(
      init_params(self.config, jax.random.key(0)), self.config.num_layers
    )
    return jax.eval_shape(make)

  def params(self, seed: int, dtype: str = "float32") -> Params:
    """Parameters, layers stacked, in the host's memory.

    A device need not hold more than its part of them (`mesh.place`).
    """
    with jax.default_device(_host()):
      if self.new:
        params = _spread(init_params(self.config, jax.random.key(seed)))
      else:
        params = self.checkpoint.load_params(jnp.dtype(dtype))
      return stack_layers(params, self.config.num_layers)

  def hard_tokens(self, digits: bool) -> np.ndarray:
    """[V] which tokens are digits; none unless asked for.

    Raises:
      UserError: digits without a tokenizer that knows them.
    """
    size = self.config.vocab_size
    if not digits:
      return np.zeros(size, bool)
    if self.tokenizer is None:
      raise UserError(
        "config.hard is 'digits', which needs a tokenizer; the checkpoint has"
        " none."
      )
    texts = (self.tokenizer.decode([i]).strip() for i in range(size))
    return np.array([text.isdigit() for text in texts])

  def copy_side_files(self, folder: Path) -> None:
    """Puts tokenizer and template into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _SIDE_FILES:
      if (self.checkpoint.folder / name).exists():
        shutil.copyfile(self.checkpoint.folder / name, folder / name)


def open_start(
  config: ml_collections.ConfigDict, init_from: str | None, workdir: Path
) -> Start:
  """Opens the checkpoint, or makes a new model's folder in the workdir.

  Raises:
    UserError: a checkpoint that cannot be read; a new model for data other
      than arithmetic; a diffusion objective without a mask id.
  """
  if init_from is None and family_shares(config.data.source) is None:
    raise UserError(
      "--init_from should name the checkpoint to start from; only a model for"
      " config.data.source=arithmetic can be made anew."
    )
  folder = init_from or str(workdir / "start")
  if init_from is None:
    # A workdir becomes a run's when all it needs has been found.
    if jax.process_index() == 0 and not (workdir / RECORD).exists():
      _make_folder(workdir / "start", config)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("start")
  checkpoint = open_checkpoint(folder)
  if checkpoint.scheme != "none":
    raise UserError(
      f"{folder}: its weights are {checkpoint.scheme}; training starts from the"
      " checkpoint that they were made from."
    )
  changes = {
    name: value
    for name in ("mask_id", "block_size", "max_positions")
    if (value := config.model[name]) is not None
  }
  model = dataclasses.replace(checkpoint.config, **changes)
  noisy = config.objective == "drafter" or config.diffusion_weight
  if noisy and model.mask_id is None:
    raise UserError(
      f"{folder}: config.json names no mask_token_id, which diffusion needs;"
      " choose an unused token with --config.model.mask_id=ID."
    )
  return Start(model, checkpoint, init_from is None)


def gather(tree: Any) -> Any:
  """The tree; with several processes, all of it in the memory of each."""
  if jax.process_count() == 1:
    return tree
  return multihost_utils.process_allgather(tree, tiled=True)


def _host() -> jax.Device | None:
  try:
    return jax.local_devices(backend="cpu")[0]
  except RuntimeError:  # JAX_PLATFORMS leaves the CPU out.
    return None


def _make_folder(folder: Path, config: ml_collections.ConfigDict) -> None:
  """config.json, a tokenizer and a template for arithmetic."""
  shares = family_shares(config.data.source) or {}
  texts = Arithmetic(config.seed, shares)
  lines = (m["content"] for i in range(4000) for m in texts[i]["messages"])
  tokens = train_tokenizer(folder, lines, config.model.vocab_size)
  (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
  (folder / "tokenizer_config.json").write_text(
    json.dumps({"add_bos_token": True, "eos_token": "</s>"}, indent=2) + "\n"
  )
  c = config.model
  model = ModelConfig(
    vocab_size=tokens.vocab_size(),
    hidden_size=c.hidden_size,
    intermediate_size=c.intermediate_size,
    num_layers=c.num_layers,
    num_heads=c.num_heads,
    num_kv_heads=c.num_kv_heads,
    head_dim=c.head_dim,
    max_positions=c.max_positions,
    rope=RopeConfig(theta=1e4),
    block_size=c.block_size,
    mask_id=tokens.piece_to_id(MASK),
    bos_id=tokens.bos_id(),
    eos_ids=(tokens.eos_id(),),
  )
  text = json.dumps(to_hf(model), indent=2) + "\n"
  (folder / "config.json").write_text(text, encoding="utf-8")


def _spread(params: Params) -> Params:
  """Starting sizes for a narrow model: 1 / sqrt(fan in), unit embeddings."""
  layers = sum(k.startswith("layers_") for k in params)

  def scale(path, x):
    if x.ndim != 2:
      return x
    name = path[-2].key
    size = 1.0 if name == "embed_tokens" else x.shape[0] ** -0.5
    if name in ("o_proj", "down_proj"):
      size /= (2 * layers) ** 0.5
    return x / 0.02 * size * (0.5 if name == "diffusion_head" else 1.0)

  return jax.tree_util.tree_map_with_path(scale, params)
