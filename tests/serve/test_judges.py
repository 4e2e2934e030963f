"""Programs of others that judge a server by its address alone."""

import json
import re
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")

from tests.serve import fakes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine():
  return fakes.FakeEngine(lambda job: [97, fakes.EOS])


def test_no_request_that_our_document_allows_is_a_500(url):
  """Nor is one that it does not; answers are of the kinds that it names."""
  pytest.importorskip("schemathesis", reason="needs the extra [judges]")
  command = [
    sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json",
    "--checks=not_a_server_error,status_code_conformance,unsupported_method,"
    "content_type_conformance",
    "--phases=examples,coverage,fuzzing", "--max-examples=40", "--seed=1",
    "--warnings=off", "--continue-on-failure", "--suppress-health-check=all",
    "--no-color",
  ]  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stdout[-5000:]
  assert int(re.findall(r"Tested: (\d+)", done.stdout)[0]) >= 20


CANARY = "compatcanary@0.2.2"


def test_compatcanary_misses_nothing_but_the_responses_api(bytes_server):
  """That API is not served: docs/serving.md says so."""
  if not shutil.which("npx"):
    pytest.skip("npx is not installed")
  _, url, _ = bytes_server
  command = [
    "npx", "--yes", CANARY, "scan", "--base-url", f"{url}/v1", "--model", "bytes",
    "--profile", "modern", "--format", "json", "--fail-on", "never",
    "--timeout", "300",
  ]  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True, timeout=900)
  if "npm error" in done.stderr and "network" in done.stderr:
    pytest.skip("npm cannot reach its registry")
  assert done.returncode == 0, done.stderr
  found = {r["id"]: r["status"] for r in json.loads(done.stdout)["results"]}
  missed = {name for name, status in found.items() if status != "pass"}
  assert len(found) == 7 and {n.split(".")[0] for n in missed} == {"responses"}
