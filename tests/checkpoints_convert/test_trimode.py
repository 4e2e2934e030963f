"""Tri-mode checkpoints from Ministral-3 folders."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from checkpoints_convert import compare, trimode
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import open_checkpoint
from tests import helpers
from tests.checkpoints_convert.test_round_trip import write_source


@pytest.mark.parametrize("layout", ["ministral3", "multimodal"])
def test_base_model_keeps_its_logits(tmp_path, tiny, layout):
  base, target = str(tmp_path / "base"), str(tmp_path / "target")
  write_source(tmp_path / "base", tiny, layout, shards=2)
  trimode.ar_to_trimode(base, target, "w7", 4)
  a, b = open_checkpoint(base), open_checkpoint(target)
  assert (b.config.mask_id, b.config.block_size) == (7, 4)
  config = json.loads((tmp_path / "target" / "config.json").read_text())
  assert config["model_type"] == "nemotron_labs_diffusion"
  assert config["mask_token_id"] == 7 and config["block_size"] == 4
  assert b.config.rope == a.config.rope and b.config.eos_ids == (2,)
  prompt = [9, 8, 7, 60]
  np.testing.assert_array_equal(
    compare.prompt_logits(b.config, b.load_params(), prompt),
    compare.prompt_logits(a.config, a.load_params(), prompt),
  )
  names = {
    n for f in (tmp_path / "target").glob("*.safe*s") for n in load_file(f)
  }
  assert len(names) == 21 and "diffusion_head.weight" in names
  assert b.tokenizer.encode("w9") == [1, 9]


def test_tied_embeddings_get_a_head_of_their_own(tmp_path):
  tied = helpers.make_tiny(tie_embeddings=True)
  helpers.write_checkpoint(tmp_path / "base", tied, dtype=ml_dtypes.bfloat16)
  base, target = str(tmp_path / "base"), str(tmp_path / "target")
  trimode.ar_to_trimode(base, target, "6", 32)
  params = open_checkpoint(target).load_params()
  np.testing.assert_array_equal(
    params["diffusion_head"]["kernel"], params["embed_tokens"]["embedding"].T
  )


@pytest.mark.parametrize(
  "mask, message",
  [
    ("w97", "--mask=w97 should be a token of the tokenizer"),
    ("97", "--mask=97 should be .* or an id below 97"),
    ("w2", "--mask=w2 is a token that begins or ends texts"),
  ],
)
def test_mask_is_an_unused_token(folder, tmp_path, mask, message):
  with pytest.raises(UserError, match=message):
    trimode.ar_to_trimode(str(folder), str(tmp_path / "target"), mask, 32)
  assert not list(tmp_path.iterdir())
