"""What a workdir keeps: the best checkpoint, and nothing of a failed start."""

import json
import resource
import shutil

import jax
import numpy as np
import pytest

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.lora import FOLDER
from nemodiff_jax.nn.quantize import MARK
from tests import helpers
from tests.train.runs import export_decodes, lines, toy
from train import loop
from train.validation import Validation

METRIC = "eval/ar_accuracy"


def steps_of(workdir) -> list[int]:
  return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


def test_the_best_checkpoint_is_kept_by_a_run_that_goes_on(
  tmp_path, ordinary, monkeypatch
):
  """Accuracies 0.1, 0.9, 0.3, ...; the run is broken off after the third."""
  config = toy(
    checkpoint__best=METRIC,
    checkpoint__keep=1,
    checkpoint__every=100,
    eval__every=1,
  )
  scores = iter((0.1, 0.9, 0.3, None, 0.2, 0.1, 0.3))

  def evaluate(run, state, frozen, questions):
    score = next(scores)
    if score is None:
      raise KeyboardInterrupt
    return {METRIC: score}, "a sample"

  monkeypatch.setattr(loop, "_evaluate", evaluate)
  with pytest.raises(KeyboardInterrupt):
    loop.train(config, tmp_path)
  assert steps_of(tmp_path) == [2, 3]
  loop.train(config, tmp_path)
  assert steps_of(tmp_path) == [2, 6]


def test_metrics_on_a_full_disk_name_the_last_good_checkpoint(
  tmp_path, ordinary
):
  """The file of metrics cannot grow any more."""
  config = toy(checkpoint__every=1)
  loop.train(config, tmp_path)
  (tmp_path / "checkpoints" / "6").rename(tmp_path / "later")
  size = 1 << 20  # The checkpoint's files are smaller.
  with (tmp_path / "metrics.jsonl").open("ab") as file:
    file.write(b"\n" * size)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    with pytest.raises(UserError, match="a file could not be used") as e:
      loop.train(config, tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert f"checkpoint is {tmp_path / 'checkpoints' / '5'}" in str(e.value)


def test_a_start_that_failed_leaves_the_workdir_free(tiny, tmp_path, ordinary):
  helpers.write_checkpoint(tmp_path / "init", tiny)
  workdir, init = tmp_path / "run", str(tmp_path / "init")
  with pytest.raises(UserError, match="expected a file of JSON lines"):
    loop.train(toy(data__source="absent.jsonl"), workdir, init)
  with pytest.raises(UserError, match="--init_from should name"):
    loop.train(toy(data__source="absent.jsonl"), workdir)
  loop.train(toy(), workdir)


def test_a_workdir_that_is_none_is_told(tmp_path, ordinary):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="file/run: could not be made"):
    loop.train(toy(), tmp_path / "file" / "run")
  (tmp_path / "run.json").write_text("[]")
  with pytest.raises(UserError, match="run.json: not the record of a run"):
    loop.train(toy(), tmp_path)


def test_files_that_cannot_be_read_or_written_are_named(tmp_path, ordinary):
  config, workdir = toy(), tmp_path / "run"
  (workdir / "run.new").mkdir(parents=True)
  with pytest.raises(UserError, match="run.json: could not be written"):
    loop.train(config, workdir)
  (workdir / "run.new").rmdir()
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="file/export: could not be written"):
    loop.train(config, workdir, None, tmp_path / "file" / "export")
  for part in (workdir / "checkpoints" / "6" / "data").iterdir():
    part.unlink()
  with pytest.raises(UserError, match="does not fit this run .* step 4, move"):
    loop.train(config, workdir)


def test_quantised_weights_are_no_start(folder, tmp_path, ordinary):
  config = json.loads((folder / "config.json").read_text())
  config["quantization_config"] = MARK
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(UserError, match="its weights are int8; training starts"):
    loop.train(toy(data__source="x"), tmp_path / "run", str(tmp_path))


def test_the_drafter_is_trained_evaluated_gone_on_with_and_exported(
  tmp_path, ordinary
):
  loop.train(toy(), tmp_path / "base", None, tmp_path / "model")
  config = toy(
    objective="drafter",
    corruption__draft=1.0,
    corruption__draft_known_first=1.0,
    drafter__rank=4,
    steps=4,
    eval__every=4,
    eval__questions=1,
    eval__max_new_tokens=8,
    eval__modes=("ar", "linear_spec"),
  )
  init, workdir = str(tmp_path / "model"), tmp_path / "run"
  whole = loop.train(config, workdir, init, tmp_path / "both")
  assert "eval/linear_spec_tokens_per_forward" in lines(workdir)[-1]
  (workdir / "checkpoints" / "4").rename(tmp_path / "later")
  again = loop.train(config, workdir, init)
  for name in "ab":
    lora = whole.params["lora"][name]
    assert np.asarray(lora).any()
    np.testing.assert_array_equal(lora, again.params["lora"][name])
  assert (tmp_path / "both" / FOLDER).is_dir()
  assert export_decodes(tmp_path / "both", config).weights.lora is not None


