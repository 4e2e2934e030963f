"""docs/serving.md names every field of a request."""

import re
from pathlib import Path

import pytest

pytest.importorskip("pydantic", reason="needs the extra [serve]")

from nemodiff_jax.serve.protocol.openai import ChatRequest, CompletionRequest
from nemodiff_jax.serve.protocol.sglang import GenerateRequest, SamplingParams

DOC = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()


def test_the_table_has_every_field_and_no_other():
  table = DOC.split("| field | |")[1].split("\n\n")[0]
  rows = [line.split("|")[1] for line in table.splitlines() if "|" in line]
  named = [n for row in rows for n in re.findall(r"`(\w+)`", row)]
  fields = {*ChatRequest.model_fields, *CompletionRequest.model_fields}
  assert sorted(named) == sorted(fields)


def test_every_field_of_sglang_that_is_served_is_named():
  served = [
    name
    for kind in (GenerateRequest, SamplingParams)
    for name, field in kind.model_fields.items()
    if field.annotation is not type(None)
  ]
  section = DOC.split("## SGLang")[1]
  for name in {*served} - {"return_hidden_states", "skip_special_tokens"}:
    assert re.search(rf"\b{name}\b", section), name
