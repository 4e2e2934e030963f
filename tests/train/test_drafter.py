"""The drafter's loss against NumPy, its blocks against a dense verification."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import open_checkpoint
from nemodiff_jax.io.lora import load_lora
from tests.train import dense
from tests.train.conftest import BLOCK, LENGTH
from train import drafter, loop
from train.configs import tiny as config
from train.corruption import Canvas, Corruption
from train.export import export
from train.losses import Joint
from train.optimizer import make_optimizer
from train.stack import Stack, stack_layers
from train.start import Start
from train.step import Plan, init_state, make_step

RANK, ALPHA = 4, 8.0


@pytest.fixture(scope="module")
def plan(tiny) -> Plan:
  return Plan(
    Stack(tiny.config),
    Joint(),
    Corruption(draft=1.0, draft_known_first=1.0, edges="answer", shift=1.0),
    Canvas(LENGTH, BLOCK, tiny.config.mask_id, tiny.config.eos_ids),
  )


@pytest.fixture(scope="module")
def lora(tiny):
  """The tiny model's random LoRA, as the drafter holds it."""
  a, b = (np.stack(x).swapaxes(1, 2) for x in zip(*tiny.lora, strict=True))
  return {"lora": {"a": jnp.asarray(a), "b": jnp.asarray(b)}}


@pytest.fixture(scope="module")
def prepared(tiny, rows, plan):
  """What the loss needs of the rows."""
  hard = jnp.zeros(tiny.config.vocab_size, bool)
  prepare = jax.jit(lambda key: drafter.prepare_drafter(plan, key, rows, hard))
  return prepare(plan.key(jnp.int32(0)))


def softmax(x):
  x = np.exp(x - x.max())
  return x / x.sum()


def hybrid(z_d, z_t, top, temperature, choice, lam=None):
  """LK-hybrid and cross entropy of one slot, from the definition."""
  best = lambda x: set(np.argsort(-x, kind="stable")[:top].tolist())
  union = sorted(best(z_d) | best(z_t))
  p, q = (softmax(z[union] / temperature) for z in (z_t, z_d))
  lam = np.exp(-0.5 * np.minimum(p, q).sum()) if lam is None else lam
  kl, tv = (p * np.log(p / q)).sum(), 0.5 * np.abs(p - q).sum()
  cross = -np.log(softmax(z_d[union]))[union.index(int(choice))]
  return lam * kl + (1 - lam) * tv, cross


@pytest.mark.parametrize("top", [3, 11, 500])
def test_slot_losses_are_those_of_the_definition(top):
  rng = np.random.default_rng(0)
  z_d, z_t = (3 * rng.standard_normal((6, 40)) for _ in range(2))
  z_d[0] = z_t[0]
  how = drafter.DrafterLoss(top=top, temperature=3.0)
  choice = jnp.asarray(z_t.argmax(-1), jnp.int32)
  found = drafter.slot_losses(
    how, *(jnp.asarray(z, jnp.float32) for z in (z_d, z_t)), choice
  )
  expected = [
    hybrid(d, t, top, 3.0, t.argmax()) for d, t in zip(z_d, z_t, strict=True)
  ]
  np.testing.assert_allclose(
    np.stack(found, 1), np.array(expected), rtol=2e-5, atol=1e-6
  )


