"""A client of SGLang's native protocol.

What it sends and reads is that of sglang.lang.RuntimeEndpoint and of
sglang.benchmark.serving 0.5.23.
"""

import json

import httpx2 as http


class Endpoint:
  """The calls of RuntimeEndpoint; each may compile programs."""

  def __init__(self, url):
    self.url = url
    info = http.get(f"{url}/get_model_info").json()
    assert isinstance(info["model_path"], str)

  def post(self, **body):
    response = http.post(f"{self.url}/generate", json=body, timeout=300)
    assert response.status_code == 200, response.text
    return response.json()

  def generate(self, text, **params):
    return self.post(text=text, sampling_params=params)

  def stream(self, text, **params):
    """Pieces of the text, cut out of the cumulative one by position."""
    body = {"text": text, "sampling_params": params, "stream": True}
    at, lines = 0, []
    with http.stream(
      "POST", f"{self.url}/generate", json=body, timeout=300
    ) as response:
      for line in response.iter_lines():
        if line.startswith("data:"):
          lines.append(line.removeprefix("data:").strip())
    assert lines[-1] == "[DONE]"
    for line in lines[:-1]:
      made = json.loads(line)
      yield made["text"][at:], made["meta_info"]
      at = len(made["text"])

  def select(self, text, choices):
    """The choice whose tokens are likeliest on the average."""
    start = self.post(text=text, sampling_params={"max_new_tokens": 0})
    found = self.post(
      text=[text + c for c in choices],
      sampling_params={"max_new_tokens": 0, "temperature": 0},
      return_logprob=True,
      return_text_in_logprobs=True,
      logprob_start_len=max(start["meta_info"]["prompt_tokens"] - 2, 0),
    )
    means = []
    for one in found:
      values = [r[0] for r in one["meta_info"]["input_token_logprobs"] if r[0]]
      means.append(sum(values) / len(values))
    return choices[max(range(len(choices)), key=means.__getitem__)]
