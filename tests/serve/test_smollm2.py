"""JSON and tools on a real pretrained model, SmolLM2-135M: `make smollm2`.

Its drafts are poor, since it was never trained to fill in masks; the forced tokens
of a form are drafts as well. What it says is that of constrained ar.
"""

import json
from typing import Literal

import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")
pytest.importorskip("llguidance", reason="needs the extra [serve]")
openai = pytest.importorskip("openai", reason="needs the extra [dev]")
pydantic = pytest.importorskip("pydantic", reason="needs the extra [serve]")

import nemodiff_jax as nd
from nemodiff_jax import serving
from nemodiff_jax.decode.config import decode_config
from tests import helpers
from tests.serve import servers

pytestmark = pytest.mark.slow


class City(pydantic.BaseModel):
  """What is asked for."""

  model_config = pydantic.ConfigDict(extra="forbid")

  name: str
  country: Literal["France", "Italy", "Spain"]
  inhabitants: int
  rivers: list[str] = pydantic.Field(max_length=2)
  capital: bool | None


class Weather(pydantic.BaseModel):
  """Tells the weather of a city."""

  model_config = pydantic.ConfigDict(extra="forbid")

  city: str
  unit: Literal["celsius", "fahrenheit"]
  days: int = pydantic.Field(ge=1, le=7)


ASK = [{"role": "user", "content": "Describe the city of Paris as JSON."}]
FORECAST = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def client():
  model = nd.load(str(helpers.smollm2()))
  config = decode_config(model.config, "linear_spec")
  load = lambda: serving.open_server(
    model, config, name="smollm2", modes=["ar"], rows=2, max_length=500
  )
  with servers.run(load) as (url, _):
    yield openai.OpenAI(
      base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600
    )


def both(client, **given):
  """The answer in linear_spec, which is that of constrained ar."""
  given = {"max_tokens": 150} | given
  spec, ar = (
    client.chat.completions.create(model="", extra_body={"mode": mode}, **given)
    for mode in ("linear_spec", "ar")
  )
  assert said(spec) == said(ar)
  return spec


def said(answer):
  (choice,) = answer.choices
  calls = [c.function.arguments for c in choice.message.tool_calls or ()]
  return choice.message.content, calls, choice.finish_reason


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_an_answer_is_valid_and_that_of_constrained_ar(client, temperature):
  form = {
    "type": "json_schema",
    "json_schema": {"name": "city", "schema": City.model_json_schema()},
  }
  found = both(
    client, messages=ASK, response_format=form, temperature=temperature, seed=2
  )
  assert found.usage.accepted_draft_tokens > 10  # Names of the schema.
  (choice,) = found.choices
  assert choice.finish_reason == "stop"
  City.model_validate_json(choice.message.content)


def test_any_object_is_json(client):
  form = {"type": "json_object"}
  (choice,) = both(
    client, messages=ASK, response_format=form, temperature=0, max_tokens=40
  ).choices
  if choice.finish_reason == "stop":
    assert isinstance(json.loads(choice.message.content), dict)
  else:  # A small model may go on and on; what is there begins an object.
    assert choice.message.content.startswith("{")


@pytest.mark.parametrize("choice", ["required", "named"])
def test_arguments_of_tools_are_valid(client, choice):
  function = {"name": "weather", "parameters": Weather.model_json_schema()}
  named = {"type": "function", "function": {"name": "weather"}}
  found = both(
    client,
    messages=FORECAST,
    temperature=0,
    tools=[{"type": "function", "function": function}],
    tool_choice=named if choice == "named" else choice,
    parallel_tool_calls=False,
  )
  (call,) = found.choices[0].message.tool_calls
  assert call.function.name == "weather"
  Weather.model_validate_json(call.function.arguments)
