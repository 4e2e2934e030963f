"""The table of shapes of range attention, and what every answer should be."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
  """One call of the op.

  `ends` says how k_end is drawn: 'ragged' per query, 'causal' within the last
  T keys of each row, 'block' alike for all queries of a row, 'whole' beyond
  the last key, 'mixed' with the first row and all first queries empty, or by
  numbers, one for each row.
  `processors` is the size of the chip that the call is cut up for.
  `scale` is that of the queries: with 40 one key takes nearly all the weight,
  with 0 all keys weigh the same and no weight is rounded; with 400 exp() of a
  score, or of half of it, is beyond float32.
  """

  batch: int
  queries: int
  keys: int
  heads: int
  kv_heads: int
  dim: int
  ends: str | tuple[int, ...] = "ragged"
  processors: int = 2
  scale: float = 1

  @property
  def shape(self) -> tuple[int, ...]:
    return (
      self.batch, self.queries, self.keys, self.heads, self.kv_heads, self.dim
    )  # fmt: skip

  def __str__(self) -> str:
    ends = self.ends if isinstance(self.ends, str) else "given"
    return "x".join(map(str, self.shape)) + f"-{ends}-{self.scale}"


CASES = (
  # One token at a time. A long row, beyond S, among short ones; one that ends
  # with a tile, and one that is negative. Blocks with a piece of two rows.
  # More partial results than the merge takes at a time, in two heads the
  # largest behind the first eight.
  Case(4, 1, 776, 4, 1, 64, (786, 128, -70, 5), 8, scale=4),
  # The ring goes around; the second row begins at an odd place of it.
  Case(2, 4, 600, 4, 1, 128, (300, 600), 1),
  Case(1, 4, 600, 4, 1, 128, "block", scale=0),
  Case(1, 32, 128, 4, 1, 128, "causal", scale=40),  # 32 x 4 heads: 128 rows.
  # One key or two: all that a row sees is far above 0, or far below.
  Case(2, 3, 72, 4, 1, 64, (1, 2), scale=400),
  Case(2, 5, 72, 6, 2, 64, "mixed"),  # Rows that fill no tile; empty rows.
  Case(1, 72, 136, 4, 1, 64, "causal"),  # Three tiles of rows, two blocks.
)
SLOW_CASES = (
  Case(2, 1, 200, 4, 1, 64),
  Case(1, 32, 128, 4, 1, 128, "causal"),
  Case(2, 1, 320, 4, 1, 64, (320, 70), scale=40),
  Case(1, 40, 256, 4, 1, 64, "causal", scale=40),
  Case(1, 72, 136, 4, 1, 64, "causal", 8),
  Case(8, 2, 1024, 4, 1, 64, (1024, 64, 3, 0, 128, 65, 63, -1), 8),
  Case(2, 1, 512, 8, 8, 128, "ragged", 16),
  Case(2, 1, 448, 16, 2, 128, "mixed", 16),
  Case(1, 32, 1024, 32, 8, 128, "causal", 132),
  Case(2, 32, 520, 8, 2, 128, "block", 16),
  Case(1, 72, 400, 8, 2, 128, "block", 8),
  Case(1, 272, 320, 4, 1, 64, "causal"),
  Case(1, 272, 192, 4, 1, 128, "ragged", 148),
  Case(2, 40, 264, 5, 1, 64, "mixed"),
  Case(1, 24, 264, 12, 2, 128, "ragged", 4),
  Case(1, 20, 128, 7, 1, 64, "whole"),
  Case(1, 18, 64, 16, 2, 64, "whole"),  # No mask and no split.
  Case(3, 2, 40, 2, 2, 64, "mixed"),  # Fewer keys than a tile.
  Case(1, 3, 8, 4, 4, 64),
)

# With pages of 128 keys: two tiles of the kernels.
PAGED_CASES = (
  # One token at a time: rows that end beyond S, with a page, in its first tile,
  # between its tiles, in a later one, with no key.
  Case(6, 1, 640, 4, 1, 64, (645, 128, 5, 192, 330, -70), 6),
  Case(2, 5, 256, 6, 2, 128, "mixed"),  # Empty rows; two key heads.
)
SLOW_PAGED_CASES = (
  Case(1, 32, 512, 4, 1, 64, "causal", 3),  # Many tiles, in turn.
  Case(3, 1, 1024, 4, 1, 128, (1024, 320, 770), 8),
  Case(2, 32, 512, 8, 2, 128, "block", 16),
  Case(1, 72, 384, 4, 1, 64, "causal", 8),
  Case(4, 2, 2048, 8, 2, 64, "ragged", 16),
  Case(1, 32, 128, 4, 1, 128, "causal", scale=40),  # One page.
)


def draw_ends(case: Case, rng: np.random.Generator) -> np.ndarray:
  """k_end [B, T] int32 of a case."""
  batch, queries, keys = case.shape[:3]
  last = rng.integers(max(keys - 64, min(queries, keys)), keys + 1, (batch, 1))
  steps = np.arange(queries)
  match case.ends:
    case "causal":
      ends = np.clip(last - queries + 1 + steps, 0, None)
    case "block":
      ends = np.broadcast_to(last, (batch, queries))
    case "whole":
      ends = np.full((batch, queries), keys + 3)
    case tuple():
      ends = np.repeat(np.array(case.ends)[:, None], queries, 1)
    case _:
      ends = rng.integers(0, keys + 1, (batch, queries))
      ends[rng.random(ends.shape) < 0.2] = 0
      if case.ends == "mixed":
        ends[0] = ends[:, 0] = 0
  return ends.astype(np.int32)


def make(shape, seed):
  """float32 q, k, v and ranges k_end, k_start of a shape."""
  b, t, s, n, k, h = shape
  rng = np.random.default_rng(seed)
  draw = lambda *size: rng.standard_normal(size).astype(np.float32)
  k_end = rng.integers(0, s + 1, (b, t)).astype(np.int32)
  k_end[rng.random((b, t)) < 0.2] = 0
  k_start = (k_end * rng.random((b, t))).astype(np.int32)
  return draw(b, t, n, h), draw(b, s, k, h), draw(b, s, k, h), k_end, k_start


def dense(q, k, v, mask):
  """Float64 attention over a mask [B, T, S]; empty rows give 0 and -inf."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  group = q.shape[2] // k.shape[2]
  k, v = np.repeat(k, group, 2), np.repeat(v, group, 2)
  s = np.einsum("btnh,bsnh->btns", q, k) / np.sqrt(q.shape[-1])
  s = np.where(mask[:, :, None], s, -np.inf)
  peak = np.maximum(s.max(-1, keepdims=True), -1e300)
  p = np.exp(s - peak)
  total = p.sum(-1, keepdims=True)
  out = np.einsum("btns,bsnh->btnh", p / np.where(total, total, 1), v)
  with np.errstate(divide="ignore"):
    return out, (peak + np.log(total))[..., 0]


