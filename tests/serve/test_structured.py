"""Masks of draft slots against Python's own re and json, and the EOS rules.

The vocabulary is one of bytes: what a mask allows is checked by looking which
texts it leads to, with the standard library as the judge.
"""

import json
import re

import numpy as np
import pytest

pytest.importorskip("llguidance", reason="needs the extra [serve]")
pytest.importorskip("pydantic", reason="needs the extra [serve]")

from nemodiff_jax.serve.errors import Refusal
from nemodiff_jax.serve.structured import Grammars, Spec, json_spec
from tests.serve import fakes

STOPS = [fakes.EOS, fakes.SIZE - 1]  # Two ids may end a row.
GRAMMARS = Grammars(fakes.ByteTokenizer(), fakes.SIZE, STOPS)


def regex(source, after=None):
  return GRAMMARS.matcher(Spec("guided_regex", "regex", source), after)


def allowed(row):
  bits = np.unpackbits(row.view(np.uint8), bitorder="little")
  return set(np.flatnonzero(bits[: fakes.SIZE]).tolist())


def says(matcher, pick, most=200):
  """A text of the grammar: `pick` chooses among what each mask allows."""
  said = []
  for _ in range(most):
    (row,) = matcher.masks([])
    token = pick(sorted(allowed(row)))
    if token in STOPS:
      return bytes(said)
    matcher.accept([token])
    assert not matcher.dead
    said.append(token)
  return bytes(said)


@pytest.mark.parametrize("source", [
  "ab|abc+", "[0-9]{1,3}(\\.[0-9]+)?", "(x|yz)*", "é☃?",
])  # fmt: skip
def test_every_text_that_masks_lead_to_matches(source):
  """And ends only where Python's re says that it matches."""
  rng = np.random.default_rng(0)
  for _ in range(30):
    text = says(regex(source), rng.choice, 40)
    if len(text) < 40:
      assert re.fullmatch(source, text.decode())


