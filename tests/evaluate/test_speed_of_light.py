"""The oracle of reveals: its target is real, and no order needs fewer passes."""

import itertools
import json

import numpy as np
import pytest

import nemodiff_jax as nd
from nemodiff_jax import api
from nemodiff_jax.errors import UserError
from nemodiff_jax.evaluate import speed_of_light
from nemodiff_jax.evaluate.speed_of_light import _Block
from tests import helpers
from tests.twin import NumpyModel


def model_of(tiny) -> api.Model:
  return api.Model(tiny.config, None, None, tiny.module, tiny.weights())


def test_the_target_is_what_serial_diffusion_decodes(tiny):
  """One slot a pass: --steps_per_block = C, by the decoder itself."""
  model = model_of(tiny)
  for prompt in helpers.prompts_of(tiny.config, (3, 11, 20)):
    found = speed_of_light.speed_of_light(model, prompt, 4, 13)
    (true,) = nd.generate(
      model, [prompt], mode="diffusion", block_length=4, steps_per_block=4,
      max_new_tokens=13,
    )  # fmt: skip
    assert found.token_ids == true.token_ids
    assert found.serial + found.blocks == true.nfe
    assert 1 <= found.oracle <= found.serial


def fewest(twin, prefix, first, target, mask, open_slots) -> int:
  """By trying every set of matching reveals: a breadth-first search."""
  level, passes = {tuple(first)}, 0
  while level:
    if any(all(c[i] != mask for i in open_slots) for c in level):
      return passes
    following = set()
    for canvas in level:
      logits = twin.block(prefix, list(canvas))
      logits[:, mask] = -float("inf")
      said = logits.argmax(1)
      right = [
        i for i in open_slots if canvas[i] == mask and said[i] == target[i]
      ]
      for size in range(1, len(right) + 1):
        for chosen in itertools.combinations(right, size):
          following.add(
            tuple(target[i] if i in chosen else t for i, t in enumerate(canvas))
          )
    level, passes = following, passes + 1
  return 99


def test_the_oracle_is_near_the_true_optimum(tiny):
  """Never below it, and at most one pass above it on these blocks."""
  model, twin = model_of(tiny), NumpyModel(tiny.config, tiny.params)
  mask, above = tiny.config.mask_id, []
  for seed in range(8):
    prefix = helpers.prompts_of(tiny.config, (9,), seed)[0]
    block = _Block(model, prefix, 5, 5, frozenset(tiny.config.eos_ids))
    first = [prefix[0], mask, mask, mask, mask]
    target, serial = block.serial(first)
    got = block.oracle(first, target)
    slots = [i for i in range(5) if target[i] != mask]
    best = fewest(twin, prefix, first, target, mask, slots)
    assert best <= got <= serial
    above.append(got - best)
  assert max(above) <= 1 and above.count(0) >= 6


def test_the_oracle_holds_back_what_would_lead_astray(tiny, monkeypatch):
  """Slots 1 and 2 look right at first; together they hide 3 and 4 for good."""
  block = _Block(model_of(tiny), [9], 5, 5, frozenset())
  mask, target = tiny.config.mask_id, [10, 11, 12, 13, 14]

  def proposals(canvas, slots):
    open_ = [i for i in range(5) if canvas[i] == mask]
    if open_ == [1, 2, 3, 4]:
      said = {1: 11, 2: 12, 3: 0, 4: 0}
    else:  # After slot 1 alone, all is seen; after both, nothing more.
      said = dict(enumerate(target)) if 2 in open_ else dict.fromkeys(open_, 0)
    sure = np.array([1 - i / 10 for i in slots])
    return np.array([said[i] for i in slots]), sure

  monkeypatch.setattr(block, "proposals", proposals)
  assert block.oracle([10, mask, mask, mask, mask], target) == 2


def test_a_checkpoint_without_masks_has_no_light(tiny):
  plain = helpers.make_tiny(mask_id=None)
  with pytest.raises(UserError, match="needs a mask id"):
    speed_of_light.speed_of_light(model_of(plain), [7], 4, 4)


@pytest.mark.slow
def test_the_command_shows_it_beside_the_modes(command, tmp_path):
  out = tmp_path / "run"
  code, said, err = command(
    "--tasks=embedded", "--limit=2", "--traced=1", "--modes=ar,diffusion",
    "--block_lengths=8", "--speed_of_light", f"--out={out}",
  )  # fmt: skip
  assert code == 0, err
  (row,) = json.loads((out / "results.json").read_text())["speed_of_light"]
  assert row["measured"]["ar"] == 1.0
  assert (
    row["oracle"] >= row["measured"]["diffusion C=8 t=0.9"] >= row["serial"]
  )
  assert (
    "oracle C=8" in said and "oracle C=8" in (out / "report.html").read_text()
  )
