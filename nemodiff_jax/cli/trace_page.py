"""A trace as one file: the server's page, with the trace in it."""

import base64
import hashlib
import importlib.resources
import re

# In the order in which one needs the other.
_SCRIPTS = "lane", "player", "draw", "watch", "trace"
_IMPORT = re.compile(r"^import .*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)


def page(trace: str) -> str:
  """The page that plays a trace, given as JSON; it needs nothing else."""
  folder = importlib.resources.files("nemodiff_jax") / "assets" / "page"
  read = lambda name: (folder / name).read_text(encoding="utf-8")
  modules = "".join(read(f"{name}.js") for name in _SCRIPTS)
  script = '"use strict";\n' + _EXPORT.sub("", _IMPORT.sub("", modules))
  parts = {
    "STYLE": read("style.css"),
    "SCRIPT": script,
    "TRACE": trace.replace("<", "\\u003c"),  # Ends no script, is no comment.
  }
  parts["HASHES"] = f"style-src {_hash(parts['STYLE'])}; script-src" + (
    f" {_hash(script)}"
  )
  return re.sub(
    r"\{([A-Z]+)\}", lambda found: parts[found[1]], read("trace.html")
  )


def _hash(text: str) -> str:
  """What a policy calls a text by."""
  digest = hashlib.sha256(text.encode()).digest()
  return f"'sha256-{base64.b64encode(digest).decode()}'"
