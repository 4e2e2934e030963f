"""A peer to compare speeds with."""

import json
import os
import subprocess
import sys
from pathlib import Path

from nemodiff_jax.errors import UserError


class Peer:
  """transformers in a process of its own.

  Attributes:
    versions: of torch and transformers.
  """

  def __init__(self, folder: str):
    """Loads a released-layout folder.

    Raises:
      UserError: torch or transformers is missing.
    """
    command = [os.environ.get("PEER_PYTHON", sys.executable)]
    command += [str(Path(__file__).with_name("peer_transformers.py")), folder]
    self.process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    if self.process.stdin is None or self.process.stdout is None:
      raise UserError("the peer has no pipes.")
    self.jobs, self.answers = self.process.stdin, self.process.stdout
    self.versions = self._read()

  def run(self, prompts: list[list[int]], tokens: int) -> dict:
    """{"seconds", "ids"} of greedy replies to equally long prompts."""
    job = json.dumps({"prompts": prompts, "tokens": tokens})
    print(job, file=self.jobs, flush=True)
    return self._read()

  def close(self) -> None:
    """Ends the process."""
    self.jobs.close()
    self.process.wait()

  def _read(self) -> dict:
    line = self.answers.readline()
    if not line:
      raise UserError(
        "the peer stopped: are torch and transformers there? PEER_PYTHON names"
        " a Python that has them."
      )
    return json.loads(line)