def test_the_share_of_kl_has_no_gradient():
  """Against differences in float64 that hold lam where it is."""
  rng = np.random.default_rng(2)
  z_d, z_t = (2 * rng.standard_normal(12) for _ in range(2))
  how = drafter.DrafterLoss(top=12, temperature=3.0)
  choice = z_t.argmax()
  loss = lambda z: drafter.slot_losses(
    how, z, jnp.asarray(z_t, jnp.float32), jnp.asarray(choice, jnp.int32)
  )[0]
  found = jax.grad(loss)(jnp.asarray(z_d, jnp.float32))
  lam = np.exp(-0.5 * np.minimum(softmax(z_t / 3), softmax(z_d / 3)).sum())
  at = lambda step: hybrid(z_d + step, z_t, 12, 3.0, choice, lam)[0]
  steps = 1e-6 * np.eye(12)
  expected = np.array([(at(x) - at(-x)) / 2e-6 for x in steps])
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_blocks_are_drafted_with_the_lora_and_verified_without(
  tiny, rows, plan, lora, prepared
):
  """Drafts, acceptance and losses of greedy slots, block by block."""
  how = drafter.DrafterLoss(
    rank=RANK, alpha=ALPHA, top=10, sampled=0.0, blocks=3
  )
  base = stack_layers(tiny.params, tiny.config.num_layers)
  noisy, counts = prepared.noisy, prepared.counts

  @jax.jit
  def run(lora):
    blocks = drafter.drafted_blocks(plan, how, lora, base, prepared)
    return blocks.tokens, drafter.make_loss(how)(plan, lora, base, prepared)

  tokens, (loss, sums) = run(lora)
  tokens = np.asarray(tokens).reshape(3, LENGTH)
  said = noisy.replace(tokens=jnp.asarray(tokens))
  with_lora = {"lora": (tiny.lora, ALPHA / RANK)}
  (eos,), mask = plan.canvas.eos_ids, plan.canvas.mask_id
  accepted, distill, cross, used = 0, 0.0, 0.0, 0
  for row in range(3):
    args = tiny.config, tiny.params, rows
    z_d, _ = dense.logits(*args, noisy, row, BLOCK, **with_lora)
    z_t, _ = dense.logits(*args, said, row, BLOCK, causal=True)
    plain = z_d.copy()
    plain[:, mask] = -np.inf
    masked = np.asarray(noisy.masked[row])
    assert (plain.argmax(-1)[masked] == tokens[row][masked]).all()
    for at in range(0, LENGTH, BLOCK):
      if not masked[at : at + BLOCK].any():
        continue
      used, losses, accepted = used + 1, [], accepted + 1
      for i in range(at, at + BLOCK):
        if not masked[i]:
          continue
        before = z_t[i - 1].copy()
        before[mask] = -np.inf
        choice = before.argmax()
        losses.append(hybrid(z_d[i], z_t[i - 1], 10, 3.0, choice))
        if tokens[row, i] != choice:
          break
        accepted += 1
        if choice == eos:
          break
      distill += np.mean([x for x, _ in losses])
      cross += np.mean([x for _, x in losses])
  assert used == counts
  np.testing.assert_allclose(sums["accepted"] * used, accepted, rtol=1e-6)
  np.testing.assert_allclose(sums["distill"] * used, distill, rtol=1e-4)
  np.testing.assert_allclose(sums["cross_entropy"] * used, cross, rtol=1e-4)
  np.testing.assert_allclose(loss * used, distill + cross, rtol=1e-4)


def test_a_draft_sees_nothing_beyond_its_first_slot(rows, plan, prepared):
  """From the first learned slot on, all is masked, as in decoding."""
  noisy, counts = prepared.noisy, prepared.counts
  used, beyond = 0, 0
  for row in range(3):
    learned, start = (np.asarray(x[row]) for x in (rows.supervised, rows.start))
    for at in range(0, LENGTH, BLOCK):
      one = lambda x, i=row, j=at: np.asarray(x)[i, j : j + BLOCK]
      masked, place, seen = map(
        one, (noisy.masked, noisy.position, noisy.tokens)
      )
      if not masked.any():
        continue
      used += 1
      first = masked.argmax()
      assert first > 0 and masked[first:].all()
      own = place < LENGTH
      own &= start[np.minimum(place, LENGTH - 1)] == start[place[0]]
      beyond += (masked & ~own).sum()
      within = own & learned[np.minimum(place, LENGTH - 1)]
      assert first == within[1:].argmax() + 1
      assert (seen[first:] == plan.canvas.mask_id).all()
      assert (seen[:first] == np.asarray(rows.tokens)[row, place[:first]]).all()
  assert used == counts and beyond


