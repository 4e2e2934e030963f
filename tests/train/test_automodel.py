"""The joint loss is that of NeMo Automodel's HybridDiffusionLLMLoss."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tests.golden import make_automodel_loss as golden
from train.corruption import Noisy, Rows
from train.losses import Joint, align, count, weigh

FILE = Path(golden.__file__).parent / "automodel_loss.npz"


def test_loss_and_gradients_are_automodels():
  """Same logits, noise and masks; each branch divided by its own count."""
  given, expected = golden.inputs(), np.load(FILE)
  tokens = jnp.asarray(given["tokens"], jnp.int32)
  index = jnp.broadcast_to(
    jnp.arange(golden.LENGTH, dtype=jnp.int32)[None], tokens.shape
  )
  supervised = jnp.asarray(given["supervised"])
  zero = jnp.zeros_like(tokens)
  rows = Rows(tokens, supervised, zero, jnp.arange(golden.ROWS))
  prob = jnp.where(supervised, jnp.asarray(given["chance"]), 0.0)
  noisy = Noisy(
    tokens=tokens,
    target=tokens,
    mask_prob=prob,
    learned=supervised,
    masked=jnp.asarray(given["masked"]),
    position=index,
    before=zero,
    start=zero,
    level=jnp.asarray(given["chance"][:, 0]),
  )
  joint = Joint(diffusion_weight=golden.ALPHA, chunk=7)
  targets = align(rows, noisy, jnp.zeros(golden.VOCAB, bool), 1.0)
  counts = count(joint, targets, noisy)

  @jax.jit
  @jax.value_and_grad
  def loss(logits):
    return weigh(joint, jnp.eye(golden.VOCAB), logits, noisy, targets, counts)[
      0
    ]

  halves = tuple(
    jnp.asarray(given[k]) for k in ("noisy_logits", "causal_logits")
  )
  found, (noisy_gradient, causal_gradient) = loss(halves)
  np.testing.assert_allclose(found, expected["loss"], rtol=1e-6)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)
  close(noisy_gradient, expected["noisy_gradient"])
  close(causal_gradient, expected["causal_gradient"])
