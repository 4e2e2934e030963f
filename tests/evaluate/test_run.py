"""A run of the embedded checkpoint: its numbers, its record, going on."""

import json
import shutil
import sys

import pytest

from nemodiff_jax.evaluate import record
from tests.evaluate.conftest import call
from train import arithmetic

QUESTIONS = 6
EMBEDDED = (
  "--tasks=embedded", f"--limit={QUESTIONS}", "--traced=2",
  "--modes=ar,linear_spec,diffusion",
)  # fmt: skip


@pytest.fixture(scope="module")
def embedded_run(tmp_path_factory):
  """The folder of a run of the embedded checkpoint, and what it printed."""
  folder = tmp_path_factory.mktemp("evaluate") / "run"
  code, out, err = call(*EMBEDDED, f"--out={folder}", "--batch_size=4")
  assert code == 0, err
  return folder, out


def samples(folder):
  return [json.loads(x) for x in (folder / "samples.jsonl").open()]


def by_id(folder, setting):
  return {s["id"]: s for s in samples(folder) if s["setting"] == setting}


def test_the_embedded_task_is_what_training_holds_out():
  task_file = record.Path(arithmetic.__file__).parents[1] / (
    "nemodiff_jax/assets/held_out.jsonl"
  )
  lines = [json.loads(x) for x in task_file.open()]
  for family in arithmetic.FAMILIES:
    held = arithmetic.held_out(family, 100)
    mine = [x for x in lines if x["group"] == family]
    asked = [(x["messages"][0]["content"], x["answer"]) for x in mine]
    assert asked == [(q, a) for q, _, a in held]


def test_scores_are_what_the_replies_say(embedded_run):
  """Judged again, from the worked answers that training holds out."""
  folder, _ = embedded_run
  answers = {
    f"{f}-{i}": a
    for f in arithmetic.FAMILIES
    for i, (_, _, a) in enumerate(arithmetic.held_out(f, 2))
  }
  assert len(samples(folder)) == 3 * QUESTIONS
  for s in samples(folder):
    ends = s["text"].rstrip().endswith(f"The answer is {answers[s['id']]}.")
    assert s["score"] == float(ends), s
    assert s["num_generated_tokens"] == len(s["token_ids"])
  rows = json.loads((folder / "results.json").read_text())["rows"]
  for row in rows:
    mine = by_id(folder, row["setting"]).values()
    assert row["accuracy"] == sum(s["score"] for s in mine) / QUESTIONS
    tokens, nfe = (
      sum(s[k] for s in mine) for k in ("num_generated_tokens", "nfe")
    )
    assert row["tokens_per_forward"] == pytest.approx(tokens / nfe)
  assert rows[0]["accuracy"] >= 5 / 6  # The card: 98 to 100 %.


def test_linear_spec_is_ar_sample_by_sample(embedded_run):
  folder, _ = embedded_run
  ar, spec = by_id(folder, "ar"), by_id(folder, "linear_spec C=16")
  assert list(ar) == list(spec)
  for name in ar:
    assert ar[name]["token_ids"] == spec[name]["token_ids"]
    assert ar[name]["score"] == spec[name]["score"]
    assert ar[name]["nfe"] == ar[name]["num_generated_tokens"]
    assert spec[name]["nfe"] == 1 + 2 * len(spec[name]["accepted"])


def test_a_rerun_reproduces_every_byte_in_any_batch(embedded_run, command):
  folder, _ = embedded_run
  again = folder.parent / "again"
  assert command(*EMBEDDED, f"--out={again}", "--batch_size=1")[0] == 0
  for name in ("samples.jsonl", "results.json", "questions.jsonl"):
    assert (again / name).read_bytes() == (folder / name).read_bytes(), name
  a, b = (json.loads((f / "run.json").read_text()) for f in (folder, again))
  assert a["settings"] == b["settings"]


def test_order_changes_no_reply(embedded_run, command):
  folder, _ = embedded_run
  task = folder.parent / "turned.jsonl"
  source = record.Path(arithmetic.__file__).parents[1]
  lines = (source / "nemodiff_jax/assets/held_out.jsonl").open().readlines()
  task.write_text("".join(reversed(lines[:QUESTIONS])))
  out = folder.parent / "turned"
  flags = (f"--tasks={task}", "--modes=ar,diffusion", "--max_new_tokens=112")
  assert command(*flags, f"--out={out}", "--traced=0", "--batch_size=4")[0] == 0
  for setting in ("ar", "diffusion C=16 t=0.9"):
    before, after = by_id(folder, setting), by_id(out, setting)
    assert list(after) == list(reversed(before))
    for name, s in after.items():
      assert s["token_ids"] == before[name]["token_ids"]


