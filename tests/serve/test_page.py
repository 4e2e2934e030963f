"""The page in headless Chromium: what it shows, and what it outlives."""

import contextlib
import socket
import threading
from pathlib import Path

import pytest

from tests import browser as browsers

pytest.importorskip("fastapi", reason="needs the extra [serve]")
http = pytest.importorskip("httpx2", reason="needs the extra [dev]")
playwright = browsers.skip_without()

from tests.serve import fakes, servers

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "nemodiff_jax" / "assets" / "page"
SUM = "What is 17 + 25 - 8?"
REST = ".watch.resting"
SECONDS = 120_000  # Milliseconds: programs compile.
MARKUP = '<img src=x onerror="hacked=1"><script>hacked=1</script> &amp; </span>'


def script(job):
  """The page's fake model says what is behind the last |."""
  text = fakes.ByteTokenizer().decode(job.prompt).rsplit("[assistant]", 1)[0]
  return [*text.rsplit("|", 1)[-1].encode(), fakes.EOS]


@pytest.fixture(scope="module")
def browser():
  with browsers.launched(playwright) as made:
    yield made


@pytest.fixture
def open_page(browser):
  with browsers.watched(browser) as open_:
    yield open_


@pytest.fixture(scope="module")
def slow():
  """A server whose model says what it is told, a hundredth a second a step."""
  engine = fakes.Slow(script)
  with servers.serve(engine) as (url, _):
    yield url, engine


def ask(page, text):
  page.wait_for_selector("#send:not([disabled])", timeout=SECONDS)
  page.fill("#ask", text)
  page.press("#ask", "Enter")


def setting(page, **values):
  page.wait_for_selector("#send:not([disabled])", timeout=SECONDS)
  page.click("#open")
  for name, value in values.items():
    field = page.locator(f"#settings [name={name}]")
    if field.evaluate("e => e.tagName") == "SELECT":
      field.select_option(value)
    else:
      field.fill(value)
      field.dispatch_event("change")
  page.click("#open")


def said(page, lane=0):
  return page.locator(".lane .text").nth(lane).inner_text().strip()


def test_two_lanes_prove_one_text_in_fewer_passes(embedded, open_page):
  """Against what the server says to who asks without a page."""
  _, url, _ = embedded
  body = {"messages": [{"role": "user", "content": SUM}], "temperature": 0}
  found = {
    mode: http.post(
      f"{url}/v1/chat/completions", json=body | {"mode": mode}, timeout=60
    ).json()
    for mode in ("linear_spec", "ar")
  }
  want = found["ar"]["choices"][0]["message"]["content"]
  page = open_page(url)
  ask(page, SUM)
  page.wait_for_selector(REST, timeout=SECONDS)
  assert said(page, 0) == said(page, 1) == want
  nfe = {mode: f["usage"]["nfe"] for mode, f in found.items()}
  proof = page.inner_text(".proof")
  assert "The same text, token for token." in proof
  assert f"linear_spec {nfe['linear_spec']}, ar {nfe['ar']}: " in proof
  counters = page.locator(".counters").all_inner_texts()
  assert counters[0].startswith(f"{nfe['linear_spec']} passes")
  assert counters[1].startswith(f"{nfe['ar']} passes")
  assert page.locator(".lane").nth(1).locator(".cell").count() == nfe["ar"]
  count = found["ar"]["usage"]["completion_tokens"]
  assert page.locator(".lane").nth(1).locator(".token").count() == count


def test_committed_text_only_grows(embedded, open_page):
  """No span is ever replaced, none before the last one changes."""
  _, url, _ = embedded
  page = open_page(url)
  page.evaluate("""() => {
    window.states = [];
    new MutationObserver((all) => {
      for (const m of all) for (const n of m.removedNodes)
        if (n.classList?.contains("token")) window.states.push("gone");
      const spans = [...document.querySelectorAll(".lane:first-child .token")];
      window.states.push(spans.map((s) => s.textContent).join(""));
    }).observe(document.getElementById("turns"), {childList: true, subtree: true});
  }""")
  ask(page, SUM)
  page.wait_for_selector(REST, timeout=SECONDS)
  states = page.evaluate("window.states")
  assert states[-1].endswith("The answer is 34.") and len(set(states)) > 2
  for before, after in zip(states, states[1:], strict=False):
    assert after.startswith(before)


