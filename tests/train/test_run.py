"""Whole runs at toy size: going on after a kill, refusals, what is written."""

import itertools
import json
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from nemodiff_jax.errors import UserError
from tests import helpers
from tests.train.runs import (
  ROOT,
  command,
  environment,
  export_decodes,
  lines,
  run,
  run_all,
  toy,
)
from train import loop, settings
from train.configs import ar, ar_to_diffusion_8b, base, drafter, sft, tiny

MODES = {"eval.modes": ("ar", "linear_spec")}
ASKED = {"eval.every": 6, "eval.questions": 1, "eval.max_new_tokens": 8}


def same(a, b) -> None:
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b)
  )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """An undisturbed run: its workdir, its last state, and its export."""
  workdir = tmp_path_factory.mktemp("whole")
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    config = toy(**ASKED, **MODES)
    state = loop.train(config, workdir, None, workdir / "export")
  return workdir, state


def test_a_run_writes_what_it_did(whole):
  workdir, state = whole
  assert int(state.step) == 6 and int(state.skipped) == 0
  steps = [x for x in lines(workdir) if "loss" in x]
  assert [x["step"] for x in steps] == [1, 2, 3, 4, 5, 6]
  for (
    name
  ) in "loss ar diffusion grad_norm lr tokens_per_second memory_gib".split():
    assert np.isfinite(steps[-1][name]), name
  assert any(k.startswith("diffusion/t_") for k in steps[-1])
  found = next(x for x in lines(workdir) if "sample" in x)
  for mode in MODES["eval.modes"]:
    assert 0 <= found[f"eval/{mode}_accuracy"] <= 1
    assert found[f"eval/{mode}_tokens_per_forward"] > 0
  record = json.loads((workdir / "run.json").read_text())
  assert record["config"]["batch_size"] == 4 and record["versions"]["jax"]
  assert list((workdir / "tensorboard").iterdir())
  kept = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
  assert kept == [4, 6]  # The newest two.


def test_the_export_decodes(whole):
  export_decodes(whole[0] / "export", toy(**ASKED, **MODES))


def stopped_at_4(whole, tmp_path) -> Path:
  """The workdir as it was before the last checkpoint."""
  workdir = tmp_path / "again"
  shutil.copytree(whole[0], workdir)
  shutil.rmtree(workdir / "checkpoints" / "6")
  return workdir


def test_a_stopped_run_goes_on_to_the_same_parameters(
  whole, tmp_path, ordinary
):
  state = loop.train(toy(**MODES), stopped_at_4(whole, tmp_path))
  same(state.params, whole[1].params)
  same(state.opt_state, whole[1].opt_state)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, ordinary):
  """kill -9 at two random moments, each after another checkpoint."""
  config, workdir = toy(steps=16), tmp_path / "killed"
  # All in processes alike: another number of threads may round otherwise.
  run = lambda folder: subprocess.run(
    command(folder, steps=16), cwd=ROOT, env=environment(), check=True
  )
  run(tmp_path / "whole")
  for least in (2, 8):
    process = subprocess.Popen(
      command(workdir, steps=16), cwd=ROOT, env=environment()
    )
    saved = lambda: [
      int(p.name)
      for p in (workdir / "checkpoints").glob("*")
      if p.name.isdigit()
    ]
    while process.poll() is None and max(saved(), default=0) < least:
      time.sleep(0.01)
    time.sleep(np.random.default_rng().uniform(0, 0.1))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
  run(workdir)
  state, expected = (  # Restored: every step has been done.
    loop.train(config, folder) for folder in (workdir, tmp_path / "whole")
  )
  same(state.params, expected.params)
  same(state.opt_state, expected.opt_state)


