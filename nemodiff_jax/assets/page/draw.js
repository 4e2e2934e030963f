// A lane on the page: its counters, its passes as cells, its text.

import { MODES, bar, percent } from "./lane.js";

/** An element with a class and a text. */
export function make(name, kind = "", text = "") {
  const element = document.createElement(name);
  if (kind) element.className = kind;
  if (text) element.textContent = text;
  return element;
}

const ORIGIN = {
  guessed: "guessed ahead, and confirmed",
  bonus: "the token that the check itself writes",
  filled: "filled in",
  written: "written by itself",
};

const LONG = 2000; // Characters of a prompt that are shown at once.

/** What a person asked, the beginning of it where it is a book. */
export function asked(prompt) {
  const box = make("div", "asked", prompt.slice(0, LONG));
  if (prompt.length > LONG) {
    const more = make("button", "more", `\u2026 ${(prompt.length - LONG).toLocaleString("en")} more characters`);
    more.type = "button";
    more.addEventListener("click", () => {
      box.textContent = prompt;
    });
    box.append(more);
  }
  return box;
}

/** Shows a lane as it is behind some pass. */
export class LaneView {
  /** An empty view; `pick` is told of passes that are clicked. */
  constructor(lane, pick) {
    this.lane = lane;
    this.pick = pick;
    this.spans = [];
    this.cells = [];
    this.shown = 0; // Tokens that show.
    this.at = -1;
    this.root = make("article", "lane");
    const head = make("header");
    head.append(make("strong", "", lane.mode), make("span", "dim", MODES[lane.mode] ?? ""));
    this.counters = make("p", "counters");
    this.strip = make("div", "strip");
    this.strip.setAttribute("aria-hidden", "true");
    this.strip.addEventListener("click", (e) => {
      const cell = this.cells.indexOf(e.target);
      if (cell >= 0) this.pick(cell + 1);
    });
    this.story = make("p", "story dim");
    this.text = make("div", "text");
    this.plain = make("span"); // Of a stream that tells no passes.
    this.tail = make("span", "tail");
    this.text.append(this.plain, this.tail);
    this.note = make("p", "note");
    this.note.hidden = true;
    this.root.append(head, this.counters, this.strip, this.story, this.text, this.note);
  }

  /** Draws the lane behind `at` passes; `rest`: the text alone. */
  draw(at, rest) {
    const lane = this.lane;
    const passes = Math.min(at, lane.passes.length);
    this.#cells(passes);
    this.#tokens(lane.counts[passes], passes);
    this.tail.replaceChildren(...(rest ? [] : lane.slots(passes).map(chip)));
    if (!lane.passes.length) this.#plain();
    this.story.textContent = rest ? "" : lane.story(passes);
    this.story.hidden = rest && lane.done;
    this.#count(passes);
    this.root.classList.toggle("busy", !lane.done);
    this.note.hidden = lane.error === null && lane.finish !== "length";
    this.note.classList.toggle("error", lane.error !== null);
    this.note.textContent = lane.error ?? "The most tokens that were asked for are written.";
    // What shrinks would pull the page from under the reader.
    const height = this.text.offsetHeight;
    if (height > (this.height ?? 0)) {
      this.height = height;
      this.text.style.minHeight = rest && lane.done ? "" : `${height}px`;
    }
    if (rest && lane.done) this.text.style.minHeight = "";
  }

  #cells(passes) {
    for (const pass of this.lane.passes.slice(this.cells.length)) {
      const cell = make("i", `cell ${pass.phase}`);
      cell.title = `pass ${this.cells.length + 1}: ${this.lane.story(this.cells.length + 1)}`;
      this.cells.push(cell);
      this.strip.append(cell);
    }
    if (passes === this.at) return;
    this.cells.forEach((cell, i) => {
      cell.classList.toggle("past", i < passes);
      cell.classList.toggle("now", i === passes - 1);
    });
  }

  #tokens(count, passes) {
    const { tokens, reasoning } = this.lane;
    let start = this.spans.reduce((sum, s) => sum + s.textContent.length, 0);
    for (const token of tokens.slice(this.spans.length, count)) {
      const span = make("span", `token ${token.turn % 2 ? "odd" : "even"} ${token.origin}`, token.text);
      if (start < reasoning.length) span.classList.add("thought");
      start += token.text.length;
      const sure = token.sure === null ? "" : `, ${percent(token.sure)} sure`;
      span.title = `pass ${token.pass}: ${ORIGIN[token.origin]}${sure}`;
      this.spans.push(span);
      this.tail.before(span);
    }
    const [low, high] = [Math.min(count, this.shown), Math.max(count, this.shown)];
    for (let i = low; i < high; i++) this.spans[i].hidden = i >= count;
    this.shown = count;
    if (passes === this.at) return;
    this.at = passes;
    for (const span of this.text.querySelectorAll(".new")) span.classList.remove("new");
    const before = this.lane.counts[Math.max(passes - 1, 0)];
    for (const span of this.spans.slice(before, count)) span.classList.add("new");
  }

  /** Text that came without passes only grows, too. */
  #plain() {
    const { reasoning, content } = this.lane;
    const whole = reasoning + (reasoning && content ? "\n\n" : "") + content;
    const known = this.plain.textContent.length;
    if (whole.length > known) this.plain.append(whole.slice(known));
  }

  #count(passes) {
    const lane = this.lane;
    const nfe = passes ? lane.passes[passes - 1].nfe : 0;
    const tokens = lane.counts[passes];
    const { checked, right } = lane.guesses(passes);
    const figures = [[nfe, nfe === 1 ? "pass" : "passes"], [tokens, tokens === 1 ? "token" : "tokens"]];
    if (nfe) figures.push([(tokens / nfe).toFixed(1), "tokens a pass"]);
    if (checked) figures.push([`${Math.round((100 * right) / checked)} %`, "of guesses right"]);
    if (lane.speed) figures.push([Math.round(lane.speed), "tokens a second"]);
    if (!lane.passes.length) figures.length = 0;
    this.counters.replaceChildren(
      ...figures.map(([figure, unit]) => {
        const item = make("span");
        item.append(make("b", "", `${figure}`), ` ${unit}`);
        return item;
      }),
    );
  }
}

/** A slot behind the text: what stands there, and a bar of how sure. */
function chip({ text, kind, sure }) {
  const shown = text.startsWith("token_id:") ? "\u220e" : text.replaceAll("\n", "\u21b5").trim();
  const box = make("span", `chip ${kind}`, shown || "\u2423");
  if (sure !== null) {
    box.style.setProperty("--sure", bar(sure));
    box.classList.add("scaled");
    box.title = `${percent(sure)} sure`;
  }
  return box;
}
