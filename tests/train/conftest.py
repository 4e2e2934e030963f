"""Rows to train on; optimisers of optax need JAX's ordinary promotion."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import loop, settings, start
from train.corruption import Rows

BLOCK, LENGTH = 8, 32
# Keys of a run that its compiled step does not depend on.
OUTSIDE = "data.", "eval.", "validation.", "checkpoint.", "log_every"


@pytest.fixture(scope="module", autouse=True)
def two_devices():
  """Of the virtual devices, runs in this process see two."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, "device_count", lambda: 2)
    yield


@pytest.fixture(scope="session", autouse=True)
def one_program():
  """Runs of one configuration share their step: tracing takes seconds."""
  make, made = loop.Run.make_step, {}

  def shared(run, block):
    config = settings.flatten(run.config).items()
    asked = sorted((k, v) for k, v in config if not k.startswith(OUTSIDE))
    devices = [d.id for d in run.mesh.devices.flat]
    key = repr((loop.make_step, run.start.config, devices, block, asked))
    if key not in made:
      made[key] = make(run, block)
    return made[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop.Run, "make_step", shared)
    yield


@pytest.fixture(scope="session", autouse=True)
def one_tokenizer(tmp_path_factory):
  """Runs of one seed and source share the tokenizer that begins them."""
  make, made = start._make_folder, {}

  def shared(folder, config):
    key = repr((config.seed, config.data.source, config.model.to_dict()))
    if key not in made:
      made[key] = tmp_path_factory.mktemp("start")
      make(made[key], config)
    shutil.copytree(made[key], folder, dirs_exist_ok=True)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(start, "_make_folder", shared)
    yield


@pytest.fixture
def ordinary():
  """JAX's default promotion, for code that is not ours."""
  with jax.numpy_dtype_promotion("standard"):
    with jax.numpy_rank_promotion("allow"):
      yield


@pytest.fixture(scope="session")
def rows(tiny) -> Rows:
  """Three rows of two documents each; some openings are prompts."""
  rng = np.random.default_rng(3)
  low = max(tiny.config.mask_id, *tiny.config.eos_ids) + 1
  tokens = rng.integers(low, tiny.config.vocab_size, (3, LENGTH))
  start, supervised = np.zeros((3, LENGTH)), np.ones((3, LENGTH), bool)
  for row, (second, prompt) in enumerate([(16, 0), (8, 3), (24, 11)]):
    start[row, second:] = second
    supervised[row, :prompt] = False
    if row:  # In the first row a document is learned from its first token on.
      supervised[row, second : second + 2] = False
    supervised[row, -3:] = False
  return Rows(
    tokens=jnp.asarray(tokens, jnp.int32),
    supervised=jnp.asarray(supervised),
    start=jnp.asarray(start, jnp.int32),
    example=jnp.arange(3, dtype=jnp.int32),
  )
