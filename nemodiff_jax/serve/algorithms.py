"""SGLang's launch options for diffusion models, as ours.

`--dllm_algorithm=NAME --dllm_algorithm_config=F.yaml`, with the keys of the
branch of SGLang that serves Nemotron-Labs-Diffusion.
"""

from typing import Any

from nemodiff_jax.errors import UserError

MODES = {"FastDiffuser": "diffusion", "LinearSpec": "linear_spec"}
_OURS = {
  "block_size": "block_length",
  "max_steps": "steps_per_block",
  "threshold": "threshold",
  "lora_path": "lora",
  "temperature": None,  # Requests bring their own.
  "first_done_first_out_mode": None,  # Rows always leave when they are done.
  "inner_k_blocks": None,  # Visits have as many passes as pays.
  "profile": None,
  "algorithm": None,
}
_ONE = {"causal_context": True, "lora_mode": "draft_only"}


def read_algorithm(name: str, path: str | None) -> dict[str, Any]:
  """Values of our flags by name, `mode` among them.

  Args:
    name: of the algorithm.
    path: of the YAML file with its settings; None: none.

  Raises:
    UserError: an algorithm, a key or a value that is not served.
  """
  if name not in MODES:
    raise UserError(
      f"dllm_algorithm should be one of {', '.join(MODES)}, got {name!r}."
    )
  values: dict[str, Any] = {"mode": MODES[name]}
  for key, value in _read(path).items() if path else ():
    if key == "tokens_per_step":
      continue
    if key in _ONE:
      if value != _ONE[key]:
        raise UserError(
          f"{path}: {key} should be {_ONE[key]!r}, got {value!r}."
        )
    elif key not in _OURS:
      known = ", ".join(sorted([*_OURS, *_ONE, "tokens_per_step"]))
      raise UserError(f"{path}: {key!r} is not served; known are {known}.")
    elif (ours := _OURS[key]) is not None and value is not None:
      values[ours] = value
  return values | _steps(path, values)


def _steps(path: str | None, values: dict[str, Any]) -> dict[str, Any]:
  """tokens_per_step as the steps that a block needs by it."""
  each = _read(path).get("tokens_per_step") if path else None
  if each is None:
    return {}
  block = values.get("block_length")
  if block is None or not isinstance(each, int) or each < 1:
    raise UserError(
      f"{path}: tokens_per_step should be a whole number of at least 1, beside"
      f" a block_size; got {each!r}."
    )
  return {"steps_per_block": -(-block // each)}


def _read(path: str) -> dict[str, Any]:
  import yaml

  try:
    with open(path, encoding="utf-8") as file:
      found = yaml.safe_load(file)
  except (OSError, ValueError, yaml.YAMLError) as e:
    reason = " ".join(str(e).split())
    raise UserError(f"dllm_algorithm_config {path!r}: {reason}.") from e
  if not isinstance(found, dict):
    raise UserError(f"{path}: expected keys and values, found {found!r:.60}.")
  return found