def test_masks_of_a_draft_are_those_of_one_token_at_a_time():
  draft = list(b"12.34")
  together = regex("[0-9]+\\.[0-9]{2}").masks(draft)
  one = regex("[0-9]+\\.[0-9]{2}")
  for slot, token in enumerate([*draft, None]):
    np.testing.assert_array_equal(one.masks([])[0], together[slot])
    if token is not None:
      one.accept([token])
  assert together.shape == (6, (fakes.SIZE + 31) // 32)


def test_a_draft_need_not_be_legal_and_changes_nothing():
  matcher = regex("abc")
  masks = matcher.masks(list(b"axc"))
  assert [allowed(m) for m in masks[:2]] == [{97}, {98}]
  assert allowed(masks[3]) == set(range(fakes.SIZE))  # Nobody reads it.
  assert matcher.forced() == list(b"abc")


def test_an_end_is_legal_exactly_where_the_grammar_may_end():
  matcher = regex("ab|abc+")
  free = [set(STOPS) <= allowed(m) for m in matcher.masks(list(b"abcc"))]
  assert free == [False, False, True, True, True]
  assert not any(i in allowed(matcher.masks([])[0]) for i in STOPS)
  matcher.accept(list(b"abc"))
  assert matcher.may_end() and not matcher.must_end()


@pytest.mark.parametrize("draft", [b"ab", b"a", b""])
def test_an_end_inside_of_a_draft_does_no_harm(draft):
  """llguidance counts an EOS differently in each state: it never sees one."""
  matcher = regex("ab")
  masks = matcher.masks([*draft, *STOPS, 97])
  assert allowed(masks[0]) == {97}
  everything = set(range(fakes.SIZE))
  assert all(allowed(m) == everything for m in masks[len(draft) + 1 :])
  if draft == b"ab":
    assert allowed(masks[2]) == set(STOPS)
  matcher.accept(list(b"ab"))
  assert matcher.must_end() and matcher.forced() == []
  matcher.accept([STOPS[0]])
  assert allowed(matcher.masks([STOPS[1]])[0]) == set(STOPS)
  assert not matcher.dead


def test_an_illegal_token_is_told():
  matcher = regex("ab")
  matcher.accept([98])
  assert matcher.dead


def test_the_grammar_begins_behind_the_end_of_thinking():
  """Also where the mark falls into the middle of a draft (vllm#36138)."""
  matcher = regex("ab", after=fakes.END_THINK)
  everything = set(range(fakes.SIZE))
  masks = matcher.masks([120, fakes.END_THINK, 97, 98])
  found = [allowed(m) for m in masks]
  assert found == [everything, everything, {97}, {98}, set(STOPS)]
  assert matcher.forced() == [] and not matcher.may_end()
  matcher.accept([120, fakes.EOS, fakes.END_THINK, 97])
  assert allowed(matcher.masks([])[0]) == {98} and not matcher.dead


SCHEMA = {
  "type": "object",
  "properties": {
    "name": {"type": "string", "maxLength": 4},
    "sizes": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
    "kind": {"enum": ["a", "b"]},
  },
  "required": ["name", "sizes", "kind"],
  "additionalProperties": False,
}


def test_json_that_masks_lead_to_is_of_the_schema():
  rng = np.random.default_rng(1)
  for _ in range(20):
    text = says(GRAMMARS.matcher(json_spec("guided_json", SCHEMA)), rng.choice)
    if not text.endswith(b"}"):
      continue  # A number without end.
    made = json.loads(text)
    assert set(made) == set(SCHEMA["properties"])
    assert len(made["name"]) <= 4 and made["kind"] in "ab"
    assert all(isinstance(i, int) for i in made["sizes"])


def test_white_space_cannot_run_away():
  matcher = GRAMMARS.matcher(json_spec("guided_json", SCHEMA))
  assert bytes(matcher.forced()) == b'{"name": "'
  matcher.accept(b'{"name": "x", "sizes": [')
  assert 32 not in allowed(matcher.masks([])[0])


def test_choices_are_taken_letter_by_letter():
  choices = ["a b", 'é\n"q"', "\\d", "a"]
  for choice in choices:
    spec = Spec("guided_choice", "choice", json.dumps(choices))
    matcher = GRAMMARS.matcher(spec)
    matcher.accept(choice.encode())
    assert matcher.may_end() and not matcher.dead


def test_rows_of_one_grammar_go_their_own_ways():
  one, two = regex("ab"), regex("ab")
  one.accept([97])
  assert (one.forced(), two.forced()) == ([98], [97, 98])


@pytest.mark.parametrize(("kind", "source", "text"), [
  ("regex", "(?=a)b", "look-around"),
  ("regex", "[", "unclosed"),
  ("json", '{"format": "zzz", "type": "string"}', "zzz"),
  ("json", "[]", "should be an object"),
  ("grammar", "start: x", "unknown name"),
  ("regex", "a" * 65537, "at most 65536 characters, got 65537"),
])  # fmt: skip
def test_what_cannot_be_followed_is_told_before_it_is_admitted(
  kind, source, text
):
  with pytest.raises(Refusal, match=text) as error:
    GRAMMARS.matcher(Spec("the_field", kind, source))
  assert error.value.param == "the_field" and error.value.status == 400


class NoBraces(fakes.ByteTokenizer):
  """A vocabulary without braces: they are an unknown token, as others are."""

  def encode_rendered(self, text):
    return [fakes.MASK if i in b"{}" else i for i in text.encode()]

  def pieces(self):
    return [None if bytes([i]) in b"{}" else bytes([i]) for i in range(256)]


def test_what_a_vocabulary_cannot_write():
  """Refused where nothing can begin it; else the output ends where it must."""
  grammars = Grammars(NoBraces(), fakes.SIZE, STOPS)
  for spec in (
    json_spec("response_format", {"type": "object"}),
    Spec("response_format", "regex", "[{}][a-z]+"),
    Spec("response_format", "choice", '["{a", "}b"]'),
  ):
    with pytest.raises(Refusal, match="vocabulary") as e:
      grammars.matcher(spec)
    assert e.value.param == "response_format"
  matcher = grammars.matcher(Spec("guided_regex", "regex", "(ab|b)\\{c"))
  first, second, third, _ = matcher.masks(list(b"aba"))
  assert (allowed(first), allowed(second)) == ({97, 98}, {98})
  assert allowed(third) <= {*STOPS}
  matcher.accept(b"a")  # A draft into the dead end has changed nothing.
  assert allowed(matcher.masks([])[0]) == {98}
  matcher.accept(b"b")
  assert allowed(matcher.masks([])[0]) <= {*STOPS} and not matcher.dead
