"""`suffix` of /v1/completions: what is given back fits in between."""

import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")
openai = pytest.importorskip("openai", reason="needs the extra [dev]")

import nemodiff_jax as nd
from nemodiff_jax.serve.errors import Refusal, read
from nemodiff_jax.serve.openai.requests import read_completion
from nemodiff_jax.serve.protocol.openai import CompletionRequest
from tests.serve import servers

BEFORE, AFTER = "17 + 25 =", "\n42 - 8 = 34\nThe answer is 34."


@pytest.fixture(scope="module")
def client(embedded):
  _, url, _ = embedded
  return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_a_suffix_is_infilling(embedded, client):
  """As the library does it, and streamed alike; other text without it."""
  model, _, _ = embedded
  how = {"model": "", "prompt": BEFORE, "max_tokens": 3, "temperature": 0}
  done = client.completions.create(**how, suffix=AFTER)
  want = nd.infill(model, f"{BEFORE}{{mask:1-3}}{AFTER}")
  assert done.choices[0].text == want.fills[0]
  assert done.usage.nfe == want.nfe > 0
  chunks = client.completions.create(**how, suffix=AFTER, stream=True)
  assert "".join(c.choices[0].text for c in chunks) == want.fills[0]
  echoed = client.completions.create(**how, suffix=AFTER, echo=True)
  assert echoed.choices[0].text == BEFORE + want.fills[0]


def asked(served, **fields):
  given = {"prompt": "hi", "suffix": "x"} | fields
  return read_completion(served, read(CompletionRequest, given))


def test_a_suffix_reaches_the_row():
  job = asked(servers.served(), max_tokens=5).jobs[0]
  assert job.mode == "diffusion" and job.row.following == (ord("x"),)
  assert job.adjust.min_tokens == 1 and job.row.max_new_tokens == 5
  assert asked(servers.served(), min_tokens=3).jobs[0].adjust.min_tokens == 3
  plain = asked(servers.served(), suffix="").jobs[0]
  assert plain.mode is None and plain.row.following == ()


@pytest.mark.parametrize(
  ("served", "fields", "message"),
  [
    ({}, {"mode": "ar"}, "suffix is for diffusion; the mode is ar"),
    ({"modes": ("ar",), "mode": "ar"}, {}, "needs diffusion, which is not served"),
    ({}, {"suffix": "a<mask>"}, "suffix: the text holds the mask token"),
  ],
)  # fmt: skip
def test_what_cannot_be_filled_is_a_400_that_names_it(served, fields, message):
  with pytest.raises(Refusal, match=message) as error:
    asked(servers.served(**served), **fields)
  assert error.value.param == "suffix" and error.value.status == 400
