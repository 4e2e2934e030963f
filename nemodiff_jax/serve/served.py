"""What is served: the model as requests see it."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.prompts import END_THINK, START_THINK
from nemodiff_jax.serve.errors import Refusal
from nemodiff_jax.text.chat import ChatTemplate
from nemodiff_jax.text.pieces import spelled
from nemodiff_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Served:
  """The model, and what the server lets requests ask of it.

  Attributes:
    name: what it is called in answers, and in /v1/models.
    config: architecture and special ids.
    tokenizer: None where the checkpoint has none.
    template: chat template; None where the checkpoint has none.
    mode: of requests that name none.
    modes: that a request may name.
    widths: by mode, the block lengths that a request may name: numbers, and
      maybe 'auto'.
    features: fields of a Job that the engine serves.
    max_length: most positions of a request.
    grammars: compiler of grammars (`structured.Grammars`), if there is one.
    request_templates: take chat templates that requests bring.
    strict_model: other names than `name` are not served.
  """

  name: str
  config: ModelConfig
  tokenizer: Tokenizer | None
  template: ChatTemplate | None
  mode: str
  modes: tuple[str, ...]
  widths: Mapping[str, tuple[int | str, ...]]
  features: frozenset[str]
  max_length: int
  grammars: Any = None
  request_templates: bool = False
  strict_model: bool = False

  @functools.cached_property
  def pieces(self) -> list[bytes | None]:
    """Bytes of every id; None where no text shows it."""
    return self.text_tokenizer().pieces()

  def bytes_of(self, token: int) -> bytes | None:
    """UTF-8 of a token, whole characters or not; None where it has none."""
    return self.pieces[token] if token < len(self.pieces) else None

  def spelled(self, token: int) -> str:
    """A token's text, token_id:N where it has none."""
    return spelled(self.pieces, token)

  @property
  def thinks(self) -> bool:
    """Whether the template knows of reasoning."""
    template = self.template
    return template is not None and any(
      template.mentions(mark) for mark in (START_THINK, END_THINK)
    )

  def text_tokenizer(self) -> Tokenizer:
    """The tokenizer, where texts need one.

    Raises:
      Refusal: the checkpoint has none.
    """
    if self.tokenizer is None:
      raise Refusal(
        "this checkpoint has no tokenizer; /generate with input_ids is served."
      )
    return self.tokenizer

  def need(self, feature: str, field: str) -> None:
    """Raises a Refusal that names the field unless the engine serves it."""
    if feature not in self.features:
      raise Refusal(f"{field} is not served by this engine.", field)

  def check_name(self, model: str | None) -> None:
    """Raises a Refusal (404) for another model's name, if names are strict."""
    if self.strict_model and model and model != self.name:
      raise Refusal(
        f"the model {model[:100]!r} does not exist; {self.name!r} is served.",
        "model",
        404,
      )