def test_a_few_steps_lower_the_loss_and_leave_the_model(
  tiny, rows, plan, ordinary
):
  base = stack_layers(tiny.params, tiny.config.num_layers)
  how = drafter.DrafterLoss(rank=RANK, alpha=ALPHA, top=10, sampled=0.0)
  lora = drafter.init_lora(tiny.config, RANK, jax.random.key(0))
  assert not np.asarray(lora["lora"]["b"]).any()
  c = config.get_config().optimizer
  c.update({"name": "adamw", "lr": 1e-2, "warmup": 1})
  optimizer = make_optimizer(c, 40, lora)
  step = make_step(
    plan, optimizer, drafter.prepare_drafter, drafter.make_loss(how)
  )
  state, losses = init_state(optimizer, lora), []
  for _ in range(24):
    hard = jnp.zeros(tiny.config.vocab_size, bool)
    state, metrics = step(state, base, rows, hard)
    losses.append(float(metrics["loss"]))
  assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


def test_the_export_is_read_as_the_drafter(tiny, lora, tmp_path):
  start = Start(tiny.config, open_checkpoint(None), False)
  base = stack_layers(tiny.params, tiny.config.num_layers)
  export(tmp_path / "out", start, base, lora, ALPHA)
  found = load_lora(tmp_path / "out" / "linear_spec_lora", tiny.config)
  for layer, (a, b) in zip(found, tiny.lora, strict=True):
    np.testing.assert_array_equal(layer.a, a.T)
    np.testing.assert_allclose(layer.b, b.T * (ALPHA / RANK), rtol=1e-6)
  with safe_open(tmp_path / "out" / "model.safetensors", "numpy") as file:
    kinds = {file.get_slice(name).get_dtype() for name in file.keys()}
  assert kinds == {"BF16"}
  opened = open_checkpoint(str(tmp_path / "out"))
  assert opened.config == tiny.config and opened.tokenizer is not None
  kernel = opened.load_params()["layers_1"]["mlp"]["up_proj"]["kernel"]
  wanted = tiny.params["layers_1"]["mlp"]["up_proj"]["kernel"]
  np.testing.assert_allclose(kernel, wanted, rtol=1e-2)


def test_an_export_replaces_a_checkpoint_as_a_whole(tiny, lora, tmp_path):
  """No drafter of another run is left beside new weights."""
  start = Start(tiny.config, open_checkpoint(None), False)
  base = stack_layers(tiny.params, tiny.config.num_layers)
  out = tmp_path / "out"
  export(out, start, base, lora, ALPHA)
  (out / "tekken.json").write_text("{}")  # Of another model.
  export(out, start, base, None, ALPHA)
  assert not (out / "linear_spec_lora").exists()
  assert not (out / "tekken.json").exists()
  (tmp_path / "notes").mkdir()
  (tmp_path / "notes" / "diary.txt").write_text("dear")
  with pytest.raises(UserError, match="notes: exists and is no checkpoint"):
    export(tmp_path / "notes", start, base, None, ALPHA)


def test_the_drafter_is_evaluated_at_its_scale(tiny, lora, monkeypatch):
  """alpha / R = 2 of the configuration, on what decodes."""
  c = config.get_config("drafter")
  c.drafter.update({"rank": RANK, "alpha": ALPHA})
  start = Start(tiny.config, open_checkpoint(None), False)
  base = stack_layers(tiny.params, tiny.config.num_layers)
  run = types.SimpleNamespace(config=c, start=start, drafts=True)
  models = []
  monkeypatch.setattr(
    loop.evaluate,
    "evaluate",
    lambda model, *_: models.append(model) or ({}, ""),
  )
  loop._evaluate(run, types.SimpleNamespace(params=lora), base, [])
  for layer, (a, b) in zip(models[0].weights.lora, tiny.lora, strict=True):
    np.testing.assert_allclose(layer.a, a.T, rtol=1e-6)
    np.testing.assert_allclose(layer.b, 2 * b.T, rtol=1e-6)
