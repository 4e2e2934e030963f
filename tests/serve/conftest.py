"""Servers over the engine of a module, and over the embedded checkpoint."""

import pytest


@pytest.fixture(scope="module")
def url(engine):
  """The address of a server; the module says what its engine answers."""
  from tests.serve import servers  # Needs the extra [serve].

  with servers.serve(engine) as (address, _):
    yield address


@pytest.fixture(scope="session")
def embedded():
  """A model, the address of a server of it, and its service."""
  import nemodiff_jax as nd
  from nemodiff_jax import serving
  from nemodiff_jax.decode.config import decode_config
  from tests.serve import servers

  model = nd.load()
  config = decode_config(model.config, "linear_spec")
  load = lambda: serving.open_server(
    model, config, name="embedded", modes=["ar", "diffusion"], rows=2
  )
  with servers.run(load) as (address, service):
    yield model, address, service


@pytest.fixture(scope="session")
def bytes_server():
  """The same of a random model with a vocabulary of bytes: it has braces."""
  from nemodiff_jax import serving
  from nemodiff_jax.decode.config import decode_config
  from nemodiff_jax.model import Model
  from nemodiff_jax.text.template import ChatTemplate
  from tests import helpers
  from tests.serve import fakes, servers

  tiny = helpers.make_tiny(
    1, vocab_size=fakes.SIZE, mask_id=fakes.MASK, eos_ids=(fakes.EOS,)
  )
  template = ChatTemplate(servers.TEMPLATE, {})
  model = Model(
    tiny.config,
    fakes.ByteTokenizer(),
    template,
    tiny.module,
    tiny.weights(True),
  )
  config = decode_config(tiny.config, "linear_spec")
  load = lambda: serving.open_server(
    model, config, name="bytes", rows=2, max_length=600
  )
  with servers.run(load) as (address, service):
    yield model, address, service
