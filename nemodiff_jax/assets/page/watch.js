// Lanes side by side, with what plays them: pause, step, replay, scrub.

import { LaneView, make } from "./draw.js";
import { verdict } from "./lane.js";
import { Player, still, throttled } from "./player.js";

const PACES = [[0, "as it comes"], [30, "30 a second"], [12, "12 a second"], [6, "6 a second"], [3, "3 a second"], [1, "1 a second"]];

/** What the marks mean. */
const MARKS = [
  ["chip guess", "guess", "not checked yet"],
  ["token new", "kept", "certain; it only grows"],
  ["chip wrong", "wrong", "a guess that failed its check"],
  ["token new bonus", "one more", "written by the check itself"],
  ["chip open scaled", "open", "may still change"],
];

/** One prompt's answers, in as many lanes. */
export class Watch {
  /** A view of lanes; `pace` as for a Player; `changed` after each drawing. */
  constructor(lanes, { pace = 0, playing = true, changed = () => {} } = {}) {
    this.lanes = lanes;
    this.player = new Player(pace, playing);
    this.changed = changed;
    this.views = lanes.map((lane) => new LaneView(lane, (at) => this.go(at)));
    this.root = make("section", "watch");
    this.root.tabIndex = 0;
    this.root.setAttribute("role", "group");
    this.root.setAttribute("aria-label", "Passes. Space plays and pauses, arrows step.");
    const row = make("div", lanes.length > 1 ? "lanes two" : "lanes");
    row.append(...this.views.map((view) => view.root));
    this.proof = make("p", "proof");
    this.proof.setAttribute("role", "status");
    this.root.append(row, this.proof, this.#controls(), legend(lanes));
    this.root.addEventListener("keydown", (e) => this.key(e));
    this.draw = throttled((now) => this.#frame(now));
    this.draw();
  }

  /** Tells it that its lanes have grown. */
  grow() {
    const passes = Math.max(...this.lanes.map((lane) => lane.passes.length));
    this.player.grow(passes, this.lanes.some((lane) => !lane.done));
    this.draw();
  }

  /** Shows so many passes, and stays there. */
  go(at) {
    this.player.go(at);
    this.draw();
  }

  #controls() {
    const nav = make("div", "controls");
    this.play = button("play", "Play or pause (space)", () => this.#toggle());
    const back = button("\u2039", "One pass back (left arrow)", () => this.go(this.player.at - 1));
    const next = button("\u203a", "One pass on (right arrow)", () => this.go(this.player.at + 1));
    this.slider = make("input");
    this.slider.type = "range";
    this.slider.min = 0;
    this.slider.setAttribute("aria-label", "Pass");
    this.slider.addEventListener("input", () => this.go(Number(this.slider.value)));
    this.pace = make("select");
    this.pace.setAttribute("aria-label", "Passes a second");
    for (const [value, words] of PACES) this.pace.append(new Option(words, value));
    this.pace.value = this.player.pace;
    this.pace.addEventListener("change", () => {
      this.player.pace = Number(this.pace.value);
      this.draw();
    });
    nav.append(this.play, back, next, this.slider, this.pace);
    this.nav = nav;
    return nav;
  }

  #toggle() {
    this.player.toggle();
    this.pace.value = this.player.pace;
    this.draw();
  }

  /** Does what a key says. */
  key(e) {
    if (e.defaultPrevented || e.target.matches("input, select, textarea")) return;
    if (e.key === " " && e.target.matches("button, summary")) return;
    const { at, end } = this.player;
    const keys = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: end };
    if (e.key === " ") this.#toggle();
    else if (e.key in keys) this.go(keys[e.key]);
    else return;
    e.preventDefault();
  }

  #frame(now) {
    const more = this.player.advance(now);
    const { at, end, playing } = this.player;
    const rest = at >= end || (!this.player.open && this.player.last === 0);
    for (const view of this.views) {
      const own = view.lane.passes.length;
      view.draw(at, rest || (view.lane.done && at > own));
    }
    this.nav.hidden = this.player.last === 0;
    this.slider.max = end;
    this.slider.value = at;
    this.play.textContent = playing ? "Pause" : this.player.ended ? "Replay" : "Play";
    const found = this.lanes.length > 1 && rest ? verdict(...this.lanes) : null;
    this.proof.hidden = found === null;
    this.proof.classList.toggle("equal", found?.equal ?? false);
    if (found && this.proof.textContent !== found.words) this.proof.textContent = found.words;
    this.root.classList.toggle("resting", rest);
    this.changed();
    if (more) this.draw();
  }
}

/** The pace that a new watch begins with. */
export const firstPace = (lanes) => (lanes > 1 && !still() ? 12 : 0);

function button(text, label, press) {
  const made = make("button", "", text);
  made.type = "button";
  made.title = label;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", press);
  return made;
}

function legend(lanes) {
  const made = make("details", "legend");
  made.append(make("summary", "", "What do the marks mean?"));
  const list = make("ul");
  for (const [kind, name, words] of MARKS) {
    const item = make("li");
    const mark = make("span", kind, name);
    if (kind.includes("scaled")) mark.style.setProperty("--sure", 0.6);
    item.append(mark, ` ${words}`);
    list.append(item);
  }
  const words = [
    "A token is a word or a piece of one. A pass is one run of the whole model, which costs about the same however many tokens it handles: fewer passes, sooner done.",
    "Each small square is a pass; click on one to see it. Tokens with one underline were committed by one pass.",
    "A bar says how sure the model is, in even steps: a fifth full is 50 %, two fifths 90 %, three 99 %, four 99.9 %, full 99.99 %.",
  ];
  made.append(list, ...words.map((w) => make("p", "", w)));
  return made;
}
