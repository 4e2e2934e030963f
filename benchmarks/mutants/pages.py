"""Breaks of range attention on pages; see `benchmarks.mutations`."""

from benchmarks.mutants import Mutation

_KERNELS = "pallas_kernels/range_attention/"
_TESTS = {
  "xla": ("test_range_attention.py", "last_bit or row_of_pages or how_long"),
  "triton": ("test_triton.py", "interpreted"),
  "hopper": ("test_mosaic.py", "without_races and hopper and 6x1x640x4x1x64"),
}


def _break(
  implementation: str, what: str, file: str, old: str, new: str
) -> Mutation:
  """One that the suite of an implementation should notice."""
  suite, words = _TESTS[implementation]
  return Mutation(
    f"pages, {implementation}: {what}",
    _KERNELS + file,
    old,
    new,
    ("tests/pallas_kernels/" + suite, "-k", words),
  )


MUTATIONS = (
  _break(
    "hopper", "of the first row", "mosaic_ring.py",
    "table[item.batch, ", "table[0, ",
  ),
  _break(
    "hopper", "counted from the item's first", "mosaic_ring.py",
    "lax.div(n * block, size)", "lax.div(j * block, size)",
  ),
  _break(
    "hopper", "place within the page dropped", "mosaic_ring.py",
    "lax.rem(n * block, size)", "0",
  ),
  _break(
    "hopper", "entries not clamped", "mosaic_ring.py",
    "lax.min(page, pages - 1)", "page",
  ),
  _break(
    "hopper", "k_end compared with the place within a page",
    "mosaic_hopper.py", "left = limit - (item.first + i) * keys",
    "left = limit - lax.rem(item.first + i, 2) * keys",
  ),
  _break(
    "xla", "of the first row", "chunks.py",
    "lax.dynamic_slice_in_dim(table, i", "lax.dynamic_slice_in_dim(0 * table + table[:1], i",
  ),
  _break(
    "xla", "an entry of P wraps", "chunks.py", 'mode="clip"', 'mode="wrap"',
  ),
  _break(
    "xla", "k_end compared with the place within a page", "chunks.py",
    "at = i * size\n", "at = i * 0\n",
  ),
  _break(
    "xla", "rows come back in another order", "reference.py",
    "back = jnp.argsort(order)", "back = order",
  ),
  _break(
    "xla", "chunks read at once are all the first", "reference.py",
    "jnp.arange(at_once, dtype=k_end.dtype)",
    "jnp.zeros(at_once, k_end.dtype)",
  ),
  _break(
    "xla", "the longest rows stop with the others", "reference.py",
    "last[few], last[0]", "last[few], last[few]",
  ),
  _break(
    "xla", "k_end beyond the table", "reference.py",
    "k_end = jnp.minimum(k_end, keys)", "pass",
  ),
  _break(
    "xla", "peaks that are no whole powers", "reference.py",
    "jnp.ceil(_largest(scores) / math.log(2))",
    "_largest(scores) / math.log(2)",
  ),
  _break(
    "xla", "the chunks of training", "api.py",
    "k_start is not None and table is None", "k_start is not None",
  ),
  _break(
    "triton", "of the first row", "triton.py",
    "table + batch * PAGES + number", "table + number",
  ),
  _break(
    "triton", "place within the page dropped", "triton.py",
    "(page - number) * PAGE + pos", "page * PAGE + tl.arange(0, BLOCK)",
  ),
  _break(
    "triton", "entries not clamped", "triton.py",
    "tl.minimum(page, POOL - 1)", "page",
  ),
)  # fmt: skip
