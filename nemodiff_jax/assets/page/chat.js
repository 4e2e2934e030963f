// The page: a conversation with the served model, and a look at its passes.

import { keep, kept, messages } from "./conversation.js";
import { asked, make } from "./draw.js";
import { Lane } from "./lane.js";
import { Settings } from "./settings.js";
import { card, stream } from "./stream.js";
import { Watch, firstPace } from "./watch.js";

const AGAIN = 2000; // Milliseconds until a server that loads is asked again.
const $ = (id) => document.getElementById(id);

const turns = [];
let running = null; // Aborts what runs.

const settings = new Settings($("settings"), () => {});
for (const turn of kept()) show(turn, false);
welcome();
meet();
composer();

/** Asks the server what it serves, until it says. */
async function meet() {
  try {
    const model = await card(settings.key);
    settings.offer(model.nemodiff);
    $("model").textContent = model.id;
    $("send").disabled = false;
    examples(model.id === "embedded");
    say("");
  } catch (e) {
    say(e.message, e.status !== 503);
    if (e.status !== 401) setTimeout(meet, AGAIN);
  }
}

/** Shows a turn: what was asked, and its lanes. */
function show(turn, fresh) {
  turns.push(turn);
  const root = make("section", "turn");
  root.append(asked(turn.prompt));
  turn.watch = new Watch(turn.lanes, {
    pace: fresh ? firstPace(turn.lanes.length) : 0,
    changed: follow,
  });
  turn.again = make("button", "again", "Try again");
  turn.again.type = "button";
  turn.again.hidden = true;
  turn.again.addEventListener("click", () => retry(turn));
  root.append(turn.watch.root, turn.again);
  turn.root = root;
  $("turns").append(root);
  turn.watch.grow();
  offerAgain(turn);
  welcome();
}

async function send(prompt) {
  const turn = { prompt, lanes: settings.lanes.map((mode) => new Lane(mode)) };
  show(turn, true);
  turn.root.scrollIntoView({ block: "end" });
  await answer(turn);
}

/** Runs the lanes of a turn, all at once. */
async function answer(turn) {
  const said = messages([...turns.slice(0, turns.indexOf(turn)), { prompt: turn.prompt, lanes: [] }], settings.values.system);
  const seed = Math.floor(Math.random() * 2 ** 32); // One for all lanes.
  running = new AbortController();
  const { signal } = running;
  busy(true);
  save();
  await Promise.all(turn.lanes.map((lane) => run(lane, said, seed, signal, turn)));
  running = null;
  busy(false);
  save();
  offerAgain(turn);
}

async function run(lane, said, seed, signal, turn) {
  lane.sent = performance.now();
  const body = { model: "", messages: said, stream: true, ...settings.request(lane.mode, seed) };
  try {
    await stream(body, settings.key, signal, (choice) => {
      lane.take(choice, performance.now());
      turn.watch.grow();
    });
  } catch (e) {
    lane.error = e.name === "AbortError" ? "Stopped." : e.message;
  }
  turn.watch.grow();
}

function retry(turn) {
  const at = turns.indexOf(turn);
  for (const old of turns.splice(at)) old.root.remove();
  send(turn.prompt);
}

/** The last turn, if a lane of it failed, may be tried again. */
function offerAgain(turn) {
  for (const other of turns) other.again.hidden = true;
  turn.again.hidden = turns.at(-1) !== turn || !turn.lanes.some((lane) => lane.error) || running !== null;
}

function save() {
  if (!keep(turns)) say("This conversation is too long to survive a reload.");
}

function busy(on) {
  $("stop").hidden = !on;
  $("send").hidden = on;
}

/** A line beside the model's name; `wrong`: it is an error. */
function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", wrong);
}

/** Stays at the end of the page, for who is there. */
function follow() {
  if (!running || !near) return;
  scrollTo({ top: document.documentElement.scrollHeight });
}
let near = true;
addEventListener("scroll", () => {
  const page = document.documentElement;
  near = page.scrollHeight - scrollY - innerHeight < 120;
}, { passive: true });

function welcome() {
  $("welcome").hidden = turns.length > 0;
}

function examples(embedded) {
  const asks = embedded
    ? ["What is 17 + 25 - 8?", "How many legs do 3 crabs and 5 dogs have in all?", "What is 48 - 19 + 33 + 6?"]
    : ["Why is the sky blue?", "Write a haiku about rivers.", "Explain recursion to a child."];
  $("examples").replaceChildren(
    ...asks.map((text) => {
      const made = make("button", "", text);
      made.type = "button";
      made.addEventListener("click", () => running || send(text));
      return made;
    }),
  );
}

function composer() {
  const ask = $("ask");
  $("composer").addEventListener("submit", (e) => {
    e.preventDefault();
    const prompt = ask.value;
    if (running || $("send").disabled || !prompt.trim()) return;
    ask.value = "";
    fit();
    send(prompt);
  });
  ask.addEventListener("keydown", (e) => {
    if (e.key !== "Enter" || e.shiftKey || e.isComposing) return;
    e.preventDefault();
    $("composer").requestSubmit();
  });
  const fit = () => {
    ask.style.height = "";
    if (ask.value.length < 2000) ask.style.height = `${Math.min(ask.scrollHeight, 200)}px`;
  };
  ask.addEventListener("input", fit);
  $("stop").addEventListener("click", () => running?.abort());
  addEventListener("keydown", (e) => {
    if (e.key === "Escape") running?.abort();
  });
  $("fresh").addEventListener("click", () => {
    running?.abort();
    for (const turn of turns.splice(0)) turn.root.remove();
    save();
    welcome();
    ask.focus();
  });
  $("open").addEventListener("click", () => {
    const open = $("settings").toggleAttribute("hidden");
    $("open").setAttribute("aria-expanded", String(!open));
  });
  $("settings").key.addEventListener("change", meet);
  addEventListener("pagehide", save);
}
