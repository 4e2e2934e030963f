"""The model against transformers' Ministral3, and at the released sizes."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nemodiff_jax.io.checkpoint import tensor_table
from nemodiff_jax.io.hf_config import from_hf, to_hf
from nemodiff_jax.io.names import released_name
from nemodiff_jax.nn import model
from nemodiff_jax.nn.attention import CachedPass
from nemodiff_jax.nn.cache import (
  addresses,
  init_cache,
  own_pages,
  write,
)
from nemodiff_jax.nn.config import preset
from nemodiff_jax.nn.model import Transformer, count_params, init_params
from pallas_kernels.range_attention import PAGE
from tests import helpers
from tests.golden import make_ministral3 as golden
from tests.golden import make_rope as unusual

# Operation by operation a pass is a hundred programs.
cached_pass = jax.jit(model.cached_pass, static_argnums=0)
head = jax.jit(model.head, static_argnums=0)
GOLDEN = Path(golden.__file__).with_name("ministral3.npz")


def golden_params(config):
  """The golden weights in our tree."""
  table = tensor_table(config)
  theirs = {
    name.replace("encoder.", "model.").replace("diffusion_head", "lm_head"): t
    for name, t in table.items()
  }
  drawn = golden.weights({name: t.shape for name, t in theirs.items()})
  params = {}
  for name, value in drawn.items():
    node, tensor = params, table[released_name(name)]
    for key in tensor.path[:-1]:
      node = node.setdefault(key, {})
    node[tensor.path[-1]] = jnp.asarray(value.T if tensor.transposed else value)
  return params


def logits_of(config, params, tokens, bidirectional, cuts=()):
  """Logits of the tokens, passed in pieces that end at `cuts`."""
  module, size = Transformer(config), tokens.shape[1]
  table, out, start = own_pages(1, size + 3), [], 0
  cache = init_cache(config, table.size)
  for end in (*cuts, size):
    pos = jnp.arange(start, end, dtype=jnp.int32)[None]
    seen = jnp.full_like(pos, end) if bidirectional else pos + 1
    where = CachedPass(pos, pos, seen, table)
    hidden, cache = cached_pass(
      module, params, tokens[:, start:end], where, cache
    )
    out.append(head(module, params, hidden))
    start = end
  return jnp.concatenate(out, 1)[0]


@pytest.mark.parametrize("way", ["causal", "bidirectional"])
@pytest.mark.parametrize("name", golden.CASES)
def test_logits_agree_with_transformers(name, way):
  config = from_hf(
    {"model_type": "ministral3", **golden.SIZES, **golden.CASES[name]}
  )
  got = logits_of(
    config,
    golden_params(config),
    jnp.asarray(golden.tokens(), jnp.int32),
    way == "bidirectional",
  )
  want = np.load(GOLDEN)[f"{name}_{way}"]
  got = got if name == "yarn" else got[::7]
  assert np.abs(np.asarray(got) - want).max() <= 1e-4


@pytest.mark.parametrize("name", unusual.CASES)
def test_unusual_settings_agree_with_transformers(name):
  """Attention factors, borders and scales that are 1 in every release."""
  case = {"model_type": "ministral3", **golden.SIZES, **unusual.CASES[name]}
  config = from_hf(case)
  tokens = jnp.asarray(golden.tokens(), jnp.int32)
  got = np.asarray(logits_of(config, golden_params(config), tokens, False))
  want = np.load(GOLDEN.with_name("rope.npz"))[name]
  assert np.abs(got[:: unusual.EVERY] - want).max() <= 1e-4
  # And config.json, as it is written, says the same.
  assert from_hf(to_hf(config)) == config


def test_golden_crosses_the_query_scale():
  """Without the scale the golden logits are not met."""
  case = {"rope_parameters": golden.YARN | {"llama_4_scaling_beta": 0.0}}
  config = from_hf({"model_type": "ministral3", **golden.SIZES, **case})
  tokens = jnp.asarray(golden.tokens(), jnp.int32)
  got = np.asarray(logits_of(config, golden_params(config), tokens, False))
  want = np.load(GOLDEN)["yarn_causal"]
  assert np.abs(got - want)[:64].max() <= 1e-4
  assert np.abs(got - want)[64:].max() > 1e-3


def test_cached_pieces_match_one_pass(tiny):
  tokens = jnp.asarray(helpers.prompts_of(tiny.config, (90,)), jnp.int32)
  whole = logits_of(tiny.config, tiny.params, tokens, False)
  parts = logits_of(tiny.config, tiny.params, tokens, False, (1, 2, 40, 77))
  np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ("name", "billions"), [("3b", 3.83), ("8b", 8.49), ("14b", 13.51)]
)
def test_released_sizes(name, billions):
  config = preset(name)
  shapes = jax.eval_shape(
    functools.partial(init_params, config), jax.random.key(0)
  )
  assert round(count_params(shapes) / 1e9, 2) == billions
  table = tensor_table(config)
  for tensor in table.values():
    leaf = functools.reduce(lambda node, key: node[key], tensor.path, shapes)
    shape = leaf.shape[::-1] if tensor.transposed else leaf.shape
    assert shape == tensor.shape
  assert len(jax.tree.leaves(shapes)) == len(table) == 9 * config.num_layers + 3


def test_released_tensor_shapes():
  """Of the 14B, as its files' headers have them."""
  shapes = {name: t.shape for name, t in tensor_table(preset("14b")).items()}
  layer = "encoder.layers.39."
  assert shapes[layer + "self_attn.q_proj.weight"] == (4096, 5120)
  assert shapes[layer + "self_attn.k_proj.weight"] == (1024, 5120)
  assert shapes[layer + "self_attn.o_proj.weight"] == (5120, 4096)
  assert shapes[layer + "mlp.gate_proj.weight"] == (16384, 5120)
  assert shapes[layer + "mlp.down_proj.weight"] == (5120, 16384)
  assert shapes[layer + "input_layernorm.weight"] == (5120,)
  assert shapes["diffusion_head.weight"] == (131072, 5120)
  assert shapes["encoder.embed_tokens.weight"] == (131072, 5120)


