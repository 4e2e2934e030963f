"""A trace in one file, opened from disk in headless Chromium."""

import json

import pytest

from nemodiff_jax.cli import trace_page
from tests import browser as browsers

playwright = browsers.skip_without()

MARKUP = "</script><img src=x onerror='hacked=1'>"
PIECES = {"1": "one", "2": " two", "3": " wrong", "4": "\n", "5": MARKUP}
PROMPT = {
  "nfe": 1, "phase": "prompt", "start": 0, "canvas": [], "proposed": [],
  "confidence": [], "tokens": [1], "texts": ["one"],
}  # fmt: skip
DRAFT = {
  "nfe": 2, "phase": "draft", "start": 2, "canvas": [1, None, None, None],
  "proposed": [2, 2, 3, 4], "confidence": [1, 0.9997, 0.3, 0.99],
  "revealed": [1, 2, 3], "tokens": [], "texts": [],
}  # fmt: skip
VERIFY = {
  "nfe": 3, "phase": "verify", "start": 2, "canvas": [1, 2, 3, 4],
  "proposed": [2, 5, 1, 1], "confidence": [0.98, 0.6, 0.5, 0.5],
  "accepted": 2, "tokens": [2, 5], "texts": [" two", MARKUP],
}  # fmt: skip
TEXT = f"one two{MARKUP}"
TRACE = {
  "mode": "linear_spec", "prompt": f"say {MARKUP}", "pieces": PIECES,
  "passes": [PROMPT, DRAFT, VERIFY],
  "output": {"text": TEXT, "token_ids": [1, 2, 5], "finish_reason": "length"},
}  # fmt: skip


@pytest.fixture(scope="module")
def browser():
  with browsers.launched(playwright) as made:
    yield made


@pytest.fixture
def open_trace(browser, tmp_path):
  with browsers.watched(browser) as open_:
    path = tmp_path / "trace.html"
    path.write_text(trace_page.page(json.dumps(TRACE)))
    yield lambda **how: open_(f"file://{path}", **how)


def test_it_opens_playing_and_ends_with_the_text(open_trace):
  page = open_trace()
  page.wait_for_selector(".watch.resting")
  assert page.inner_text(".text") == TEXT
  assert page.inner_text(".asked") == f"say {MARKUP}"
  assert page.locator("img").count() == 0
  assert page.evaluate("window.hacked") is None


def test_it_tells_right_guesses_from_wrong_ones(open_trace):
  page = open_trace(reduced_motion="reduce")
  page.keyboard.press("ArrowRight")
  page.keyboard.press("ArrowRight")
  page.locator(".tail .guess").nth(2).wait_for()
  shown = page.locator(".tail .guess").all_inner_texts()
  assert shown == ["two", "wrong", "\u21b5"]
  page.keyboard.press("ArrowRight")
  page.locator(".tail .wrong").nth(1).wait_for()
  assert page.locator(".tail .wrong").all_inner_texts() == ["wrong", "\u21b5"]
  assert page.inner_text(".text .token.bonus") == MARKUP
  assert page.locator(".text .token.new").count() == 2
  assert page.inner_text(".story") == (
    "Checks the guesses: 1 of 3 right, and one token more."
  )
  struck = "getComputedStyle(document.querySelector('.tail .wrong'))"
  assert "line-through" in page.evaluate(f"{struck}.textDecoration")
  assert "33 % of guesses right" in page.inner_text(".counters")


def test_sureness_reads_at_99_percent_as_at_30(open_trace):
  page = open_trace(reduced_motion="reduce")
  page.keyboard.press("End")
  page.keyboard.press("Home")
  page.locator(".cell").nth(1).click()
  page.locator(".tail .guess").nth(2).wait_for()
  bars = page.evaluate("""() => [...document.querySelectorAll(".tail .guess")]
    .map((chip) => parseFloat(getComputedStyle(chip, "::after").width)
      / parseFloat(getComputedStyle(chip, "::before").width))""")
  most, low, high = bars  # Of 0.9997, 0.3 and 0.99.
  assert 0.1 < low < high - 0.2 and high < most - 0.2 and most < 1
  titles = page.locator(".tail .guess").evaluate_all(
    "all => all.map((e) => e.title)"
  )
  assert titles == ["99.97 % sure", "30 % sure", "99.0 % sure"]


def test_it_stands_still_for_who_wants_that(open_trace):
  page = open_trace(reduced_motion="reduce")
  assert page.inner_text(".controls button") == "Play"
  page.keyboard.press(" ")
  page.wait_for_selector(".watch.resting")
  assert page.inner_text(".text") == TEXT


def test_the_file_needs_nothing_else():
  text = trace_page.page(json.dumps(TRACE))
  assert "default-src 'none'; style-src 'sha256-" in text
  assert "unsafe" not in text and "import " not in text.split("<script>")[1]
  assert text.count("</script>") == 2
