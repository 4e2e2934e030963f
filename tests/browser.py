"""Chromium, headless, for tests that look at pages."""

import contextlib
import shutil

import pytest

PATH = shutil.which("chromium") or shutil.which("google-chrome")
_FLAGS = (
  "--no-sandbox --disable-gpu --no-first-run --disable-background-networking"
  " --disable-component-update --disable-sync"
).split()


def skip_without():
  """Skips a module where there is no Chromium, or nothing to drive it."""
  if PATH is None:
    pytest.skip("needs Chromium", allow_module_level=True)
  return pytest.importorskip(
    "playwright.sync_api", reason="needs the extra [dev]"
  )


@contextlib.contextmanager
def launched(playwright):
  """A browser."""
  with playwright.sync_playwright() as p:
    made = p.chromium.launch(executable_path=PATH, args=_FLAGS)
    yield made
    made.close()


@contextlib.contextmanager
def watched(browser):
  """Opens pages, in a context of their own or a given one.

  In the end none may have told of an error, the policy's included.
  """
  wrong, contexts = [], []

  def open_(url, context=None, **how):
    if context is None:
      how = {"viewport": {"width": 1100, "height": 800}} | how
      contexts.append(context := browser.new_context(**how))
    page = context.new_page()
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("console", lambda m: m.type == "error" and wrong.append(m.text))
    page.goto(url)
    return page

  yield open_
  for context in contexts:
    context.close()
  # Chromium itself tells of answers and connections that failed.
  mine = [w for w in wrong if "Failed to load resource" not in w]
  assert mine == []
