"""Outputs that have to match: what a request asks for, and compiled grammars.

The library is llguidance. A grammar is compiled once and copied for each row.
"""

import collections
import dataclasses
import json
import threading
from collections.abc import Sequence
from typing import Any

from nemodiff_jax.serve.errors import Refusal
from nemodiff_jax.serve.matcher import Matcher, pack
from nemodiff_jax.text.tokenizer import Tokenizer

MAX_CHARS = 65536  # Of a schema, a regex, a grammar, or all choices.
_KEPT = 64  # Compiled grammars.
# White space is where models run away: one space after , and : and no more.
JSON_OPTIONS = {
  "whitespace_flexible": False,
  "item_separator": ", ",
  "key_separator": ": ",
}


@dataclasses.dataclass(frozen=True)
class Spec:
  """What an output has to match.

  Attributes:
    field: of the request, to name in errors.
    kind: 'json', 'regex', 'choice' or 'grammar'.
    source: a schema as JSON, a regex, choices as JSON, or a Lark grammar.
  """

  field: str
  kind: str
  source: str


def json_spec(field: str, schema: Any) -> Spec:
  """The spec of a JSON schema, given as a value or as its text."""
  text = schema if isinstance(schema, str) else json.dumps(schema)
  return Spec(field, "json", text)


def check_size(spec: Spec) -> Spec:
  """The spec, unless it is too large.

  Raises:
    Refusal: its source has more than MAX_CHARS characters.
  """
  if len(spec.source) > MAX_CHARS:
    raise Refusal(
      f"{spec.field} should have at most {MAX_CHARS} characters, got"
      f" {len(spec.source)}.",
      spec.field,
    )
  return spec


class Grammars:
  """Compiles grammars for one vocabulary; threads may share it."""

  def __init__(self, tokenizer: Tokenizer, size: int, eos_ids: Sequence[int]):
    """A vocabulary.

    Args:
      tokenizer: whose pieces are matched.
      size: ids that logits are for; ids without a piece are never said.
      eos_ids: that end a row; the first is the main one.
    """
    import llguidance

    self._library = llguidance
    self._eos = list(eos_ids)
    vocabulary = _Vocabulary(tokenizer, size, self._eos)
    plain = set(range(size)) - {*vocabulary.special_token_ids}
    self._plain = pack(plain | {*eos_ids}, size)
    self._tokenizer = llguidance.LLTokenizer(
      llguidance.TokenizerWrapper(vocabulary),
      n_vocab=size,
      eos_token=self._eos,
    )
    self._lock = threading.Lock()
    self._kept: collections.OrderedDict[Spec, Any] = collections.OrderedDict()

  def matcher(self, spec: Spec, after: int | None = None) -> Matcher:
    """A matcher at the beginning of an output; may take a second.

    Args:
      spec: what to match.
      after: the token that the grammar begins behind; None: at once.

    Raises:
      Refusal: what is wrong with the grammar.
    """
    with self._lock:
      compiled = self._kept.get(spec)
    if compiled is None:
      compiled = self._compile(check_size(spec))
      if Matcher(compiled, self._plain, self._eos, None).stuck():
        raise Refusal(
          f"{spec.field}: no token of this checkpoint's vocabulary can begin"
          " what it asks for.",
          spec.field,
        )
    with self._lock:
      self._kept[spec] = compiled
      self._kept.move_to_end(spec)
      if len(self._kept) > _KEPT:
        self._kept.popitem(last=False)
      fresh = compiled.deep_copy()
    return Matcher(fresh, self._plain, self._eos, after)

  def _compile(self, spec: Spec) -> Any:
    made = self._library.LLMatcher(
      self._tokenizer, self._grammar(spec), log_level=0
    )
    if made.is_error():
      reason = " ".join(made.get_error().split())
      raise Refusal(
        f"{spec.field}: cannot be followed: {reason[:300]}.", spec.field
      )
    return made

  def _grammar(self, spec: Spec) -> str:
    make = self._library.LLMatcher
    if spec.kind == "regex":
      return make.grammar_from_regex(spec.source)
    if spec.kind == "grammar":
      return make.grammar_from_lark(spec.source)
    if spec.kind == "choice":
      choices = [json.dumps(c) for c in json.loads(spec.source)]
      return make.grammar_from_lark("start: " + " | ".join(choices))
    try:
      schema = json.loads(spec.source)
    except (ValueError, RecursionError) as e:
      raise Refusal(
        f"{spec.field}: the schema is no JSON ({e}).", spec.field
      ) from e
    if not isinstance(schema, (dict, bool)):
      raise Refusal(
        f"{spec.field}: the schema should be an object, got {spec.source:.60}.",
        spec.field,
      )
    return make.grammar_from_json_schema(
      json.dumps(schema), overrides=JSON_OPTIONS
    )


class _Vocabulary:
  """A tokenizer as llguidance asks for it."""

  def __init__(self, tokenizer: Tokenizer, size: int, eos_ids: Sequence[int]):
    pieces = (tokenizer.pieces() + [None] * size)[:size]
    for i in eos_ids:
      pieces[i] = None
    self.eos_token_id = eos_ids[0]
    self.bos_token_id = None
    self.special_token_ids = [i for i, p in enumerate(pieces) if not p]
    self.tokens = [p or f"<{i}>".encode() for i, p in enumerate(pieces)]
    self._tokenizer = tokenizer

  def __call__(self, text: str) -> list[int]:
    """Ids of a text, for forced tokens."""
    return self._tokenizer.encode_rendered(text)