def test_bad_steps_in_a_row_stop_the_run(tmp_path, ordinary, monkeypatch):
  """Steps 2 to 4 are bad, after a checkpoint at step 1."""

  def make_step(*_):
    bad = itertools.chain((0, 1, 2, 3), itertools.repeat(4))

    def step(state, *_):
      n = next(bad)
      loss = np.nan if n else 1.0
      state = state.replace(step=state.step + 1)
      return state, {
        "loss": loss, "grad_norm": loss, "skipped": n, "bad_run": n,
        "supervised": 1.0, "attended": 1.0,
      }  # fmt: skip

    return step

  monkeypatch.setattr(loop, "make_step", make_step)
  config = toy(max_bad_steps=3, steps=9, checkpoint__every=1)
  with pytest.raises(
    UserError, match="3 steps in a row .* last good checkpoint"
  ):
    loop.train(config, tmp_path)
  found = lines(tmp_path)
  assert [x["bad_run"] for x in found] == [0, 1, 2, 3]
  assert found[-1]["loss"] is None and found[-1]["skipped"] == 3


def test_another_run_does_not_take_over_a_workdir(whole, ordinary):
  with pytest.raises(UserError, match="another run .*seed was 0, now 1"):
    loop.train(toy(seed=1), whole[0])
  with pytest.raises(UserError, match="another run .*init_from was None"):
    loop.train(toy(), whole[0], str(whole[0] / "export"))


def test_an_init_checkpoint_of_other_shapes_is_an_error(
  whole, tiny, tmp_path, ordinary
):
  helpers.write_checkpoint(tmp_path / "init", tiny)
  path = tmp_path / "init" / "config.json"
  path.write_text(
    path.read_text().replace('"hidden_size": 48', '"hidden_size": 64')
  )
  with pytest.raises(UserError, match="should have shape"):
    loop.train(toy(), tmp_path / "run", str(tmp_path / "init"))


def test_a_full_disk_keeps_the_last_good_checkpoint(whole, tmp_path, ordinary):
  """Files may not grow beyond 40 kB, which the parameters need."""
  workdir = stopped_at_4(whole, tmp_path)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
  try:
    with pytest.raises(UserError, match="could not be saved") as e:
      loop.train(toy(**MODES), workdir)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert f"last good checkpoint is {workdir / 'checkpoints' / '4'}" in str(
    e.value
  )
  state = loop.train(toy(**MODES), workdir)
  same(state.params, whole[1].params)


def test_an_unknown_key_is_answered_with_the_nearest():
  done = run(command(Path("unused"), "--config.batch_sise=3"))
  assert done.returncode == 2
  assert (
    "unknown key 'batch_sise' (nearest known key: 'batch_size')" in done.stderr
  )
  config = tiny.get_config()
  config.optimizer.momentun = 1.0
  with pytest.raises(UserError, match="unknown key 'optimizer.momentun'"):
    settings.check(config)


FLAGS = {
  "--config tiny --config.steps 0":
    "config.steps should be a whole number of at least 1, got 0.",
  "--config=train/configs/tiny.py:other --config.seed=1":
    "stage should be joint or drafter, got 'other'",
  "--config=train/configs/none.py --config.seed=1":
    "there is no file 'train/configs/none.py'; expected a Python file, or one"
    " of ar, ar_to_diffusion_8b, drafter, sft, tiny.",
  "--config=train/configs/tiny.py --config.steps=many":
    "--config.steps=many: invalid literal",
}  # fmt: skip


@pytest.fixture(scope="module")
def refused(tmp_path_factory) -> dict[str, subprocess.CompletedProcess]:
  """What the command says to FLAGS."""
  where = f"--workdir {tmp_path_factory.mktemp('refused')}"
  commands = [[*given.split(), *where.split()] for given in FLAGS]
  return dict(zip(FLAGS, run_all(commands), strict=True))


