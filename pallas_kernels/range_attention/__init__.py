"""Range attention: query (b, t) attends to the keys [k_start, k_end) of row b.

This is the only attention of the project. `range_attention` returns the
output and its log-sum-exp, so that `local_attention` (a block with itself) or
a second shard of keys can be added exactly with `merge`.
"""

from pallas_kernels.range_attention.api import PAGE, range_attention
from pallas_kernels.range_attention.chunks import matmul_precision
from pallas_kernels.range_attention.local import local_attention, merge

__all__ = [
  "PAGE",
  "local_attention",
  "matmul_precision",
  "merge",
  "range_attention",
]