@pytest.mark.parametrize(
  "break_it, why",
  [
    (lambda p: shutil.rmtree(p / "state"), "is damaged"),
    (lambda p: [cut(x) for x in (p / "state" / "d").iterdir()], "is damaged"),
    (lambda p: (p / "state" / "_METADATA").unlink(), "is damaged"),
    (lambda p: cut(p / "data" / "0.json"), "is damaged"),
  ],
)  # fmt: skip
def test_a_checkpoint_half_written_is_told(
  trained, tmp_path, ordinary, break_it, why
):
  """As a copy that was broken off leaves it."""
  shutil.copytree(trained, tmp_path / "run")
  break_it(tmp_path / "run" / "checkpoints" / "6")
  with pytest.raises(UserError, match=f"{why}.* go on from step 4, move"):
    loop.train(toy(), tmp_path / "run")


def test_what_a_killed_save_left_is_no_checkpoint(trained, tmp_path, ordinary):
  shutil.copytree(trained, tmp_path / "run")
  saved = tmp_path / "run" / "checkpoints"
  (saved / "6").rename(saved / "6.orbax-checkpoint-tmp-1")
  loop.train(toy(), tmp_path / "run")
  assert steps_of(tmp_path / "run") == [4, 6]
  steps = [x["step"] for x in lines(tmp_path / "run")]
  assert steps == [1, 2, 3, 4, 5, 6]  # None twice.


def cut(path) -> None:
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A workdir with the checkpoints 4 and 6."""
  workdir = tmp_path_factory.mktemp("trained")
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    loop.train(toy(), workdir)
  return workdir


def test_held_out_losses_are_the_same_of_the_same_parameters(
  trained, tmp_path, ordinary, monkeypatch
):
  workdir, losses = tmp_path / "run", Validation.losses
  shutil.copytree(trained, workdir)
  shutil.rmtree(workdir / "checkpoints" / "6")

  def twice(self, *args):
    found = losses(self, *args)
    assert losses(self, *args) == found
    return found

  monkeypatch.setattr(Validation, "losses", twice)
  changes = {"validation.source": "arithmetic", "validation.batches": 2}
  loop.train(toy(**changes, validation__every=5), workdir)
  found = [x for x in lines(workdir) if "validation/ar" in x]
  assert [x["step"] for x in found] == [5, 6]
  last = found[-1]
  total = last["validation/ar"] + 1.75 * last["validation/diffusion"]
  assert last["validation/loss"] == pytest.approx(total, rel=1e-5)
  assert any(k.startswith("validation/diffusion/t_") for k in last)
  assert "validation/supervised" not in last


@pytest.mark.parametrize(
  "text, on_error, why",
  [
    ("x\n", "error", "config.validation.source: .*held.jsonl:1: not JSON"),
    ("x\n\n", "skip", "config.validation.source: .* no line of the data could"),
    ("", "skip", "config.validation.source: .* expected lines of JSON"),
    (None, "skip", "config.validation.source: .* expected a file of JSON lines"),
  ],
)  # fmt: skip
def test_a_validation_file_without_a_usable_line(
  tmp_path, ordinary, text, on_error, why
):
  path = tmp_path / "held.jsonl"
  if text is not None:
    path.write_text(text)
  config = toy(validation__source=str(path), data__on_error=on_error)
  with pytest.raises(UserError, match=why):
    loop.train(config, tmp_path / "run")
  assert not (tmp_path / "run" / "run.json").exists()


def test_a_workdir_of_another_objective_is_told(trained, ordinary):
  config = toy(
    objective="drafter",
    corruption__draft=1.0,
    corruption__draft_known_first=1.0,
    corruption__hard_last=0.0,
  )
  with pytest.raises(UserError, match="another run .objective was 'joint'"):
    loop.train(config, trained)


def test_an_export_is_refused_before_the_first_step(tmp_path, ordinary):
  (tmp_path / "diary.txt").write_text("dear")
  with pytest.raises(UserError, match="exists and is no checkpoint folder"):
    loop.train(toy(), tmp_path / "run", None, tmp_path)