@pytest.mark.parametrize("given", FLAGS)
def test_flags_that_cannot_be_are_told_in_one_line(refused, given):
  """With equals signs and without."""
  done = refused[given]
  assert done.returncode == 2
  assert done.stderr.startswith("error: ") and FLAGS[given] in done.stderr
  assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
  "change, why",
  [
    ({"length": 60}, "length should be a multiple of the block length 8, got 60"),
    ({"block_lengths": (8, 12), "length": 48, "noisy_length": 48}, "8 should divide the largest, 12"),
    ({"block_lengths": ()}, "should be positive numbers"),
    ({"count": "all"}, "count should be one of"),
    ({"objective": "drafter"}, "draft and draft_known_first should be 1.0"),
    ({"checkpoint__best": "eval/ar_accuracy"}, "should be '' or, with eval.every"),
    ({"checkpoint__best": "ar", "eval__every": 1}, "one of .*eval/ar_accuracy.*, got 'ar'"),
    ({"steps": 0}, "steps should be a whole number of at least 1"),
    ({"seed": -1}, "seed should be a whole number of at least 0, got -1"),
    ({"seed": 1 << 32}, "seed should be below 2"),
    ({"optimizer__warmup": 7}, "warmup should be at most the 6 steps"),
    ({"corruption__draft": 0.8}, "at most 1 together, got 0.8 and 0.3"),
    ({"corruption__shift": 1.5}, r"shift should be a number in \[0, 1\], got 1.5"),
    ({"corruption__eps": 0.0}, r"eps should be a number in \(0, 1\]"),
    ({"optimizer__b2": 1.0}, r"b2 should be a number in \[0, 1\), got 1.0"),
    ({"hard_weight": float("inf")}, r"hard_weight should be a number in \(0, inf\)"),
    ({"ar_weight": float("nan")}, "ar_weight should be a number"),
    ({"ar_weight": 0.0, "diffusion_weight": 0.0}, "both 0: nothing would be learned"),
    ({"data__source": ""}, "data.source should be"),
    ({"eval__modes": ("ar", "magic")}, "eval.modes should be among .* 'magic'"),
    ({"batch_size": 3}, "batch_size should be a multiple of data x fsdp"),
    ({"data__shards": 3}, "shards should divide batch_size 4, got 3"),
    ({"mesh__data": 3, "mesh__fsdp": 1}, "data x fsdp x tensor should be the 2 devices"),
    ({"data__source": "some.jsonl"}, "--init_from should name the checkpoint"),
  ],
)  # fmt: skip
def test_settings_that_cannot_be_are_errors(tmp_path, change, why):
  with pytest.raises(UserError, match=why):
    loop.train(toy(**change), tmp_path)


def test_a_key_that_is_missing_is_named():
  config = tiny.get_config()
  del config.optimizer.clip
  with pytest.raises(UserError, match="'optimizer.clip' is missing"):
    settings.check(config)


@pytest.mark.parametrize(
  "module, given",
  [
    (ar, ()), (ar_to_diffusion_8b, ()), (drafter, ()), (drafter, ("small",)),
    (sft, ()), (sft, ("small",)), (tiny, ()), (tiny, ("drafter",)),
  ],
)  # fmt: skip
def test_every_config_is_complete_and_small(module, given):
  config = module.get_config(*given)
  config.data.source = config.data.source or "some.jsonl"
  settings.check(config)
  assert len(Path(module.__file__).read_text().splitlines()) < 60


def test_every_key_has_a_comment():
  source = Path(base.__file__).read_text().splitlines()
  source = source[source.index("  c = ConfigDict()") + 1 :]
  for before, line in zip(source, source[1:], strict=False):
    if line.startswith("  c.") and not line.endswith("ConfigDict()"):
      assert before.strip().startswith("#"), line


def test_tiny_has_a_second_run_for_the_drafter():
  config = tiny.get_config("drafter")
  settings.check(config)
  assert config.objective == "drafter"
  assert (
    settings.flatten(config).keys()
    == settings.flatten(tiny.get_config()).keys()
  )
  with pytest.raises(ValueError, match="stage should be joint or drafter"):
    tiny.get_config("ar")


def test_a_base_without_a_mask_needs_one(tiny, tmp_path, ordinary):
  helpers.write_checkpoint(tmp_path / "init", tiny)
  path = tmp_path / "init" / "config.json"
  path.write_text(
    path.read_text().replace('"mask_token_id": 5', '"mask_token_id": null')
  )
  with pytest.raises(UserError, match="--config.model.mask_id=ID"):
    loop.train(toy(data__source="x"), tmp_path / "run", str(tmp_path / "init"))
