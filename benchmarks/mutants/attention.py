"""Breaks of range attention by XLA and Triton; see `benchmarks.mutations`."""

from benchmarks.mutants import Mutation

LARGE = "test_range_attention.py large or merge_joins"
TRITON = "test_triton.py interpreted"


def _break(what: str, file: str, old: str, new: str, test: str) -> Mutation:
  """One that tests chosen in a file should notice."""
  suite, _, words = test.partition(" ")
  name = file.removesuffix(".py")
  return Mutation(
    f"{name}: {what}",
    f"pallas_kernels/range_attention/{file}",
    old,
    new,
    ("tests/pallas_kernels/" + suite, "-k", words),
  )


MUTATIONS = (
  _break(
    "maximum not kept", "reference.py",
    "peaks.append(jnp.maximum(peaks[-1], most))", "peaks.append(most)",
    LARGE,
  ),
  _break(
    "maximum by a larger logarithm of 2", "reference.py",
    "_largest(scores) / math.log(2)", "_largest(scores) / 0.6934", "test_range_attention.py huge",
  ),
  _break(
    "maximum of the first half of a chunk", "reference.py",
    "jnp.maximum(*jnp.split(scores, 2, -1))", "jnp.split(scores, 2, -1)[0]",
    "test_range_attention.py far_above",
  ),
  _break(
    "maximum starts at 0", "reference.py",
    "jnp.full(row, _MASKED / 2, acc)", "jnp.zeros(row, acc)", LARGE,
  ),
  _break(
    "no maximum in the local term", "local.py",
    "peak = scores.max(-1, keepdims=True)",
    "peak = 0 * scores[..., :1]", LARGE,
  ),
  _break(
    "no maximum in the merge of two terms", "local.py",
    "peak = jnp.maximum(lse_a, lse_b)", "peak = jnp.zeros_like(lse_a)", LARGE,
  ),
  _break(
    "output not decayed", "triton.py",
    "acc = acc * decay[:, None] +", "acc = acc +", TRITON,
  ),
  _break(
    "maximum not kept", "triton.py",
    "higher = tl.maximum(peak, tl.max(scores, 1))",
    "higher = tl.max(scores, 1)", TRITON,
  ),
  _break(
    "equal weights of the shares", "triton.py",
    "weights = jnp.exp(lse - peak[None])",
    "weights = jnp.exp(lse * 0)", TRITON,
  ),
)  # fmt: skip
