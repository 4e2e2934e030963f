"""cli.generate --infill."""

import pytest

import nemodiff_jax as nd


def test_it_prints_what_the_library_fills(run, folder):
  text = "w9 w8{mask:3}w7 w6{mask:1-2}"
  code, out, err = run(f"--infill={text}", "--threshold=0.5")
  want = nd.infill(nd.load(str(folder)), text, threshold=0.5)
  assert code == 0 and out == want.text + "\n"
  count = sum(map(len, want.token_ids))
  assert f"[diffusion: {count} tokens in {want.nfe} passes, 2 holes]" in err


def test_a_prompt_stands_before_it(run, chatty):
  text = "w9{mask:3}w7"
  code, out, _ = run("--chat", "--prompt=w20", f"--infill={text}")
  ask = [{"role": "user", "content": "w20"}]
  want = nd.infill(nd.load(str(chatty)), text, ask)
  assert code == 0 and out == want.text + "\n"


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--infill=w9"], "the text should have a hole"),
    (["--infill=w9{mask:0}"], "at least 1 token"),
    (["--infill=w9{mask:1}", "--mode=ar"], "leave --mode=ar out"),
    (["--infill=w9{mask:1}", "--max_new_tokens=3"], "--max_new_tokens is not for"),
    (["--infill=w9{mask:1}", "--stream"], "--stream is not for --infill"),
  ],
)  # fmt: skip
def test_what_cannot_be_infilled_is_named(run, flags, message):
  code, _, err = run(*flags)
  assert code == 2 and message in err
