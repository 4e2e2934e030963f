"""Converts checkpoints: one command, a word for what it should do.

    nemodiff-convert to-orbax --source=HF --target=ORBAX [--quantize=int8]
    nemodiff-convert to-hf --source=ORBAX --target=HF [--shard_size=5GB]
    nemodiff-convert trimode --source=MINISTRAL_OR_GGUF --target=DIR
    nemodiff-convert verify --source=ONE --target=OTHER

nemodiff-convert WORD --help lists the flags.
"""

import importlib
import sys

from checkpoints_convert import command
from nemodiff_jax import __version__
from nemodiff_jax.errors import nearest

_MODULES = {  # Each defines flags, so only one is imported.
  "to-orbax": "hf_to_orbax",
  "to-hf": "orbax_to_hf",
  "trimode": "ar_to_trimode",
  "verify": "verify",
}


def console() -> None:
  """Entry point of the installed command."""
  word = sys.argv[1] if len(sys.argv) > 1 else ""
  if word in ("-h", "--help"):
    print(__doc__)
  elif word == "--version":
    print(f"nemodiff {__version__}")
  elif word not in _MODULES:
    print(
      f"error: expected one of {', '.join(_MODULES)}, got {word!r}"
      f"{nearest(word, _MODULES, 'word')}; --help explains them.",
      file=sys.stderr,
    )
    sys.exit(2)
  else:
    sys.argv[:2] = [f"nemodiff-convert {word}"]
    module = importlib.import_module(f"checkpoints_convert.{_MODULES[word]}")
    command.run(module.main)


if __name__ == "__main__":
  console()
