"""Stop ids of every file that names them, and suggested sampling settings."""

import json

import pytest

from nemodiff_jax import api
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import open_checkpoint
from nemodiff_jax.io.generation import sampling_defaults
from tests import helpers


@pytest.fixture
def checkpoint(tmp_path, tiny):
  """A folder whose config.json names eos 2; changes replace both files."""
  helpers.write_checkpoint(tmp_path, tiny)
  given = json.loads((tmp_path / "config.json").read_text())

  def make(generation=None, **config):
    (tmp_path / "config.json").write_text(json.dumps(given | config))
    if generation is not None:
      text = generation if isinstance(generation, str) else None
      path = tmp_path / "generation_config.json"
      path.write_text(text or json.dumps(generation))
    return tmp_path

  return make


@pytest.mark.parametrize(
  ("config", "generation", "want"),
  [
    (2, [2, 36], (2, 36)),
    (2, 36, (2, 36)),
    ([3, 2], [36, 2, 3, 2], (3, 2, 36)),
    (None, [36], (36,)),
    (2, None, (2,)),
    ([], [], ()),
  ],
)
def test_stop_ids_are_the_union(checkpoint, config, generation, want):
  folder = checkpoint({"eos_token_id": generation}, eos_token_id=config)
  assert open_checkpoint(str(folder)).config.eos_ids == want


def test_stop_ids_of_a_multimodal_config(checkpoint):
  """Of the text part and of the whole."""
  folder = checkpoint({"eos_token_id": 9})
  text = json.loads((folder / "config.json").read_text()) | {"eos_token_id": 2}
  whole = {"model_type": "mistral3", "text_config": text, "eos_token_id": [7]}
  (folder / "config.json").write_text(json.dumps(whole))
  assert open_checkpoint(str(folder)).config.eos_ids == (2, 7, 9)


def test_a_row_ends_at_the_second_stop_id(checkpoint):
  folder = checkpoint()
  prompt = [[40, 41, 42]]
  free = api.generate(
    api.load(str(folder)), prompt, max_new_tokens=12, ignore_eos=True
  )[0].token_ids
  second = free[3]
  checkpoint({"eos_token_id": [2, second]})
  out = api.generate(api.load(str(folder)), prompt, max_new_tokens=12)[0]
  assert out.token_ids == free[: free.index(second) + 1]
  assert out.finish_reason == "stop"


@pytest.mark.parametrize(
  ("generation", "message"),
  [
    ("{", "expected JSON"),
    ("[" * 100000, "expected JSON"),
    ("[2]", "expected a JSON object"),
    (
      {"eos_token_id": "2"},
      "eos_token_id should lie in the vocabulary of 97, got '2'",
    ),
    (
      {"eos_token_id": [2, 97]},
      "eos_token_id should lie in the vocabulary of 97, got 97",
    ),
    (
      {"eos_token_id": -1},
      "eos_token_id should lie in the vocabulary of 97, got -1",
    ),
    (
      {"eos_token_id": True},
      "eos_token_id should lie in the vocabulary of 97, got True",
    ),
    ({"eos_token_id": [2, 5]}, "eos_token_id 5 is the mask_token_id of conf"),
  ],
)
def test_stop_ids_that_cannot_be(checkpoint, generation, message):
  with pytest.raises(UserError, match=f"generation_config.json: {message}"):
    open_checkpoint(str(checkpoint(generation)))


def test_the_last_id_of_the_vocabulary_may_end_a_text(checkpoint):
  folder = checkpoint({"eos_token_id": [0, 96]})
  assert open_checkpoint(str(folder)).config.eos_ids == (2, 0, 96)


@pytest.mark.parametrize(
  ("given", "want"),
  [
    (
      {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
      {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    ),
    ({"temperature": 0.7, "min_p": 0.1}, {"temperature": 0.7, "min_p": 0.1}),
    ({"max_new_tokens": 2048}, {"max_new_tokens": 2048}),
    ({"do_sample": True}, {"temperature": 1.0}),
    ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0}),
    ({"top_p": 0.9, "temperature": None}, {"top_p": 0.9}),
    ({"top_k": -1}, {"top_k": 0}),
    (
      {"repetition_penalty": 1.0, "num_beams": 1, "bad_words_ids": None},
      {},
    ),
    ({"bos_token_id": 1, "transformers_version": "5.0", "use_cache": 1}, {}),
  ],
)
def test_suggested_settings(checkpoint, given, want):
  assert sampling_defaults(checkpoint(given)) == want


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"repetition_penalty": 1.05}, "repetition_penalty should be 1, got 1.05"),
    ({"num_beams": 4}, "num_beams should be 1, got 4, which is not computed"),
    ({"typical_p": 0.9}, "typical_p should be 1, got 0.9"),
    ({"suppress_tokens": [7]}, r"suppress_tokens should be \[\], got \[7\]"),
    ({"min_new_tokens": 3}, "min_new_tokens should be False, got 3"),
    ({"temperature": "0.6"}, "temperature should be a number, got '0.6'"),
    ({"top_p": float("nan")}, "top_p should be a number, got nan"),
    ({"do_sample": "yes"}, "do_sample should be true or false, got 'yes'"),
  ],
)
def test_settings_that_are_not_computed(checkpoint, given, message):
  with pytest.raises(UserError, match=f"generation_config.json: {message}"):
    sampling_defaults(checkpoint(given))


def test_no_file_to_take_settings_from(checkpoint):
  with pytest.raises(UserError, match="--generation_config=auto needs this"):
    sampling_defaults(checkpoint())
