"""SGLang's launch options, as its Nemotron branch's configs write them."""

import pytest

pytest.importorskip("yaml", reason="needs the extra [serve]")

from nemodiff_jax.errors import UserError
from nemodiff_jax.serve.algorithms import read_algorithm

# Keys and values of test/registered/dllm/configs there (serving.md 1.6).
LINEAR = """
algorithm: LinearSpec
causal_context: true
block_size: 32
lora_path: /models/lora
lora_mode: draft_only
inner_k_blocks: 4
"""


def write(tmp_path, text):
  path = tmp_path / "config.yaml"
  path.write_text(text)
  return str(path)


def test_settings_become_ours(tmp_path):
  assert read_algorithm("FastDiffuser", None) == {"mode": "diffusion"}
  assert read_algorithm("LinearSpec", write(tmp_path, LINEAR)) == {
    "mode": "linear_spec", "block_length": 32, "lora": "/models/lora",
  }  # fmt: skip
  fast = "causal_context: true\nthreshold: 0.9\nmax_steps: 8\n"
  assert read_algorithm("FastDiffuser", write(tmp_path, fast)) == {
    "mode": "diffusion", "threshold": 0.9, "steps_per_block": 8,
  }  # fmt: skip
  steps = "block_size: 32\ntokens_per_step: 3\nthreshold: null\n"
  found = read_algorithm("FastDiffuser", write(tmp_path, steps))
  assert found["steps_per_block"] == 11 and "threshold" not in found


@pytest.mark.parametrize(("text", "message"), [
  ("causal_context: false", "causal_context should be True, got False"),
  ("stats_file: x", "'stats_file' is not served; known are"),
  ("tokens_per_step: 2", "beside a block_size"),
  ("tokens_per_step: x\nblock_size: 8", "whole number"),
  ("- a", "expected keys and values"),
  ("a: [", "config.yaml"),
])  # fmt: skip
def test_what_is_not_served_is_told(tmp_path, text, message):
  with pytest.raises(UserError, match=message):
    read_algorithm("LinearSpec", write(tmp_path, text))


def test_other_algorithms_and_files_that_are_not_there():
  with pytest.raises(UserError, match="one of FastDiffuser, LinearSpec"):
    read_algorithm("JointThreshold", None)
  with pytest.raises(UserError, match=r"none\.yaml"):
    read_algorithm("LinearSpec", "none.yaml")
