"""A server over the engine of a module."""

import pytest


@pytest.fixture(scope="module")
def url(engine):
  """The address of a server; the module says what its engine answers."""
  from tests.serve import servers  # Needs the extra [serve].

  with servers.serve(engine) as (address, _):
    yield address