def in_pages(k, v, k_end, seed=0, page=128):
  """Keys and values [B, S, K, H] as pools of shuffled pages, and the table.

  Pages that hold the same in two rows are one. NaN lies beyond the last key
  that any row sees of a page, and in pages that no row has. An entry beyond a
  row's k_end is such a page, or P; so is that of the last page.
  """
  rng = np.random.default_rng(seed)
  last = np.clip(k_end.max(1), 0, k.shape[1])
  table = np.full((len(k), -(-k.shape[1] // page)), -1)
  contents, seen = {}, {}
  for row, end in enumerate(last):
    for m, low in enumerate(range(0, end, page)):
      content = k[row, low : low + page], v[row, low : low + page]
      name = b"".join(x.tobytes() for x in content)
      table[row, m], _ = contents.setdefault(name, (len(contents), content))
      seen[name] = max(seen.get(name, 0), end - low)
  count = len(contents) + 3
  places = rng.permutation(count - 1)[: len(contents)]
  places[:1] = count - 1
  pools = np.full((2, count, page, *k.shape[2:]), np.nan, k.dtype)
  for name, (number, content) in contents.items():
    for pool, x in zip(pools, content, strict=True):
      pool[places[number], : seen[name]] = x[: seen[name]]
  unused = rng.choice(np.setdiff1d(np.arange(count), places), table.shape)
  unused[rng.random(table.shape) < 0.5] = count
  found = np.append(places, -1)[table]
  table = np.where(table < 0, unused, found)
  table[table == count - 1] = count
  return *pools, table.astype(np.int32)
