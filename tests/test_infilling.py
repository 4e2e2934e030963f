"""Infilling: what is given stays, and holes get what their marks say."""

import dataclasses

import pytest

import nemodiff_jax as nd
from nemodiff_jax.errors import UserError
from nemodiff_jax.model import Model
from nemodiff_jax.text.tokenizer import load_tokenizer
from tests import helpers
from tests.serve import fakes
from tests.text import folders

TEXT = "Dear {mask:3},\n\tCaf\u00e9 <b>{mask:2}</b> \U0001f600 {mask:9}. "
GIVEN = ["Dear ", ",\n\tCaf\u00e9 <b>", "</b> \U0001f600 ", ". "]


@pytest.fixture(scope="module")
def model():
  """A random model over bytes."""
  tiny = helpers.make_tiny(
    1, vocab_size=fakes.SIZE, mask_id=fakes.MASK, eos_ids=(fakes.EOS,)
  )
  tokenizer = fakes.ByteTokenizer()
  return Model(tiny.config, tokenizer, None, tiny.module, tiny.weights())


def test_what_is_given_comes_back_byte_for_byte(model):
  done = nd.infill(model, TEXT, block_length=8, temperature=1.0, seed=2)
  assert [len(ids) for ids in done.token_ids] == [3, 2, 9]
  rest = done.text
  for given, fill in zip(GIVEN, [*done.fills, ""], strict=True):
    assert rest.startswith(given + fill)
    rest = rest[len(given + fill) :]
  assert rest == "" and done.nfe > 0
  assert done.tokens_per_forward == 14 / done.nfe


def test_a_hole_is_filled_as_the_compiled_loop_does(model):
  """Which knows of no holes, and is held against the twin."""
  before, after = "one two ", " and four"
  ids = model.tokenizer.encode(before)
  for least in ("", "6-"):
    done = nd.infill(
      model, before + f"{{mask:{least}6}}" + after, block_length=16
    )
    (want,) = nd.generate(
      model, ids, [{"following": list(after.encode())}], mode="diffusion",
      block_length=16, max_new_tokens=6,
    )  # fmt: skip
    assert done.token_ids == [want.token_ids] and done.nfe == want.nfe
  (blind,) = nd.generate(
    model, ids, mode="diffusion", block_length=16, max_new_tokens=6
  )
  assert blind.token_ids != want.token_ids


def test_a_hole_sees_the_fills_before_it_and_not_those_behind(model):
  text = "a{mask:4}b{mask:5}c{mask:3}d"
  done = nd.infill(model, text, block_length=16)
  ids, behind = [], [(4, b"b"), (5, b"c"), (3, b"d")]
  mask = model.config.mask_id
  before = model.tokenizer.encode("a")
  follow = {
    4: [*b"b", *[mask] * 5, *b"c", *[mask] * 3, *b"d"],
    5: [*b"c", *[mask] * 3, *b"d"],
    3: [*b"d"],
  }
  for size, text in behind:
    (found,) = nd.generate(
      model, before, [{"following": follow[size]}], mode="diffusion",
      block_length=16, max_new_tokens=size,
    )  # fmt: skip
    ids.append(found.token_ids)
    before = [*before, *found.token_ids, *text]
  assert done.token_ids == ids


def test_only_a_hole_that_may_ends_early(model):
  how = {"temperature": 3.0, "seed": 1, "block_length": 16}
  fixed = nd.infill(model, "a{mask:400}b", **how)
  assert len(fixed.token_ids[0]) == 400
  assert fakes.EOS not in fixed.token_ids[0]
  free = nd.infill(model, "a{mask:1-400}b", **how)
  assert 1 <= len(free.token_ids[0]) < 400
  assert fakes.EOS not in free.token_ids[0] and free.text.endswith("b")
  least = len(free.token_ids[0]) + 5
  later = nd.infill(model, f"a{{mask:{least}-400}}b", **how)
  assert len(later.token_ids[0]) >= least


def test_messages_may_stand_before_the_text():
  model = nd.load()
  ask = [{"role": "user", "content": "What is 17 + 25 - 8?"}]
  answer = "We work from left to right.\n17 + 25 ={mask:2}\n42 -{mask:1} = 34"
  done = nd.infill(model, answer, ask)
  assert done.fills == [" 42", " 8"]
  assert done.text == "We work from left to right.\n17 + 25 = 42\n42 - 8 = 34"


@pytest.mark.parametrize("made", ["byte_level", "metaspace"])
def test_texts_in_the_middle_get_no_space_of_their_own(tmp_path, made):
  from nemodiff_jax.text.holes import inner_ids

  getattr(folders, made)(tmp_path)
  tokenizer = load_tokenizer(tmp_path)
  front = tokenizer.encode("a")
  for text in ("es no", " no", "\nb", "\u00e9", "\n"):
    ids = [*front, *inner_ids(tokenizer, text, None)]
    assert tokenizer.decode(ids) == "a" + text


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("none here", "the text should have a hole, such as {mask:12}"),
    ("{mask: 3} {mask}", "a hole should be {mask:12} or {mask:1-12}"),
    ("a{mask:-3}", "in tokens, got {mask:-3}"),
    ("a{mask:0}", "at least 1 token, and its lower bound first, got {mask:0}"),
    ("a{mask:0-4}", "at least 1 token"),
    ("a{mask:5-4}", "lower bound first, got {mask:5-4}"),
    ("a<mask>{mask:1}", "holds the mask token; write what is to be filled"),
    ("a{mask:1}<mask>", "holds the mask token"),
    ("a{mask:99999}", "should be at most"),
  ],
)
def test_bad_texts_are_named(model, text, message):
  with pytest.raises(UserError, match=message.replace("{", r"\{")):
    nd.infill(model, text)


def test_what_cannot_infill_is_named(model):
  ar = dataclasses.replace(
    model, config=dataclasses.replace(model.config, mask_id=None)
  )
  with pytest.raises(UserError, match="needs a mask token"):
    nd.infill(ar, "a{mask:1}")
  with pytest.raises(
    UserError, match="unknown setting 'max_new_tokens' of inf"
  ):
    nd.infill(model, "a{mask:1}", max_new_tokens=3)
  mute = dataclasses.replace(model, tokenizer=None)
  with pytest.raises(UserError, match="infilling needs a tokenizer"):
    nd.infill(mute, "a{mask:1}")

  class NoFront(fakes.ByteTokenizer):
    def encode(self, text):
      return list(text.encode())

  bare = dataclasses.replace(model, tokenizer=NoFront())
  with pytest.raises(UserError, match="should not begin with a hole"):
    nd.infill(bare, "{mask:1} a")
  assert nd.infill(model, "{mask:1} a").text.endswith(" a")
