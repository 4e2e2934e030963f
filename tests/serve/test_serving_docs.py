"""docs/serving.md names every field of a request, and its examples run."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Literal

import pytest

pydantic = pytest.importorskip("pydantic", reason="needs the extra [serve]")

from nemodiff_jax.serve.protocol.openai import ChatRequest, CompletionRequest
from nemodiff_jax.serve.protocol.sglang import GenerateRequest, SamplingParams

DOC = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()

NAMES = re.findall(r"^### (.+)$", DOC, re.MULTILINE)
OTHER = "JSON, tools, reasoning"  # Not of the embedded checkpoint.


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
  section = DOC.split("\n## SGLang")[1]
  for name in {*served} - {"return_hidden_states", "skip_special_tokens"}:
    assert re.search(rf"\b{name}\b", section), name


def examples(name):
  """The examples of a section, one after the other."""
  section = re.split(r"^##", DOC.split(f"### {name}\n")[1], flags=re.MULTILINE)[
    0
  ]
  return "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not there")
def test_every_curl_command_is_answered(embedded):
  _, url, _ = embedded
  section = DOC.split("## With curl\n")[1].split("```")[1].removeprefix("sh")
  commands = section.replace("\\\n", " ").strip().splitlines()
  assert len(commands) == 5
  for command in commands:
    here = command.replace("http://127.0.0.1:8000", url)
    done = subprocess.run(here, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert done.stdout
    if "17 + 25" in command:
      assert "The answer is 34." in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_every_example_runs(name, request):
  """On the engine, with the real clients; `ask` is that of the first one."""
  openai = pytest.importorskip("openai", reason="needs the extra [dev]")
  http = pytest.importorskip("httpx2", reason="needs the extra [dev]")
  pytest.importorskip("llguidance", reason="needs the extra [serve]")
  fixture = "bytes_server" if name == OTHER else "embedded"
  _, url, _ = request.getfixturevalue(fixture)
  source = examples(name)
  assert "assert" in source
  with openai.OpenAI(
    base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300
  ) as client:
    given = {
      "client": client, "url": url, "openai": openai, "httpx2": http,
      "json": json, "pydantic": pydantic, "Literal": Literal,
      "ask": [{"role": "user", "content": "What is 3 + 4?"}],
    }  # fmt: skip
    exec(compile(source, name, "exec"), given)
