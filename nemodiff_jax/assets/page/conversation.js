// What was said, and what of it survives a reload.

import { Lane } from "./lane.js";

const NAME = "nemodiff.conversation"; // Of this tab alone.
const CUT = "A reload ended this answer.";

/** What was kept: turns of {prompt, lanes}. */
export function kept() {
  let turns = [];
  try {
    turns = JSON.parse(sessionStorage.getItem(NAME)) ?? [];
  } catch {
    // Nothing readable is kept.
  }
  return turns.map(({ prompt, lanes }) => ({
    prompt,
    lanes: lanes.map((lane) => {
      const made = new Lane(lane.mode, lane);
      if (!made.done) made.error = CUT;
      return made;
    }),
  }));
}

/** Keeps the turns, the newest with their passes; false if nothing fits. */
export function keep(turns) {
  for (let whole = turns.length; whole >= 0; whole = whole > 1 ? whole >> 1 : whole - 1) {
    const told = turns.map((turn, i) => ({
      prompt: turn.prompt,
      lanes: turn.lanes.map((lane) => lane.saved(i >= turns.length - whole)),
    }));
    try {
      sessionStorage.setItem(NAME, JSON.stringify(told));
      return true;
    } catch {
      // Too long: with fewer passes.
    }
  }
  return false;
}

/** The turns as messages; the first lane is what the model said. */
export function messages(turns, system) {
  const said = turns.flatMap(({ prompt, lanes }) => [
    { role: "user", content: prompt },
    ...(lanes[0]?.content ? [{ role: "assistant", content: lanes[0].content }] : []),
  ]);
  return system ? [{ role: "system", content: system }, ...said] : said;
}
