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
    model, config, name="embedded", modes=["ar"], rows=2
  )
  with servers.run(load) as (address, service):
    yield model, address, service