def test_keys_step_through_the_passes(embedded, open_page):
  _, url, _ = embedded
  page = open_page(url)
  ask(page, SUM)
  page.wait_for_selector(REST, timeout=SECONDS)
  whole = said(page)
  page.focus(".watch")
  page.keyboard.press("Home")
  page.wait_for_selector(".watch:not(.resting)")
  assert said(page) == "" and page.locator(".tail .chip").count() == 0
  page.keyboard.press("ArrowRight")
  page.keyboard.press("ArrowRight")
  page.wait_for_selector(".tail .chip.guess")
  assert page.locator(".lane").nth(0).locator(".tail .chip.guess").count() == 15
  assert page.locator(".story").nth(0).inner_text() == (
    "Guesses the next 15 tokens, all at once."
  )
  assert page.locator(".text .token:not([hidden])").count() == 1 + 2
  page.keyboard.press("ArrowRight")
  new = page.locator(".lane").nth(0).locator(".token.new")
  servers.wait_for(lambda: new.count() == 16)
  assert page.locator(".text .token.new.bonus").count() == 1
  page.keyboard.press("ArrowLeft")
  page.wait_for_selector(".tail .chip.guess")
  page.locator(".cell").nth(2).click()
  page.wait_for_selector(".cell.now.verify")
  page.keyboard.press("End")
  page.wait_for_selector(REST)
  assert said(page) == whole
  page.keyboard.press(" ")  # Plays it again.
  page.wait_for_selector(".watch:not(.resting)")
  assert page.inner_text(".controls button") == "Pause"
  page.wait_for_selector(REST, timeout=SECONDS)
  assert said(page) == whole


def test_diffusion_shows_places_that_are_open(embedded, open_page):
  _, url, _ = embedded
  page = open_page(url)
  setting(page, mode="diffusion", beside="", threshold="1")
  ask(page, SUM)
  page.wait_for_selector(REST, timeout=SECONDS)
  assert page.locator(".lane").count() == 1 and page.is_hidden(".proof")
  page.locator(".cell").nth(1).click()
  page.wait_for_selector(".tail .chip.fresh.scaled")
  assert "of 15 open places" in page.inner_text(".story")


def test_a_conversation_survives_a_reload(embedded, open_page):
  _, url, _ = embedded
  page = open_page(url)
  setting(page, seed="7")
  ask(page, SUM)
  page.wait_for_selector(REST, timeout=SECONDS)
  want, proof = said(page), page.inner_text(".proof")
  page.reload()
  page.wait_for_selector(REST)
  assert said(page) == want and page.inner_text(".proof") == proof
  assert page.inner_text(".asked") == SUM
  assert page.input_value("#settings [name=seed]") == "7"
  ask(page, "What is 3 + 4?")
  page.locator(REST).nth(1).wait_for(timeout=SECONDS)
  assert page.locator(".asked").all_inner_texts() == [SUM, "What is 3 + 4?"]
  page.click("#fresh")
  page.reload()
  assert page.locator(".turn").count() == 0 and page.is_visible("#welcome")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_at_390_pixels(embedded, open_page, scheme):
  _, url, _ = embedded
  size = {"width": 390, "height": 844}
  page = open_page(url, viewport=size, color_scheme=scheme)
  wide = "document.documentElement.scrollWidth"
  page.wait_for_selector("#send:not([disabled])", timeout=SECONDS)
  page.click("#open")
  assert page.evaluate(wide) == 390
  page.click("#open")
  ask(page, SUM)
  page.wait_for_selector(REST, timeout=SECONDS)
  page.locator(".cell").nth(1).click()
  page.wait_for_selector(".tail .chip.guess")
  page.click(".legend summary")
  assert page.evaluate(wide) == 390
  one, two = (page.locator(".lane").nth(i).bounding_box() for i in (0, 1))
  assert two["y"] > one["y"] + one["height"]
  for name in ("button", "select", ".controls input"):
    for box in page.locator(f"{name}:visible").all():
      found = box.bounding_box()
      assert found["x"] >= 0 and found["x"] + found["width"] <= 390
  dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
  assert (dark == "rgb(19, 20, 22)") == (scheme == "dark")


def test_markup_is_text(slow, open_page):
  """Of the model and of the person."""
  page = open_page(slow[0])
  ask(page, f"{MARKUP}|{MARKUP}")
  page.wait_for_selector(REST)
  assert said(page) == MARKUP
  assert page.inner_text(".asked") == f"{MARKUP}|{MARKUP}"
  assert page.locator("#turns img, #turns script").count() == 0
  assert page.evaluate("window.hacked") is None


def test_no_source_makes_markup_or_code_of_text():
  for file in ASSETS.glob("*.js"):
    text = file.read_text()
    for word in (
      "innerHTML",
      "outerHTML",
      "insertAdjacent",
      "eval(",
      "Function(",
    ):
      assert word not in text, file.name
    assert "http" not in text.replace("HTTP", ""), file.name


def test_the_policy_lets_nothing_else_in(slow):
  found = http.get(slow[0])
  assert found.headers["content-type"].startswith("text/html")
  policy = dict(
    part.split(" ", 1)
    for part in found.headers["content-security-policy"].split("; ")
  )
  assert policy["default-src"] == "'none'"
  assert policy["script-src"] == policy["connect-src"] == "'self'"
  assert found.headers["x-content-type-options"] == "nosniff"
  assert http.get(f"{slow[0]}/page/none.js").status_code == 404


