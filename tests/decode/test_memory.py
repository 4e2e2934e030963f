"""What a decode is said to need is what its compiled programs need."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from nemodiff_jax.decode import driver, memory, prefill, rows
from nemodiff_jax.decode.abstract import abstract_decode
from nemodiff_jax.decode.commit import reveal
from nemodiff_jax.decode.config import MODES, RowSettings, decode_config
from nemodiff_jax.nn.config import preset
from nemodiff_jax.nn.model import Transformer
from pallas_kernels.range_attention import PAGE
from tests import twin

SMALL = dataclasses.replace(
  preset("tiny"),
  vocab_size=32000,
  hidden_size=256,
  intermediate_size=1024,
  num_layers=2,
  num_heads=8,
  num_kv_heads=2,
  head_dim=64,
  max_positions=32768,
  block_size=32,
)


def compiled_bytes(decoder, weights, state, log, prompt):
  """Arguments of the loop, and the most that one of its programs adds."""
  batch = state.lengths.shape[0]
  masks = decoder.mode.masks(decoder.block)
  chunk = jax.ShapeDtypeStruct(
    (batch, prefill.chunk_width(prompt, masks)), jnp.int32
  )
  loop = driver.run.lower(decoder, weights, state, log)
  begin = prefill._begin.lower(
    decoder,
    weights,
    state.cache,
    prefill.Queries(state.table, chunk, chunk, state.lengths),
    state.rows,
  )
  loop, begin = (x.compile().memory_analysis() for x in (loop, begin))
  return loop.argument_size_in_bytes, max(
    loop.temp_size_in_bytes, begin.temp_size_in_bytes
  )


@pytest.mark.parametrize(
  ("mode", "batch", "prompt", "new", "row"),
  [
    ("ar", 1, 100, 100, {}),
    ("ar", 64, 100, 100, {}),
    pytest.param(
      "linear_spec",
      64,
      16,
      40,
      {},
      marks=pytest.mark.skipif(
        jax.__version_info__ < (0, 11),
        reason="the program of jax 0.10.2 takes 618 MB, not 223",
      ),
    ),
    ("linear_spec", 16, 100, 100, {"temperature": 0.7, "top_p": 0.9}),
    ("diffusion", 8, 2000, 200, {}),
    ("quadratic_spec", 64, 100, 100, {}),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        ("ar", 4, 4000, 100, {"logprobs": 20}),
        ("ar", 64, 16, 100, {"temperature": 0.7}),
        ("linear_spec", 64, 600, 100, {}),
      )
    ),
  ],
)
def test_estimate_is_what_is_compiled(mode, batch, prompt, new, row):
  config = decode_config(SMALL, mode)
  asked = RowSettings(new, **row)
  program = abstract_decode(
    Transformer(SMALL), config, batch=batch, prompt=prompt, row=asked
  )
  arguments, work = compiled_bytes(*program, prompt)
  needs = memory.estimate(
    SMALL, config, "float32", batch, prompt, new, settings=[asked]
  )
  assert needs.total == pytest.approx(arguments + work, rel=0.15)
  assert needs.work == pytest.approx(work, rel=0.3)
  given = needs.total - needs.work
  assert given == pytest.approx(arguments, rel=0.01)


@pytest.mark.parametrize("mode", ["diffusion", "linear_spec"])
def test_ranks_of_a_long_block_are_counted(mode):
  """A block of 200,000 is refused, not tried."""
  size = 1024
  kinds = (jnp.float32, bool)
  block = [jax.ShapeDtypeStruct((3, size), kind) for kind in kinds]
  row = [jax.ShapeDtypeStruct((3,), kind) for kind in (jnp.float32, jnp.int32)]
  used = jax.jit(reveal).lower(*block, *row).compile().memory_analysis()
  few = preset("tiny")
  config = decode_config(few, mode, block_length=size)
  needs = memory.estimate(few, config, "float32", 3, 1, 1)
  assert needs.work == pytest.approx(used.temp_size_in_bytes, rel=0.15)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prompt", [1, 1025, 16385, 33000, 131073, 262143])
def test_capacity_is_what_the_row_can_reach(mode, prompt):
  """Prompt, output and one block; an eighth of a power of two at most."""
  model = preset("8b")
  config = decode_config(model, mode)
  block = 1 if mode == "ar" else config.block_length
  for new in (1, 512):
    if prompt + new > model.max_positions:
      continue
    needed = prompt + new + block
    capacity = rows.cache_capacity(model, config, prompt, new)
    assert needed <= capacity <= max(needed + 127, needed * 1.25)
    assert capacity <= -(-(model.max_positions + block) // PAGE) * PAGE
    assert capacity % PAGE == 0


def test_block_length_costs_ar_nothing():
  config = decode_config(preset("8b"), "ar", block_length=200_000)
  assert rows.cache_capacity(preset("8b"), config, 100, 100) == 256


@pytest.mark.parametrize("mode", MODES)
def test_a_row_as_long_as_the_model_is_decoded(tiny, mode):
  """Its capacity ends at the model's positions and one block."""
  size, limit = 8, 96
  config = decode_config(tiny.config, mode, block_length=size)
  prompt = (list(range(20, 60)) * 3)[: limit - 5]
  row = RowSettings(5, ignore_eos=True)
  short = dataclasses.replace(tiny.config, max_positions=limit)
  capacity = rows.cache_capacity(short, config, len(prompt), 5)
  assert capacity == PAGE
  found = dataclasses.replace(tiny, config=short).decode(
    config, [prompt], [row]
  )
  model, given = twin.NumpyModel(tiny.config, tiny.params), (prompt, 5, ())
  want = {
    "ar": lambda: twin.ar(model, *given),
    "diffusion": lambda: twin.diffusion(model, *given, size, 0.9, size),
    "linear_spec": lambda: twin.linear_spec(model, *given, size, 0, False),
    "quadratic_spec": lambda: twin.quadratic_spec(model, *given, size),
  }[mode]()
  assert found[0].token_ids == want[0]
