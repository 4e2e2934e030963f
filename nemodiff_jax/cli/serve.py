r"""Serves a checkpoint to clients of OpenAI's protocol and of SGLang's own.

    python -m nemodiff_jax.cli.serve
    python -m nemodiff_jax.cli.serve --checkpoint=DIR --host=0.0.0.0 \
        --api_key=SECRET --rows=64 --warmup

Without arguments: the embedded checkpoint at http://127.0.0.1:8000. Requests may
name their mode and block length. docs/serving.md has an example of each feature.
The first signal (SIGTERM, Ctrl-C) lets what runs come to its end, for
--drain_seconds at most; the second ends it at once.
"""

import functools
import sys
from typing import Any

from absl import flags

from nemodiff_jax.cli import flags as shared
from nemodiff_jax.cli import main as process
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import Checkpoint

_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
_PORT = flags.DEFINE_integer("port", 8000, "Port; 0: any that is free.")
_API_KEY = flags.DEFINE_string(
  "api_key", None, "Key that requests have to bring. Default: none."
)
_NAME = flags.DEFINE_string(
  "served_model_name",
  None,
  "Name of the model in answers. Default: that of the checkpoint's folder.",
)
_MODES = flags.DEFINE_list(
  "modes",
  None,
  "Modes that requests may name, beside --mode. Default: all that the"
  " checkpoint has.",
)
_ROWS = flags.DEFINE_integer("rows", 16, "Requests that run at once.")
_QUEUE = flags.DEFINE_integer(
  "queue", 1024, "Requests that may wait; further ones are told to come again."
)
_MEMORY_FRACTION = flags.DEFINE_float(
  "memory_fraction", 0.8, "Of the memory that is free, for the cache; at most."
)
_WARMUP = flags.DEFINE_bool(
  "warmup",
  False,
  "Compile every program of the own mode before the first request, not when it"
  " is first needed.",
)
_DRAIN_SECONDS = flags.DEFINE_float(
  "drain_seconds", 30.0, "That running requests have to end, at a signal."
)
_STRICT_MODEL = flags.DEFINE_bool(
  "strict_model", False, "Refuse requests that name another model (404)."
)
_TEMPLATES = flags.DEFINE_bool(
  "allow_request_templates", False, "Take chat templates that requests bring."
)
_ALGORITHM = flags.DEFINE_string(
  "dllm_algorithm",
  None,
  "SGLang's name of a mode: FastDiffuser (diffusion) or LinearSpec.",
)
_ALGORITHM_CONFIG = flags.DEFINE_string(
  "dllm_algorithm_config", None, "SGLang's YAML file of its settings."
)
flags.adopt_module_key_flags(shared)


def main() -> int:
  """Runs the command; returns the exit code."""
  try:
    from nemodiff_jax.serve.run import run_server
  except ImportError as e:
    raise UserError(
      f"the server needs the extra [serve] ({e.name} is not installed): pip"
      " install 'nemodiff-jax[serve]'"
    ) from e
  _take_algorithm()
  if _ROWS.value < 1:
    raise UserError(f"rows should be at least 1, got {_ROWS.value}.")
  if not 0 < _MEMORY_FRACTION.value <= 1:
    raise UserError(
      f"memory_fraction should lie in (0, 1], got {_MEMORY_FRACTION.value}."
    )
  opened = shared.checkpoint()
  shared.run_config(opened.config)  # Refuses before the door is open.
  run_server(
    functools.partial(_load, opened),
    _HOST.value,
    _PORT.value,
    _API_KEY.value,
    _DRAIN_SECONDS.value,
  )
  return 0


def _load(opened: Checkpoint) -> tuple[Any, Any]:
  """The model as it is served, and its engine."""
  from nemodiff_jax import serving

  served, engine = serving.open_server(
    shared.load(opened),
    shared.run_config(opened.config),
    name=_NAME.value or opened.folder.name,
    modes=_MODES.value,
    rows=_ROWS.value,
    queue=_QUEUE.value,
    max_length=shared.max_length(),
    memory_fraction=_MEMORY_FRACTION.value,
    request_templates=_TEMPLATES.value,
    strict_model=_STRICT_MODEL.value,
  )
  say = functools.partial(print, file=sys.stderr, flush=True)
  figures = engine.statistics()
  say(
    f"{served.name}: {served.mode}, {_ROWS.value} rows,"
    f" {figures['pages']} pages of 128 positions, requests of at most"
    f" {served.max_length} positions"
  )
  if _WARMUP.value:
    for key in engine.warm_up():
      say("compiling", *key)
  say("ready")
  return served, engine


def _take_algorithm() -> None:
  """--dllm_algorithm and its file as our own flags.

  Raises:
    UserError: a setting given twice.
  """
  if _ALGORITHM.value is None:
    if _ALGORITHM_CONFIG.value is not None:
      raise UserError("dllm_algorithm_config needs --dllm_algorithm.")
    return
  from nemodiff_jax.serve.algorithms import read_algorithm

  for name, value in read_algorithm(
    _ALGORITHM.value, _ALGORITHM_CONFIG.value
  ).items():
    flag = flags.FLAGS[name]
    if flag.present:
      raise UserError(f"--{name} is given by --dllm_algorithm already.")
    flag.parse(str(value))


def console() -> None:
  """Entry point of the installed command."""
  process.console(main)


if __name__ == "__main__":
  console()
