"""The kind of every request: strict types, known names, finite numbers."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

MAX_STOPS = 16
MAX_STOP_CHARS = 1000
MAX_N = 64
MAX_PROMPTS = 1024
MAX_LIST = 1024  # Entries of a bias, of ids, of bad words.
MAX_TOOLS = 128
SEED = 2**63


class Wire(BaseModel):
  """A JSON object with these keys and no others; null counts as absent."""

  model_config = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
  )

  @model_validator(mode="before")
  @classmethod
  def _without_nulls(cls, given: Any) -> Any:
    if isinstance(given, dict):
      return {k: v for k, v in given.items() if v is not None}
    return given
