"""cli.generate from outside: exit codes and lines."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests import helpers
from tests.cli.conftest import read, write

KEYS = [
  "id", "text", "token_ids", "finish_reason", "mode", "nfe",
  "tokens_per_forward", "prompt_tokens", "completion_tokens",
]  # fmt: skip


def test_one_prompt_prints_its_text(run):
  code, out, err = run("--prompt=w9 w8 w30", "--max_new_tokens=4")
  assert code == 0
  words = out.split()
  assert len(words) == 4 and all(w.startswith("w") for w in words)
  assert re.search(r"\[linear_spec: 4 tokens in [2-9] passes, length\]", err)


@pytest.mark.parametrize(
  "mode", ["ar", "diffusion", "linear_spec", "quadratic_spec"]
)
def test_job_lines_hold_the_contract(run, job, tmp_path, mode):
  out = tmp_path / "out.jsonl"
  code, *_ = run(
    f"--prompts_file={job}", f"--output={out}", f"--mode={mode}",
    "--batch_size=2", "--temperature=0.5", "--keep_order",
  )  # fmt: skip
  assert code == 0
  lines = read(out)
  speculative = mode.endswith("_spec")
  assert [x["id"] for x in lines] == [f"p{i}" for i in range(5)]
  for i, line in enumerate(lines):
    assert list(line) == KEYS + ["accepted"] * speculative
    assert line["completion_tokens"] == len(line["token_ids"]) <= 5 + i
    assert line["tokens_per_forward"] == pytest.approx(
      len(line["token_ids"]) / line["nfe"]
    )
    assert line["mode"] == mode
    assert line["prompt_tokens"] == (3, 17, 9, 1, 30)[i]
    shown = line["token_ids"]
    shown = shown[:-1] if line["finish_reason"] == "stop" else shown
    assert line["text"].split() == [f"w{t}" for t in shown]


def test_results_do_not_depend_on_batch_size(run, job):
  how = f"--prompts_file={job}", "--mode=linear_spec"
  (whole,) = {
    run(*how, f"--batch_size={n}", "--keep_order")[1] for n in (1, 3, 8)
  }
  lines = run(*how, "--batch_size=2")[1].splitlines()  # As they are done.
  assert sorted(lines) == sorted(whole.splitlines())


def test_text_prompts_get_the_tokenizers_bos_and_ids_do_not(run, tmp_path):
  path = tmp_path / "in.jsonl"
  write(path, [{"prompt": "w9 w8"}, {"prompt_ids": [1, 9, 8]}])
  _, out, _ = run(f"--prompts_file={path}", "--max_new_tokens=4")
  a, b = map(json.loads, out.splitlines())
  assert (a.pop("id"), b.pop("id")) == (1, 2)  # Missing ids: line numbers.
  assert a == b and a["prompt_tokens"] == 3


def test_nothing_to_generate_from_a_seed_that_ends(run, tmp_path, tiny):
  """diffusion counts no pass for a row that ends at once."""
  prompt = helpers.prompts_of(tiny.config, (6,))[0]
  path = tmp_path / "in.jsonl"
  write(path, [{"prompt_ids": prompt, "max_new_tokens": 1}])
  _, out, _ = run(f"--prompts_file={path}", "--mode=diffusion")
  line = json.loads(out)
  assert (line["nfe"], line["tokens_per_forward"]) == (0, None)
  write(path, [{"prompt_ids": prompt, "stop_token_ids": line["token_ids"]}])
  _, out, _ = run(f"--prompts_file={path}", "--mode=diffusion")
  assert json.loads(out)["nfe"] == 0 and json.loads(out)["text"] == ""


BAD = [
  ('{"prompt_ids": [7', None, "bad_json", "line 1: not JSON"),
  ("[7, 8]", None, "bad_json", "expected a JSON object"),
  (
    {"prompt_ids": [7], "promt": "x"}, 1, "unknown_field",
    "'promt' (nearest known field: 'prompt'); known are",
  ),
  ({"prompt": "w7", "block_length": 8}, 1, "unknown_field", "--block_length"),
  ({"prompt": "w7", "mode": "ar"}, 1, "unknown_field", "job: give --mode"),
  ({"id": "x", "prompt_ids": []}, "x", "empty_prompt", "at least one token"),
  ({"prompt": ""}, 1, "empty_prompt", "at least one character"),
  ({"prompt_ids": [7, 97]}, 1, "bad_ids", r"in [0, 97), got 97"),
  ({"prompt_ids": [7, -1]}, 1, "bad_ids", r"in [0, 97), got -1"),
  ({"prompt_ids": [7, 1.5]}, 1, "bad_ids", "should be integers, got 1.5"),
  ({"prompt_ids": "7"}, 1, "bad_ids", "should be a list, got '7'"),
  ({"prompt_ids": [7, 5]}, 1, "bad_ids", "the mask id 5 at place 1"),
  ({"prompt": "w7 w5"}, 1, "bad_ids", "the mask id 5 at place 2"),
  ({"id": "\ud800", "prompt": "w7 \udc00"}, "\ud800", "bad_utf8", "surrogate"),
  ({"prompt": 3}, 1, "bad_value", "prompt should be a text, got 3"),
  ({"prompt": "w7", "prompt_ids": [7]}, 1, "no_prompt", "expected one of"),
  ({"id": "y"}, "y", "no_prompt", "expected one of prompt, prompt_ids, messages"),
  ({"id": 1.5, "prompt": "w7"}, None, "bad_id", "text or a whole number"),
  ({"prompt_ids": [7] * 510}, 1, "too_long", "should be at most 512"),
  ({"prompt_ids": [7], "max_new_tokens": 0}, 1, "bad_value", "at least 1, got 0"),
  ({"prompt_ids": [7], "max_new_tokens": "9"}, 1, "bad_value", "got '9'"),
  ({"prompt_ids": [7], "temperature": -1}, 1, "bad_value", "0 or positive"),
  ({"prompt_ids": [7], "temperature": 1e39}, 1, "bad_value", "at most 1000"),
  ({"prompt_ids": [7], "temperature": 10**400}, 1, "bad_value", "at most 1000"),
  ({"prompt_ids": [7], "temperature": "hot"}, 1, "bad_value", "be a number"),
  ({"prompt_ids": [7], "top_p": 0}, 1, "bad_value", "top_p should lie in (0, 1]"),
  ({"prompt_ids": [7], "top_p": 1.5}, 1, "bad_value", "top_p should lie in"),
  ({"prompt_ids": [7], "min_p": 2}, 1, "bad_value", "min_p should lie in [0, 1]"),
  ({"prompt_ids": [7], "top_k": -1}, 1, "bad_value", "top_k should be a whole"),
  ({"prompt_ids": [7], "seed": -3}, 1, "bad_value", "seed should be a whole"),
  ({"prompt_ids": [7], "seed": 2**64}, 1, "bad_value", "seed should be below"),
  ({"prompt_ids": [7], "ignore_eos": 1}, 1, "bad_value", "be true or false"),
  ({"prompt_ids": [7], "stop_token_ids": 3}, 1, "bad_value", "a list of token"),
  ({"prompt_ids": [7], "stop_token_ids": [99]}, 1, "bad_ids", "got 99"),
  ({"prompt_ids": [7], "temperature": float("nan")}, 1, "bad_value", "got NaN"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "name", "kind", "message"), BAD)
def test_bad_lines_are_reported_and_the_job_goes_on(
  run, tmp_path, line, name, kind, message
):
  path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  write(path, [line, "", {"id": "good", "prompt_ids": [7, 8]}])
  code, *_ = run(
    f"--prompts_file={path}", f"--output={out}", "--max_new_tokens=3"
  )
  assert code == 3
  bad, good = read(out)
  assert list(bad) == ["id", "line", "error"]
  assert (bad["id"], bad["line"], bad["error"]["type"]) == (name, 1, kind)
  assert message in bad["error"]["message"]
  assert good["id"] == "good" and good["completion_tokens"] == 3


def test_invalid_utf8_names_its_line(run, tmp_path):
  path = tmp_path / "in.jsonl"
  path.write_bytes(b'{"prompt": "w7"}\n{"prompt": "\xff"}\n')
  code, out, _ = run(f"--prompts_file={path}", "--max_new_tokens=2")
  error = next(x for x in map(json.loads, out.splitlines()) if "error" in x)
  assert (code, error["line"], error["error"]["type"]) == (3, 2, "bad_utf8")
  assert "line 2: not UTF-8" in error["error"]["message"]


def test_repeated_id_is_an_error_of_the_second(run, tmp_path):
  path = tmp_path / "in.jsonl"
  write(path, [{"id": 2, "prompt_ids": [7]}, {"prompt_ids": [8]}])
  code, out, _ = run(f"--prompts_file={path}", "--max_new_tokens=2")
  lines = [json.loads(x) for x in out.splitlines()]
  assert code == 3 and len(lines) == 2
  error = next(x for x in lines if "error" in x)
  assert error["error"]["type"] == "repeated_id" and error["line"] == 2


FLAGS = [
  (["--prompt=w7", "--max_new_tokens=0"], "max_new_tokens should be a whole"),
  (["--prompt=w7", "--temperature=-0.5"], "temperature should be 0 or positive"),
  (["--prompt=w7", "--top_p=0"], "top_p should lie in (0, 1], got 0"),
  (["--prompt=w7", "--top_p=1.01"], "top_p should lie in (0, 1], got 1.01"),
  (["--prompt=w7", "--block_length=0"], "block_length should be a whole number"),
  (["--prompt=w7", "--threshold=0"], "threshold should lie in (0, 1]"),
  (["--prompt=w7", "--threshold=1.5"], "threshold should lie in (0, 1]"),
  (["--prompt=w7", "--threshold=high"], "should be a number in (0, 1] or none"),
  (["--prompt=w7", "--steps_per_block=0"], "steps_per_block should be a whole"),
  (["--prompt=w7", "--output="], "output should name a file"),
  (["--prompt=w7", "--output=/dev/full"], "No space left"),
  (["--prompt=w7", "--mode=diffusion", "--block_length=200000"], "GiB"),
  (["--prompt=w7", "--draft_threshold=2"], "draft_threshold should lie in [0, 1]"),
  (["--prompt=w7", "--batch_size=0"], "batch_size should be at least 1"),
  (["--prompt=w7", "--max_length=0"], "max_length should be at least 1"),
  (["--prompt=w7 w8", "--max_length=4", "--max_new_tokens=2"], "max_length's limit"),
  (["--prompt="], "the prompt is empty"),
  (["--prompt=w5"], "the mask id 5"),
  (["--prompt=w7", "--attention=mosaic"], "--attention=mosaic: implementation="),
  (["--prompt=w7", "--mesh=rows:2"], "mesh should be 'tensor:n', n devices, got"),
  (["--prompt=w7", "--mesh=tensor:99"], "mesh 'tensor:99' needs 99 devices,"),
  (["--prompt=w7", "--mode=linear_spec", "--lora=/no/such"], "expected a PEFT LoRA folder"),
  ([], "expected one of --prompt and --prompts_file"),
  (["--prompt=w7", "--prompts_file=x"], "expected one of --prompt and"),
  (["--prompts_file=/no/such.jsonl"], "cannot be read"),
  (["--prompt=w7", "--output=/no/such/folder/out"], "cannot be written"),
  (["--prompt=w7", "extra"], "expected flags only, got ['extra']"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "message"), FLAGS)
def test_bad_flags_are_exit_2_with_one_message(run, flags, message):
  code, out, err = run(*flags)
  assert code == 2 and out == ""
  assert message in err and err.startswith("error: ")
  assert "Traceback" not in err


def test_debug_shows_the_traceback(run):
  _, _, err = run("--prompt=", "--debug")
  assert "Traceback" in err and "error: the prompt is empty" in err


def test_prompt_longer_than_the_model(run):
  code, _, err = run("--prompt=" + "w7 " * 600)
  assert code == 2 and "should be at most 512 (the model's limit)" in err


def test_checkpoint_that_is_not_there(run):
  code, _, err = run("--prompt=w7", checkpoint="/no/such/place")
  assert code == 2 and "should be a folder or a hub name" in err


@pytest.mark.parametrize("flag", ["--promt=x", "--mode=best", "--seed=one"])
def test_flags_that_do_not_parse_are_exit_2_too(folder, flag):
  command = [sys.executable, "-m", "nemodiff_jax.cli.generate"]
  done = subprocess.run(
    [*command, f"--checkpoint={folder}", "--prompt=w7", flag],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2 and done.stdout == ""
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
  assert flag.strip("-").split("=")[0] in done.stderr


def test_help_documents_every_flag():
  command = [sys.executable, "-m", "nemodiff_jax.cli.generate", "--help"]
  text = subprocess.run(command, capture_output=True, text=True).stdout
  for name in (
    "checkpoint mode prompt prompts_file output max_new_tokens block_length"
    " threshold steps_per_block draft_threshold lora temperature top_k top_p"
    " min_p seed dtype quantize mesh batch_size max_length attention debug stop"
    " logprobs max_thinking_tokens end_think_token_id enable_thinking chat stream trace"
  ).split():
    assert f"--{name}" in text.replace("--[no]", "--"), name


def test_mode_without_mask_token(run, tmp_path, tiny):
  helpers.write_checkpoint(tmp_path, tiny)
  config = json.loads((tmp_path / "config.json").read_text())
  (tmp_path / "config.json").write_text(
    json.dumps(config | {"mask_token_id": None})
  )
  path = tmp_path / "in.jsonl"
  write(path, [{"prompt_ids": [7]}])
  how = [f"--prompts_file={path}", "--max_new_tokens=2"]
  code, _, err = run(*how, "--mode=linear_spec", checkpoint=tmp_path)
  assert code == 2 and "no mask_token_id. Use mode 'ar'" in err
  code, out, _ = run(*how, checkpoint=tmp_path)
  assert code == 0 and json.loads(out)["text"] is None


def test_text_without_a_tokenizer(run, tmp_path, tiny):
  helpers.write_checkpoint(tmp_path, tiny)
  code, _, err = run("--prompt=hello", checkpoint=tmp_path)
  assert code == 2 and "has no tokenizer" in err


def test_no_progress_bar_in_a_pipe(job, folder):
  done = subprocess.run(
    [
      sys.executable, "-m", "nemodiff_jax.cli.generate",
      f"--checkpoint={folder}", f"--prompts_file={job}",
    ],
    capture_output=True, text=True, env=os.environ,
  )  # fmt: skip
  assert done.returncode == 0 and "\r" not in done.stderr
  assert re.fullmatch(
    r"5 prompts, 35 tokens in [\d.]+ s: [\d.]+ tok/s, \d\.\d\d tokens per forward,"
    r" 0 errors\n",
    done.stderr,
  )
  assert len(done.stdout.splitlines()) == 5


def test_compiled_programs_are_kept_on_disk(folder, tmp_path):
  subprocess.run(
    [
      sys.executable, "-m", "nemodiff_jax.cli.generate",
      f"--checkpoint={folder}", "--prompt=w7", "--mode=ar", "--max_new_tokens=2",
    ],
    check=True, capture_output=True,
    env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
  )  # fmt: skip
  assert any((tmp_path / "nemodiff_jax" / "compiled").iterdir())


def test_a_done_id_stays_done_even_if_its_line_is_bad_now(run, tmp_path):
  path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  how = [f"--prompts_file={path}", f"--output={out}", "--max_new_tokens=2"]
  write(path, [{"id": "a", "prompt_ids": [7]}])
  run(*how)
  before = out.read_text()
  write(path, [{"id": "a", "prompt_ids": [700]}])
  assert run(*how)[0] == 0 and out.read_text() == before


def test_one_line_that_does_not_fit_is_one_error_line(
  run, tmp_path, monkeypatch
):
  from nemodiff_jax.decode import memory

  monkeypatch.setattr(memory, "free_memory", lambda: 2**20)
  path = tmp_path / "in.jsonl"
  write(
    path,
    [
      {"id": "big", "prompt_ids": [7] * 490, "max_new_tokens": 20},
      {"id": "small", "prompt_ids": [7], "max_new_tokens": 2},
    ],
  )
  code, out, _ = run(f"--prompts_file={path}")
  big, small = map(json.loads, out.splitlines())
  assert code == 3 and big["error"]["type"] == "memory"
  assert small["completion_tokens"] == 2


def test_a_cuda_plugin_without_a_gpu_is_not_spoken_of(tmp_path):
  """It is there to compile for a GPU; JAX falls back to the CPU."""
  command = [sys.executable, "-m", "nemodiff_jax.cli.generate"]
  environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
  done = subprocess.run(
    [*command, "--prompt=2 + 2", "--max_new_tokens=2"],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0
  assert done.stderr == "[linear_spec: 2 tokens in 3 passes, length]\n"
