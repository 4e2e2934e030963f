"""cli.generate: chat, streams, traces and log-probabilities."""

import json
import subprocess
import sys

import pytest

from tests.cli.conftest import write


def test_chat_goes_through_the_template(run, chatty, tmp_path):
  path = tmp_path / "in.jsonl"
  hello = [{"role": "user", "content": "w20 w21"}]
  write(
    path,
    [
      {"prompt_ids": [1, 7, 20, 21, 12]},
      {"messages": hello},
      {"messages": hello, "enable_thinking": True},
      {"prompt_ids": [1, 7, 20, 21, 11]},
    ],
  )
  _, out, _ = run(f"--prompts_file={path}", "--max_new_tokens=5")
  ids = [json.loads(x)["token_ids"] for x in out.splitlines()]
  assert ids[0] == ids[1] != ids[2] == ids[3]
  _, text, _ = run("--chat", "--prompt=w20 w21", "--max_new_tokens=5")
  assert text.split() == [f"w{i}" for i in ids[0]]
  _, text, _ = run(
    "--chat", "--prompt=w20 w21", "--max_new_tokens=5", "--enable_thinking"
  )
  assert text.split() == [f"w{i}" for i in ids[2]]


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ({"messages": []}, "at least one message"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "role should be one of"),
    ({"messages": [{"role": "tool", "content": "w7"}]}, "chat template: no tools here"),
    ({"prompt": "w7", "enable_thinking": "no"}, "should be true or false"),
    ({"prompt": "w7", "stop": ["a"] * 17}, "at most 16 texts"),
    ({"prompt": "w7", "max_thinking_tokens": 3}, "'</think>', which the tokenizer"),
  ],
)  # fmt: skip
def test_bad_chat_lines_are_named(run, chatty, tmp_path, line, message):
  path = tmp_path / "in.jsonl"
  write(path, [line])
  code, out, _ = run(f"--prompts_file={path}")
  assert code == 3 and message in json.loads(out)["error"]["message"]


def test_chat_without_a_template(run):
  code, _, err = run("--chat", "--prompt=w7")
  assert code == 2 and "has no chat template" in err


@pytest.mark.parametrize("mode", ["ar", "diffusion", "linear_spec"])
def test_stream_matches_whole(run, mode):
  how = ["--prompt=w9 w8", f"--mode={mode}", "--max_new_tokens=20"]
  assert run(*how, "--stream") == run(*how)
  _, text, _ = run(*how)
  stop = f"--stop={text.split()[6]}"
  cut = run(*how, stop, "--stream")
  assert cut == run(*how, stop) and "stop]" in cut[2]
  assert text.startswith(cut[1].rstrip("\n"))


def test_trace_is_json_and_plays_in_a_terminal(run, tmp_path):
  path = tmp_path / "t.json"
  how = ["--prompt=w9 w8", "--mode=diffusion", "--max_new_tokens=12"]
  code, text, _ = run(*how, f"--trace={path}")
  trace = json.loads(path.read_text())
  assert code == 0 and trace["output"]["text"] == text.rstrip("\n")
  said = [i for p in trace["passes"] for i in p["tokens"]]
  assert said == trace["output"]["token_ids"]
  code, shown, _ = run(*how, "--trace=-")
  assert code == 0 and text.split()[-1] in shown
  code, _, err = run(*how, "--trace=t.txt")
  assert code == 2 and "should be '-' or end in .json or .html" in err
  code, _, err = run(*how, "--trace=/no/such/folder/t.json")
  assert code == 2 and "cannot be written" in err


def test_trace_page_holds_the_whole_trace(run, tmp_path):
  data, page = tmp_path / "t.json", tmp_path / "t.html"
  how = ["--prompt=w9 w8", "--mode=linear_spec", "--max_new_tokens=12"]
  assert run(*how, f"--trace={page}") == run(*how, f"--trace={data}")
  text = page.read_text()
  inside = text.split('type="application/json">')[1].split("</script>")[0]
  trace = json.loads(inside)
  assert trace == json.loads(data.read_text())
  said = "".join(t for p in trace["passes"] for t in p["texts"])
  assert said == trace["output"]["text"] and trace["prompt"] == "w9 w8"
  assert "http:" not in text and "https:" not in text  # Needs nothing else.


def test_a_narrow_terminal_is_named(run, monkeypatch):
  monkeypatch.setenv("COLUMNS", "12")
  code, _, err = run("--prompt=w9", "--trace=-")
  assert code == 2 and "at least 24 columns" in err


def test_stream_and_trace_are_for_one_prompt(run, job):
  code, _, err = run(f"--prompts_file={job}", "--stream")
  assert code == 2 and "--stream and --trace need --prompt" in err


def test_logprobs_line(run, tmp_path):
  path = tmp_path / "in.jsonl"
  write(path, [{"prompt": "w9", "logprobs": 2, "max_new_tokens": 3}])
  _, out, _ = run(f"--prompts_file={path}")
  found = json.loads(out)["logprobs"]
  assert len(found["token"]) == len(found["top"]) == 3
  assert [len(x) for x in found["top_ids"]] == [2, 2, 2]


def test_a_full_disk_behind_the_output_is_no_traceback(folder):
  command = (
    f"{sys.executable} -m nemodiff_jax.cli.generate --checkpoint={folder}"
    " --prompt=w9 --max_new_tokens=3 > /dev/full"
  )
  done = subprocess.run(command, shell=True, capture_output=True, text=True)
  assert done.returncode == 2
  assert "error:" in done.stderr and "No space left" in done.stderr
  assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_traceback(job, folder):
  command = (
    f"{sys.executable} -m nemodiff_jax.cli.generate --checkpoint={folder}"
    f" --prompts_file={job} | true"  # Gone before the first line.
  )
  done = subprocess.run(command, shell=True, capture_output=True, text=True)
  assert done.stderr == ""
