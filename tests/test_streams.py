"""The text of a stream: its pieces, its output, and what `generate` says."""

import dataclasses

import pytest

import nemodiff_jax as nd
from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.decode.generate import stream_ids
from tests import helpers
from tests.text import folders

PROMPT = [40, 50, 60]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A model of bytes, whose random replies are cut inside characters."""
  folder = tmp_path_factory.mktemp("bytes")
  helpers.write_checkpoint(folder, helpers.make_tiny(0, vocab_size=263))
  folders.byte_level(folder)
  return nd.load(str(folder))


def all_texts(model, **settings):
  """Texts of `generate`, of the output and of the pieces of a stream."""
  [done] = nd.generate(model, [PROMPT], ignore_eos=True, **settings)
  *pieces, out = nd.stream(model, PROMPT, ignore_eos=True, **settings)
  assert out == done
  return {done.text, "".join(pieces)}, done


@pytest.mark.parametrize(
  ("mode", "counts"), [("ar", range(1, 9)), ("diffusion", (5, 6, 7))]
)
def test_one_text_wherever_a_reply_is_cut(model, mode, counts):
  cut_inside = 0
  for count in counts:
    settings = {"max_new_tokens": count, "mode": mode}
    texts, done = all_texts(model, **settings)
    assert texts == {model.tokenizer.decode(done.token_ids)}
    cut_inside += texts.pop().endswith("\ufffd")
    # With a stop string that never comes, text is matched pass by pass.
    assert all_texts(model, stop="never", **settings)[0] == {done.text}
  assert cut_inside


def test_what_is_held_back_is_let_go_when_the_row_ends(model):
  _, done = all_texts(model, max_new_tokens=12, mode="ar")
  for size in range(1, 4):
    stop = done.text[-size:] + "never"
    texts, _ = all_texts(model, max_new_tokens=12, stop=[stop], mode="ar")
    assert texts == {done.text}


def test_reading_a_step_changes_nothing(model):
  row = RowSettings(max_new_tokens=9, ignore_eos=True, stop=("never",))
  config = decode_config(model.config, "ar")
  for step in stream_ids(
    model.module, model.weights, config, [PROMPT], [row],
    tokenizer=model.tokenizer,
  ):  # fmt: skip
    first = step.results()
    assert step.results() == first == step.results()


def test_a_stop_string_that_is_a_special_token_ends_the_text(model):
  [free] = nd.generate(model, [PROMPT], max_new_tokens=4, ignore_eos=True)
  params = model.weights.params
  kernel = params["diffusion_head"]["kernel"]
  liked = kernel.at[:, 4].set(kernel[:, free.token_ids[0]] * 1.2)
  params = params | {"diffusion_head": {"kernel": liked}}
  weights = dataclasses.replace(model.weights, params=params)
  model = dataclasses.replace(model, weights=weights)
  texts, done = all_texts(model, max_new_tokens=6, stop=["<|im_end|>"])
  assert done.token_ids == [4] and done.finish_reason == "stop"
  assert texts == {""}
