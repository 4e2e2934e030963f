"""Makes automodel_loss.npz with NeMo Automodel's HybridDiffusionLLMLoss.

    pip install torch numpy && pip install --no-deps nemo-automodel
    python tests/golden/make_automodel_loss.py

The tests need none of these. Inputs are drawn by `inputs` from a NumPy seed,
so that the file holds losses and gradients only.
"""

import datetime
import importlib.metadata
import json
import sys
import types
from pathlib import Path

import numpy as np

ROWS, LENGTH, VOCAB = 3, 24, 13
ALPHA = 0.3


def inputs() -> dict[str, np.ndarray]:
  """Logits of both halves, clean tokens, noise, and what is supervised."""
  rng = np.random.default_rng(20261124)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  supervised = rng.random((ROWS, LENGTH)) < 0.7
  level = np.repeat(rng.uniform(0.1, 0.9, (ROWS, 1)), LENGTH, 1)
  return {
    "noisy_logits": 2 * draw(ROWS, LENGTH, VOCAB),
    "causal_logits": 2 * draw(ROWS, LENGTH, VOCAB),
    "tokens": rng.integers(0, VOCAB, (ROWS, LENGTH)),
    "supervised": supervised,
    "masked": supervised & (rng.random((ROWS, LENGTH)) < level),
    "chance": level.astype(np.float32),
  }


def main() -> None:
  """Writes the file beside this script."""
  import torch

  # The loss's module imports a name of transformers that it does not use.
  if importlib.util.find_spec("transformers") is None:
    stand_in = types.ModuleType("transformers")
    vars(stand_in)["PretrainedConfig"] = object
    sys.modules["transformers"] = stand_in
  from nemo_automodel.components.loss.dllm_loss import HybridDiffusionLLMLoss

  given = {k: torch.from_numpy(v) for k, v in inputs().items()}
  for name in ("noisy_logits", "causal_logits"):
    given[name].requires_grad_()
  out = HybridDiffusionLLMLoss(alpha=ALPHA)(
    given["noisy_logits"],
    given["tokens"],
    given["masked"],
    given["chance"],
    given["supervised"],
    loss_mask_ar=given["supervised"],
    num_diffusion_tokens=int(given["supervised"].sum()),
    num_ar_tokens=int(given["supervised"][:, 1:].sum()),
    causal_logits=given["causal_logits"],
  )
  out.total_loss.backward()
  about = {
    "made": datetime.date.today().isoformat(),
    "nemo-automodel": importlib.metadata.version("nemo-automodel"),
    "torch": torch.__version__,
  }
  np.savez_compressed(
    Path(__file__).parent / "automodel_loss.npz",
    loss=out.total_loss.detach().numpy(),
    noisy_gradient=given["noisy_logits"].grad.numpy(),
    causal_gradient=given["causal_logits"].grad.numpy(),
    about=np.array(json.dumps(about)),
  )


if __name__ == "__main__":
  main()