def test_stop_ends_it_and_keeps_what_came(slow, open_page):
  url, engine = slow
  page = open_page(url)
  setting(page, beside="")
  before = len(engine.cancelled)
  ask(page, "say|" + "word " * 300)
  servers.wait_for(lambda: len(said(page)) > 20)
  page.click("#stop")
  page.wait_for_selector(".note.error")
  assert page.inner_text(".note") == "Stopped."
  assert said(page).startswith("word word")
  servers.wait_for(lambda: len(engine.cancelled) == before + 1)
  ask(page, "say|next")
  page.locator(REST).nth(1).wait_for()
  assert said(page, 1) == "next"


class Proxy:
  """A server's door that can be slammed."""

  def __init__(self, url):
    host, port = url.removeprefix("http://").split(":")
    self._to, self._open = (host, int(port)), []
    self._listen()
    self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}"

  def _listen(self, port=0):
    self._door = socket.create_server(("127.0.0.1", port))
    threading.Thread(
      target=self._serve, args=(self._door,), daemon=True
    ).start()

  def _serve(self, door):
    with contextlib.suppress(OSError):
      while True:
        one, other = door.accept()[0], socket.create_connection(self._to)
        self._open += [one, other]
        for pair in ((one, other), (other, one)):
          threading.Thread(target=self._copy, args=pair, daemon=True).start()

  def _copy(self, source, target):
    with contextlib.suppress(OSError):
      while data := source.recv(65536):
        target.sendall(data)
    for end in (source, target):
      with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)

  def slam(self):
    port = self._door.getsockname()[1]
    with contextlib.suppress(OSError):
      self._door.shutdown(socket.SHUT_RDWR)
    self._door.close()
    for end in self._open:
      with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    return port

  def open(self, port):
    self._listen(port)


def test_a_server_that_dies_is_told_of_and_may_be_asked_again(slow, open_page):
  proxy = Proxy(slow[0])
  page = open_page(proxy.url)
  setting(page, beside="")
  ask(page, "say|" + "word " * 60)
  servers.wait_for(lambda: len(said(page)) > 20)
  port = proxy.slam()
  page.wait_for_selector(".note.error")
  assert "The connection broke" in page.inner_text(".note")
  assert said(page).startswith("word word")
  page.click(".again")
  page.wait_for_selector(".note.error:has-text('cannot be reached')")
  proxy.open(port)
  page.click(".again")
  page.wait_for_selector(REST)
  page.wait_for_selector(".note", state="hidden")
  assert said(page) == ("word " * 60).strip()
  assert page.locator(".turn").count() == 1
  proxy.slam()


def test_what_the_server_refuses_is_shown(embedded, open_page):
  _, url, _ = embedded
  page = open_page(url)
  setting(page, system="Be brief.")  # The embedded template knows no system.
  ask(page, SUM)
  page.wait_for_selector(".note.error")
  assert "roles should be user or assistant" in page.inner_text(
    ".note >> nth=0"
  )


def test_a_prompt_of_a_megabyte_is_refused_and_the_page_lives(
  embedded, open_page
):
  _, url, _ = embedded
  page = open_page(url)
  setting(page, beside="")
  ask(page, "one two " * 131_072)
  page.wait_for_selector(".note.error", timeout=SECONDS)
  assert "maximum context length is" in page.inner_text(".note")
  assert "1,046,576 more characters" in page.inner_text(".asked")
  page.click("#fresh")
  ask(page, SUM)
  page.wait_for_selector(REST, timeout=SECONDS)
  assert said(page).endswith("The answer is 34.")


def test_ten_tabs_have_ten_conversations(slow, open_page, browser):
  context = browser.new_context()
  pages = [open_page(slow[0], context) for _ in range(10)]
  for i, page in enumerate(pages):
    ask(page, f"say|tab {i}")
  for i, page in enumerate(pages):
    page.wait_for_selector(REST)
    assert said(page) == f"tab {i}"
  pages[3].reload()
  pages[3].wait_for_selector(REST)
  assert said(pages[3]) == "tab 3" and pages[3].locator(".turn").count() == 1
  context.close()


def test_a_key_is_asked_for(open_page):
  with servers.serve(fakes.FakeEngine(script), api_key="secret") as (url, _):
    page = open_page(url)
    page.wait_for_selector("#status:has-text('asks for an API key')")
    page.click("#open")
    page.fill("#settings [name=key]", "secret")
    page.press("#settings [name=key]", "Tab")
    page.click("#open")
    ask(page, "say|hello")
    page.wait_for_selector(REST)
    assert said(page) == "hello"


def test_at_most_thirty_frames_a_second(slow, open_page):
  """By a clock that the test turns."""
  page = open_page(slow[0])
  count = page.evaluate("""async () => {
    const { throttled } = await import("/page/player.js");
    let waiting = [], drawn = 0;
    window.requestAnimationFrame = (f) => waiting.push(f);
    const ask = throttled(() => drawn++);
    for (let now = 0; now < 1000; now += 1000 / 120) {
      for (let i = 0; i < 3; i++) ask();
      const due = waiting; waiting = [];
      for (const f of due) f(now);
    }
    return drawn;
  }""")
  assert 25 <= count <= 30
