"""The Python API, and the model card's three functions."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import nemodiff_jax as nd
from nemodiff_jax import api
from nemodiff_jax.decode import memory
from nemodiff_jax.decode.config import ROW_FIELDS, decode_config
from nemodiff_jax.nn.config import preset
from nemodiff_jax.serve.cache import new_cache
from tests import helpers


@pytest.fixture(scope="module")
def model(folder):
  return nd.load(str(folder))


def test_generate_takes_texts_and_ids(model):
  one = nd.generate(model, "w9 w8", max_new_tokens=4)
  assert len(one) == 1 and one[0].prompt_tokens == 3
  assert nd.generate(model, [1, 9, 8], max_new_tokens=4) == one
  assert nd.generate(model, np.array([1, 9, 8]), max_new_tokens=4) == one
  both = nd.generate(model, ["w9 w8", [7, 7]], max_new_tokens=4)
  assert both[0] == one[0] and both[1].prompt_tokens == 2
  assert nd.generate(model, []) == []


def test_modes_change_at_launch_alone(model):
  prompts = helpers.prompts_of(model.config, (3, 9, 5))
  settings = {"max_new_tokens": 20, "temperature": 0.8, "seed": 3}
  outs = {
    mode: nd.generate(model, prompts, mode=mode, batch_size=2, **settings)
    for mode in ("ar", "diffusion", "linear_spec", "quadratic_spec")
  }
  texts = {m: [o.text for o in out] for m, out in outs.items()}
  assert texts["ar"] == texts["linear_spec"] == texts["quadratic_spec"]
  assert outs["ar"][0].accepted is None is outs["diffusion"][0].accepted
  assert sum(outs["linear_spec"][0].accepted) >= 19


def test_each_prompt_may_have_settings_of_its_own(model):
  prompts = helpers.prompts_of(model.config, (3, 9, 5))
  own = [{"max_new_tokens": 2}, nd.RowSettings(9), {"seed": 4}]
  common = {"temperature": 0.8, "max_new_tokens": 5, "mode": "ar"}
  got = nd.generate(model, prompts, own, batch_size=2, **common)
  assert [o.completion_tokens for o in got] == [2, 9, 5]
  alone = nd.generate(model, prompts[2], **common | {"seed": 4})
  assert got[2] == alone[0]
  assert (
    got[1] == nd.generate(model, prompts[1], mode="ar", max_new_tokens=9)[0]
  )
  with pytest.raises(nd.UserError, match="one per prompt, got 2 for 3"):
    nd.generate(model, prompts, own[:2])
  with pytest.raises(nd.UserError, match="unknown setting 'sed' of a prompt"):
    nd.generate(model, prompts, [{}, {"sed": 3}, {}])
  with pytest.raises(nd.UserError, match=r"'mode' is one for all .* mode=, no"):
    nd.generate(model, prompts, [{"mode": "ar"}] * 3)


def test_outputs_come_as_they_are_done(model):
  prompts = helpers.prompts_of(model.config, (3, 9, 5))
  own = [{"max_new_tokens": 40}, {"max_new_tokens": 2}, {"max_new_tokens": 3}]
  how = {"mode": "ar", "ignore_eos": True, "batch_size": 2}
  done = list(nd.generate_iter(model, prompts, own, **how))
  assert [index for index, _ in done] == [1, 2, 0]
  assert [o for _, o in sorted(done, key=lambda x: x[0])] == nd.generate(
    model, prompts, own, **how
  )


def test_without_a_mode_the_text_is_that_of_ar_in_any_width(model):
  prompts = helpers.prompts_of(model.config, (3, 9, 5))
  how = {"max_new_tokens": 30, "temperature": 0.7, "seed": 2}
  auto, ar = (
    nd.generate(model, prompts, **how),
    nd.generate(model, prompts, mode="ar", **how),
  )
  assert [o.token_ids for o in auto] == [o.token_ids for o in ar]
  assert {o.mode for o in auto} == {"linear_spec"}
  (fixed,) = nd.generate(model, prompts[0], block_length=4, **how)
  assert fixed.mode == "linear_spec" and max(fixed.accepted) <= 4
  for wrong in ("diffusion", "quadratic_spec"):
    with pytest.raises(
      nd.UserError, match=f"linear_spec, but the mode is {wrong}"
    ):
      nd.generate(model, prompts, mode=wrong, block_length="auto")
  with pytest.raises(nd.UserError, match="a whole number or auto, got 'wide'"):
    nd.generate(model, prompts, block_length="wide")
  (named,) = nd.generate(
    model, prompts[0], mode="ar", block_length="auto", **how
  )
  assert named == ar[0]  # It has no blocks.


def test_bad_settings_are_named(model):
  with pytest.raises(
    nd.UserError, match="'blok_length' \\(nearest known setting: 'block_length'"
  ):
    nd.generate(model, [[7]], blok_length=3)
  with pytest.raises(
    nd.UserError, match="'max_tokens' .*'max_new_tokens'\\); known are block_l"
  ):
    nd.stream(model, [7], max_tokens=3).send(None)
  with pytest.raises(nd.UserError, match="should be in a list of messages"):
    nd.generate(model, {"role": "user", "content": "w9"})
  with pytest.raises(nd.UserError, match="come from load.., got 'nvidia/x'"):
    nd.generate("nvidia/x", "w9")
  with pytest.raises(nd.UserError, match="mode should be one of"):
    nd.generate(model, [[7]], mode="fast")
  with pytest.raises(nd.UserError, match="top_p should lie in"):
    nd.generate(model, [[7]], top_p=0.0)
  with pytest.raises(nd.UserError, match="batch_size should be at least 1"):
    nd.generate(model, [[7]], batch_size=0)
  with pytest.raises(nd.UserError, match="prompt_ids should be a list"):
    nd.generate(model, [7.5, 8.5])
  with pytest.raises(nd.UserError, match="dtype should be one of"):
    nd.load(None, dtype="float64")


def test_model_card_signatures(model):
  prompts = np.array(helpers.prompts_of(model.config, (6, 6)))
  ids, nfe = model.ar_generate(prompts[:1], max_new_tokens=12)
  assert ids.shape == (1, 18) and nfe == 12
  assert (ids[:, :6] == prompts[:1]).all()
  spec, spec_nfe = model.linear_spec_generate(
    prompts[:1], max_new_tokens=12, block_length=8
  )
  assert (spec == ids).all()
  want = nd.generate(
    model, prompts[0], mode="linear_spec", block_length=8, max_new_tokens=12
  )[0]
  assert spec_nfe == want.nfe
  out, nfe = model.generate(prompts[0], 12, 8, threshold=0.5)
  want = nd.generate(
    model, prompts[0], mode="diffusion", block_length=8, threshold=0.5,
    max_new_tokens=12,
  )[0]  # fmt: skip
  assert out[0, 6:].tolist() == want.token_ids and nfe == want.nfe
  slow, nfe = model.generate(prompts[0], 16, 8)  # Card: one token a pass.
  assert nfe == 7 + 1 + 7 and slow.shape == (1, 22)


def test_model_card_batch_fills_rows_that_ended(model):
  prompts = np.array(helpers.prompts_of(model.config, (6, 6)))
  free, _ = model.ar_generate(prompts, max_new_tokens=10, eos_token_id=[])
  stop = int(free[0, 6 + 2])
  out, nfe = model.ar_generate(prompts, max_new_tokens=10, eos_token_id=stop)
  first = free[0, 6:].tolist().index(stop) + 1
  assert out[0, 6 : 6 + first].tolist() == free[0, 6 : 6 + first].tolist()
  assert (out[0, 6 + first :] == stop).all() and nfe >= first


def test_importing_the_package_imports_nothing_heavy():
  code = (
    "import sys, nemodiff_jax\n"
    "heavy = {'jax', 'flax', 'tokenizers', 'orbax', 'huggingface_hub'}\n"
    "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    "import nemodiff_jax.api\n"
    "kernels = ('jax.experimental.pallas', 'jax_triton', 'triton', 'torch',\n"
    "           'huggingface_hub', 'optax', 'orbax', 'fastapi', 'sentencepiece')\n"
    "assert not [m for m in kernels if m in sys.modules]\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_names_of_the_package_exist():
  assert all(getattr(nd, name) is not None for name in nd.__all__)
  assert dir(nd) == sorted([*nd.__all__, "__version__"])
  with pytest.raises(AttributeError, match="no attribute 'nope'"):
    _ = nd.nope


def test_keywords_are_typed_and_nothing_else_is_taken():
  names = set(api.Common.__annotations__)
  assert names == {"block_length", *ROW_FIELDS}


def test_what_is_printed_fits_a_line(model, tiny):
  count = sum(x.size for x in jax.tree.leaves(tiny.params)) / 1e6
  assert repr(model) == (
    f"Model(four modes, {count:.1f} M parameters, float32, cpu, with a drafter)"
  )
  layers = tiny.config.num_layers
  cache = new_cache(tiny.module, 3).arrays
  assert repr(cache).startswith(f"KVCache({layers} layers of float32[3, 128, ")


@pytest.mark.slow
def test_programs_are_kept_on_disk_unless_jax_is_told_where(folder, tmp_path):
  """By the API as by the commands; one documented switch keeps nothing."""
  code = (
    "import sys, jax, nemodiff_jax as nd\n"
    "model = nd.load(sys.argv[1])\n"
    "nd.generate(model, [9, 8], mode='ar', max_new_tokens=2)\n"
  )
  env = {
    k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")
  }
  env |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path)}
  kept = tmp_path / "nemodiff_jax" / "compiled"
  run = lambda **more: subprocess.run(
    [sys.executable, "-c", code, str(folder)], env=env | more, check=True
  )
  run(JAX_ENABLE_COMPILATION_CACHE="false")
  assert not kept.exists()
  run()
  assert list(kept.iterdir())


CONFIG = preset("8b")


def needs(batch, prompt, new=512, mode="linear_spec"):
  config = decode_config(CONFIG, mode)
  return memory.estimate(CONFIG, config, "bfloat16", batch, prompt, new)


def test_memory_estimate_of_the_8b():
  """16 GiB of weights; 136 KiB of cache per token at bfloat16."""
  small = needs(1, 512)
  assert small.params == 2 * 8_489_553_920
  assert small.cache == 2 * 34 * 8 * 128 * 2 * 1280
  assert needs(4, 512).cache == 4 * small.cache
  assert needs(1, 16, mode="ar").work < needs(1, 16).work


def check(monkeypatch, gib, batch, prompt, **how):
  monkeypatch.setattr(memory, "free_memory", lambda: int(gib * 2**30))
  config = decode_config(CONFIG, "ar")
  memory.check_memory(CONFIG, config, "bfloat16", batch, prompt, 512, **how)


def test_too_large_names_what_fits(monkeypatch):
  check(monkeypatch, 24, 8, 2000)
  with pytest.raises(nd.UserError, match="largest batch that fits .* is [1-9]"):
    check(monkeypatch, 24, 64, 2000)
  with pytest.raises(
    nd.UserError, match=r"largest that fits is batch 1 x length \d{4,5}\."
  ) as error:
    check(monkeypatch, 18, 4, 200_000)
  length = int(str(error.value).split("length ")[-1].rstrip("."))
  check(monkeypatch, 18, 1, length - 512)
  with pytest.raises(nd.UserError, match="Not even a short prompt fits"):
    check(monkeypatch, 8, 1, 100)
  with pytest.raises(nd.UserError, match="GiB free beside the parameters"):
    check(monkeypatch, 1, 64, 2000, loaded=True)


def test_memory_is_checked_before_loading_and_decoding(
  folder, model, monkeypatch
):
  monkeypatch.setattr(memory, "free_memory", lambda: 1000)
  with pytest.raises(nd.UserError, match="Not even a short prompt"):
    nd.load(str(folder))
  with pytest.raises(nd.UserError, match="GiB free beside the parameters"):
    nd.generate(model, [[7]])


def test_free_memory_is_known_here():
  assert jax.default_backend() != "cpu" or memory.free_memory() > 2**20
