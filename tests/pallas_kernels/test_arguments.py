"""What range attention says of arguments that it cannot take."""

import jax.numpy as jnp
import pytest

from pallas_kernels.range_attention import (
  PAGE,
  local_attention,
  range_attention,
)
from tests.pallas_kernels.cases import make

# B, T, S, N, K, H
SHAPE = 2, 5, 9, 4, 2, 8


def bad(**changes):
  q, k, v, k_end, _ = map(jnp.asarray, make(SHAPE, 0))
  return {"q": q, "k": k, "v": v, "k_end": k_end} | changes


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"q": jnp.zeros((2, 5, 4))}, r"q should be \[B, T, N, H\]"),
    ({"q": jnp.zeros((3, 5, 4, 8))}, "agree in B and H"),
    ({"q": jnp.zeros((2, 5, 3, 8))}, "the 3 query heads should be a multiple"),
    ({"q": jnp.zeros((2, 5, 4, 8), jnp.bfloat16)}, "share one floating dtype"),
    ({"k_end": jnp.zeros((2, 4), jnp.int32)}, r"k_end should be .* \(2, 5\)"),
    ({"k_end": jnp.zeros((2, 5))}, "k_end should be integers"),
    ({"implementation": "cuda"}, "implementation should be one of"),
    ({"table": jnp.zeros((2, 1))}, r"table should be integers \[B, M\], got"),
    ({"table": jnp.zeros(2, jnp.int32)}, r"\[B, M\], got int32\(2,\)"),
    ({"table": jnp.zeros((3, 1), jnp.int32)}, "for each of the 2 rows of q"),
    ({"table": jnp.zeros((2, 0), jnp.int32)}, r"got table.shape=\(2, 0\)"),
    ({"table": jnp.zeros((2, 1), jnp.int32)}, "pages of 128 keys.*2, 9, 2, 8"),
    (
      {
        "table": jnp.zeros((2, 1), jnp.int32),
        "k": jnp.zeros((0, PAGE, 2, 8)), "v": jnp.zeros((0, PAGE, 2, 8)),
      },
      "pages of 128 keys.*0, 128, 2, 8",
    ),
  ],
)  # fmt: skip
def test_bad_arguments_are_named(changes, message):
  arguments = bad(**changes)
  names = "implementation", "table"
  how = {k: arguments.pop(k) for k in names if k in arguments}
  with pytest.raises(ValueError, match=message):
    range_attention(**arguments, **how)


def test_local_attention_names_a_bad_block():
  q, k, v, _, _ = map(jnp.asarray, make((1, 6, 6, 2, 2, 4), 0))
  with pytest.raises(ValueError, match="6 queries should be a multiple"):
    local_attention(q, k, v, 4)


@pytest.mark.parametrize("name", ["mosaic", "triton"])
def test_a_kernel_that_cannot_run_says_so(name):
  with pytest.raises(NotImplementedError, match="needs an NVIDIA GPU"):
    range_attention(**bad(), implementation=name)