@pytest.mark.parametrize("cut", [1, 700, 9000])
def test_a_stopped_run_goes_on_to_the_same_bytes(embedded_run, command, cut):
  folder, _ = embedded_run
  broken = folder.parent / f"broken{cut}"
  shutil.copytree(folder, broken)
  whole = (folder / "samples.jsonl").read_bytes()
  (broken / "samples.jsonl").write_bytes(whole[:-cut])
  (broken / "results.json").unlink()
  code, _, err = command(*EMBEDDED, f"--out={broken}", "--batch_size=1")
  assert code == 0, err
  assert (broken / "samples.jsonl").read_bytes() == whole
  results = (folder / "results.json").read_bytes()
  assert (broken / "results.json").read_bytes() == results


def test_a_finished_run_decodes_nothing_again(embedded_run, command):
  folder, out = embedded_run
  before = (folder / "samples.jsonl").stat().st_mtime_ns
  code, again, err = command(*EMBEDDED, f"--out={folder}")
  assert code == 0 and again == out
  assert err.count(": 0 replies") == 3
  assert (folder / "samples.jsonl").stat().st_mtime_ns == before


def test_a_record_of_another_run_is_refused(embedded_run, command):
  folder, _ = embedded_run
  code, _, err = command(*EMBEDDED, f"--out={folder}", "--max_new_tokens=9")
  assert code == 2 and "holds another run" in err
  assert "max_new_tokens" in err and "112 and 9" in err
  code, _, err = command(*EMBEDDED, f"--out={folder}", "--seed=4")
  assert code == 2 and "seed: 0 and 4" in err


def test_run_json_explains_the_run(embedded_run):
  folder, _ = embedded_run
  run = json.loads((folder / "run.json").read_text())
  settings = run["settings"]
  assert len(settings["checkpoint"]["sha256"]) == 64
  assert settings["environment"]["packages"]["jax"]
  assert settings["tasks"][0]["row"]["seed"] == 0
  assert settings["tasks"][0]["prompt_format"] == "as given"
  assert settings["settings"]["diffusion C=16 t=0.9"]["threshold"] == 0.9
  assert run["made"]["date"]


def test_the_report_is_one_file_with_table_and_samples(embedded_run):
  folder, out = embedded_run
  page = (folder / "report.html").read_text()
  assert "src=" not in page and 'href="http' not in page
  for word in ("linear_spec C=16", "tokens/forward", "Ten samples", "run.json"):
    assert word in page
  for line in out.splitlines()[2:5]:
    for cell in line.strip("| ").split("|"):
      assert f"<td>{cell.strip()}</td>" in page


def test_without_matplotlib_the_report_says_so(
  embedded_run, command, monkeypatch
):
  folder, _ = embedded_run
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  code, _, err = command(*EMBEDDED, f"--out={folder}")
  assert code == 0 and "no figures: they need matplotlib" in err
  assert "no figures" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_figures_show_what_the_record_holds(embedded_run, command):
  pytest.importorskip("matplotlib", reason="the extra evaluate is not there")
  folder, _ = embedded_run
  code, _, err = command(*EMBEDDED, f"--out={folder}")
  assert code == 0, err
  page = (folder / "report.html").read_text()
  for title in (
    "embedded: accuracy against tokens per forward",
    "accepted length of a cycle", "acceptance by slot", "calibration of drafts",
  ):  # fmt: skip
    assert title in page
  assert page.count("<svg") == len(list(folder.glob("*.svg"))) >= 4


def test_compare_by_the_command(embedded_run, command):
  path, _ = embedded_run
  code, out, _ = command(f"--compare={path}", f"--compare={path}")
  assert code == 0 and "Settings that differ (A and B):\n  none" in out
  assert out.count("right: +0.0 points") == 3
  assert out.count("6 of 6 replies the same, token for token") == 3


def test_judged_drafts_of_real_traces_agree_with_what_was_accepted(
  embedded_run,
):
  """As many slots right as cycles accepted beyond their first token."""
  path, _ = embedded_run
  traces = json.loads((path / "traces.json").read_text())
  accepted = {
    s["id"]: s["accepted"]
    for s in record.load_samples(path)
    if s["setting"] == "linear_spec C=16"
  }
  found = [t for t in traces if t["setting"] == "linear_spec C=16"]
  assert len(found) == 2
  for t in found:
    right = sum(ok for _, _, ok in t["judged"])
    assert right == sum(n - 1 for n in accepted[t["id"]])
