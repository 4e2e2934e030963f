"""What a training step does on eight devices, in its compiled program."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.collectives import collectives, crosses
from nemodiff_jax.nn.config import ModelConfig, RopeConfig
from nemodiff_jax.nn.model import init_params
from train import mesh
from train.corruption import Canvas, Corruption, Rows
from train.losses import Joint
from train.optimizer import make_optimizer
from train.stack import Stack, product, stack_layers
from train.step import Plan, init_state, make_step

LENGTH, ROWS = 32, 8
CONFIG = ModelConfig(
  vocab_size=64, hidden_size=16, intermediate_size=48, num_layers=3,
  num_heads=4, num_kv_heads=2, head_dim=8, max_positions=64,
  rope=RopeConfig(theta=1e4), mask_id=5, eos_ids=(2,),
)  # fmt: skip
ADAMW = dict(
  name="adamw", lr=1e-2, final_lr=1e-2, warmup=0, decay=0.1, b1=0.9, b2=0.95,
  eps=1e-8, weight_decay=0.1, clip=1.0,
)  # fmt: skip
SHAPES = [(1, 1, 1), (1, 8, 1), (2, 2, 2)]


@dataclasses.dataclass
class Run:
  """Two steps on a mesh."""

  layouts: list
  states: list
  metrics: list
  collectives: list


@functools.cache
def run(shape: tuple[int, int, int]) -> Run:
  devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
  grid = jax.sharding.Mesh(devices, mesh.AXES, axis_types=(AxisType.Auto,) * 3)
  params = stack_layers(init_params(CONFIG, jax.random.key(0)), 3)
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    optimizer = make_optimizer(ml_collections.ConfigDict(ADAMW), 9, params)
    state = mesh.place(grid, init_state(optimizer, params))
    plan = Plan(
      Stack(CONFIG, jnp.dtype("float32"), "full", grid),
      Joint(chunk=16),
      Corruption(),
      Canvas(LENGTH, 8, 5, (2,)),
    )
    rng = np.random.default_rng(0)
    rows = Rows(
      tokens=rng.integers(6, 64, (ROWS, LENGTH)).astype(np.int32),
      supervised=np.ones((ROWS, LENGTH), bool),
      start=np.zeros((ROWS, LENGTH), np.int32),
      example=np.arange(ROWS, dtype=np.int32),
    )
    rows = jax.device_put(rows, NamedSharding(grid, mesh.ROWS))
    hard = jax.device_put(np.zeros(64, bool), NamedSharding(grid, P()))
    step = make_step(plan, optimizer, layout=mesh.shardings(grid, state))
    program = step.lower(state, {}, rows, hard).compile()
    layouts, states, metrics = [], [], []
    for _ in range(2):  # The program refuses a state that lies elsewhere.
      layouts.append(jax.tree.map(lambda x: x.sharding, state))
      state, said = program(state, {}, rows, hard)
      states.append(jax.device_get(state))
      metrics.append(jax.device_get(said))
  return Run(layouts, states, metrics, collectives(program.as_text()))


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_steps_are_those_of_one_device(shape):
  alone, found = run(SHAPES[0]), run(shape)
  for a, b in zip(alone.metrics, found.metrics, strict=True):
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
    np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-4)
  for a, b in zip(
    *map(jax.tree.leaves, (alone.states[0], found.states[0])), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_a_state_lies_after_a_step_as_before_and_one_program_serves(shape):
  before, after = (jax.tree.leaves(x) for x in run(shape).layouts)
  assert before == after


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_no_layer_sends_its_activations_over_fsdp(shape):
  """Whatever crosses fsdp in the loop over layers is a weight's size."""
  loops = [c for c in run(shape).collectives if c.trips == CONFIG.num_layers]
  over = [c for c in loops if crosses(c, shape, 1)]
  assert over
  widths = {16, 48, 32, 8, 24, 2, 4, 6, 1, 12}  # Parts of a matrix's sides.
  for each in over:
    for _, dims in each.arrays:
      assert len([n for n in dims if n > 1]) <= 2, each
      assert 2 * LENGTH not in dims, each
      assert set(dims) <= widths, each


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_the_head_is_gathered_and_its_gradient_summed_once(shape):
  """Nothing of the head's size is sent in the loop over chunks."""
  head = CONFIG.hidden_size * CONFIG.vocab_size // shape[2]
  every = [
    (c, int(np.prod(dims)))
    for c in run(shape).collectives
    for _, dims in c.arrays
    if crosses(c, shape, 1)
  ]
  chunks = [size for c, size in every if c.trips == 2 * LENGTH // 16]
  assert max(chunks, default=0) < head
  gathers = [size for c, size in every if c.kind == "all-gather"]
  assert gathers.count(head) == 1


def test_a_kernels_gradient_is_not_rounded_to_bfloat16():
  """Against float64 sums of the same bfloat16 numbers."""
  rng = np.random.default_rng(1)
  draw = lambda *s: jnp.asarray(rng.standard_normal(s), jnp.bfloat16)
  x, kernel, d = draw(4, 64, 16), draw(16, 48), draw(4, 64, 48)
  out, back = jax.vjp(
    lambda w: product(None, "up_proj", x, w), kernel.astype(jnp.float32)
  )
  wide = lambda a: np.asarray(a.astype(jnp.float32), np.float64)
  expect = np.einsum("bti,bto->io", wide(x), wide(d))
  np.testing.assert_allclose(back(d)[0], expect, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    wide(out), wide(x) @ wide(kernel), rtol=2e-2, atol=0.1
  )
