"""A server on a port of its own, over an engine that is given."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import Any

from nemodiff_jax.nn.config import preset
from nemodiff_jax.serve.served import Served
from nemodiff_jax.serve.structured import Grammars
from nemodiff_jax.text.template import ChatTemplate
from tests.serve import fakes

TEMPLATE = (
  "{% if tools %}<tools>{% for t in tools %}{{ t.function.name }},{% endfor %}"
  "{# calls: <tool_call> {...} </tool_call> #}</tools>{% endif %}"
  "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
  "{% if add_generation_prompt %}[assistant]"
  "{% if enable_thinking %}<think>{% endif %}{% endif %}"
)


def served(**changes: Any) -> Served:
  """The byte model: 2,000 positions, every mode, widths 8, 16 and 32."""
  config = dataclasses.replace(
    preset("tiny"),
    vocab_size=fakes.SIZE,
    mask_id=fakes.MASK,
    eos_ids=(fakes.EOS,),
    max_positions=2000,
  )
  tokenizer = fakes.ByteTokenizer()
  given: dict[str, Any] = {
    "name": "bytes",
    "config": config,
    "tokenizer": tokenizer,
    "template": ChatTemplate(TEMPLATE, {}),
    "mode": "linear_spec",
    "modes": ("ar", "diffusion", "linear_spec", "quadratic_spec"),
    "widths": {
      "diffusion": (16,),
      "linear_spec": (8, 16, 32, "auto"),
      "quadratic_spec": (16,),
    },
    "features": fakes.FEATURES,
    "max_length": 2000,
    "grammars": Grammars(tokenizer, fakes.SIZE, [fakes.EOS]),
  }
  return Served(**given | changes)


def serve(engine: Any, api_key: str | None = None, **changes: Any):
  """Serves the byte model over an engine that is given; see `run`."""
  return run(lambda: (served(**changes), engine), api_key)


@contextlib.contextmanager
def run(load: Any, api_key: str | None = None) -> Iterator[tuple[str, Any]]:
  """Yields the server's address and its service."""
  import uvicorn

  from nemodiff_jax.serve.app import make_app
  from nemodiff_jax.serve.service import Service

  service = Service()
  app = make_app(service, load, api_key)
  config = uvicorn.Config(app, port=0, log_level="error")
  server = uvicorn.Server(config)
  thread = threading.Thread(target=server.run, daemon=True)
  thread.start()
  try:
    while not (server.started and service.ready):
      assert thread.is_alive()
      time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}", service
  finally:
    server.should_exit = True
    thread.join()


def wait_for(what: Any, seconds: float = 20.0) -> None:
  """Waits until something holds."""
  end = time.monotonic() + seconds
  while not what():
    assert time.monotonic() < end
    time.sleep(0.005)