def test_row_one_token_short_of_full(tiny):
  """A block that passes the end writes what fits and nothing else."""
  config, block, size = tiny.config, 4, PAGE - 1
  tokens = jnp.asarray(helpers.prompts_of(config, (size,)), jnp.int32)
  pos = jnp.arange(size, dtype=jnp.int32)[None]
  cache, table = init_cache(config, 3), jnp.ones((1, 1), jnp.int32)
  where = CachedPass(pos, pos, pos + 1, table)
  _, cache = cached_pass(tiny.module, tiny.params, tokens, where, cache)
  at = size + jnp.arange(block, dtype=jnp.int32)[None]
  draft = jnp.full((1, block), 9, jnp.int32)
  where = CachedPass(at, at, at + 1, table)
  _, after = cached_pass(tiny.module, tiny.params, draft, where, cache)
  for old, new in zip(cache.k + cache.v, after.k + after.v, strict=True):
    np.testing.assert_array_equal(old[1, :size], new[1, :size])
    assert (new[1, size] != 0).any() and not new[::2].any()


def test_write_drops_what_is_out_of_range():
  """Behind the table, and where the table has no page."""
  pool = jnp.zeros((3, PAGE, 1, 1))
  new = jnp.arange(1.0, 9.0).reshape(2, 4, 1, 1)
  table = jnp.asarray([[2, 3], [0, 1]], jnp.int32)
  slots = jnp.asarray(
    [[7, PAGE - 1, PAGE, 2 * PAGE], [PAGE + 5, 0, 2 * PAGE, 2**30]], jnp.int32
  )
  want = np.zeros((3, PAGE))
  want[2, 7], want[2, PAGE - 1], want[1, 5], want[0, 0] = 1, 2, 5, 6
  got = write(pool, new, addresses(slots, table, 3))[..., 0, 0]
  np.testing.assert_array_equal(got, want)


def test_bfloat16_logits_are_float32(tiny):
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params)
  module = Transformer(tiny.config, jnp.bfloat16)
  pos = jnp.arange(3, dtype=jnp.int32)[None]
  cache = init_cache(tiny.config, 1, jnp.bfloat16)
  hidden, cache = cached_pass(
    module, low, pos + 7, CachedPass(pos, pos, pos + 1, own_pages(1, 8)), cache
  )
  assert hidden.dtype == cache.k[0].dtype == jnp.bfloat16
  assert head(module, low, hidden).dtype == jnp.float32
