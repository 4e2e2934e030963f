// A lane: one answer, as passes over its tokens. Data only, nothing is drawn.

/** What each mode does, in few words. */
export const MODES = {
  ar: "one token a pass",
  linear_spec: "guesses a block, checks it in the next pass",
  quadratic_spec: "checks a block and guesses the next, in one pass",
  diffusion: "fills in a block, the surest places first",
};

/** Modes that promise the text of ar. */
export const LOSSLESS = ["ar", "linear_spec", "quadratic_spec"];

/** An answer: its tokens, and every pass that it took. */
export class Lane {
  /** A lane of a mode, with nothing in it; or as `kept` by `saved`. */
  constructor(mode, kept = {}) {
    this.mode = mode;
    this.passes = [];
    this.pieces = {};
    this.tokens = []; // {id, text, pass, turn, origin, sure}
    this.turns = 0; // Passes that committed some.
    this.counts = [0]; // Tokens behind so many passes.
    this.content = "";
    this.reasoning = "";
    this.finish = null; // Why it ended.
    this.error = null; // What went wrong, in a sentence.
    this.sent = this.first = this.last = null; // Milliseconds.
    this.early = 0; // Tokens that the first event brought.
    const { passes = [], pieces = {}, ...rest } = kept;
    Object.assign(this, rest);
    this.add(passes, pieces);
  }

  /** What of it survives a reload. */
  saved(whole) {
    const { mode, content, reasoning, finish, error } = this;
    const { sent, first, last, early } = this;
    const kept = { mode, content, reasoning, finish, error };
    const told = whole ? { passes: this.passes, pieces: this.pieces } : {};
    return { ...kept, ...told, sent, first, last, early };
  }

  get done() {
    return this.finish !== null || this.error !== null;
  }

  /** Takes what a choice of a chunk brings. */
  take(choice, now) {
    const delta = choice.delta ?? {};
    this.reasoning += delta.reasoning ?? "";
    this.content += delta.content ?? "";
    this.add(choice.passes ?? [], choice.pieces ?? {});
    if (this.tokens.length || this.content || this.reasoning) {
      if (this.first === null) {
        [this.first, this.early] = [now, this.tokens.length];
      }
      this.last = now;
    }
    this.finish = choice.finish_reason ?? this.finish;
  }

  /** Takes passes, and texts of ids that they name. */
  add(passes, pieces) {
    Object.assign(this.pieces, pieces);
    for (const pass of passes) {
      this.passes.push(pass);
      this.turns += pass.tokens.length > 0;
      pass.tokens.forEach((id, i) => this.tokens.push(this.#token(pass, id, i)));
      this.counts.push(this.tokens.length);
    }
  }

  /** A token with what is known of how it came. */
  #token(pass, id, i) {
    const text = pass.texts[i];
    const token = { id, text, pass: this.passes.length, turn: this.turns, sure: null };
    if (pass.accepted === undefined) {
      const origin = pass.phase === "denoise" ? "filled" : "written";
      return { ...token, origin, sure: this.#filled(pass, id, i) };
    }
    const guessed = i < pass.accepted - 1;
    return { ...token, origin: guessed ? "guessed" : "bonus", sure: pass.confidence[i] };
  }

  /** How sure the model was of a token that this pass added. */
  #filled(pass, id, i) {
    if (pass.phase !== "denoise") return pass.confidence[i] ?? null;
    return pass.canvas[i] === null ? pass.confidence[i] : null;
  }

  /** Tokens a second since the first one; null: too few to tell. */
  get speed() {
    const count = this.tokens.length - this.early;
    const seconds = (this.last - this.first) / 1000;
    return count > 0 && seconds > 0.02 ? count / seconds : null;
  }

  /** Of the guesses checked in the first passes: how many, how many right. */
  guesses(passes) {
    let checked = 0, right = 0;
    for (const pass of this.passes.slice(0, passes)) {
      if (pass.accepted === undefined) continue;
      checked += pass.canvas.length - 1;
      right += pass.accepted - 1;
    }
    return { checked, right };
  }

  /** What lies behind the committed text after so many passes: {text, kind, sure}. */
  slots(passes) {
    const pass = this.passes[passes - 1];
    if (!pass) return [];
    if (pass.phase === "draft") return this.#drafted(pass);
    if (pass.phase === "denoise" && !pass.tokens.length) return this.#filling(pass);
    if (pass.accepted === undefined || pass.tokens.length < pass.accepted) return [];
    const wrong = pass.canvas.slice(pass.accepted).map((id) => this.#slot(id, "wrong"));
    const next = this.passes[passes];
    if (pass.phase !== "quadratic" || next?.phase !== "quadratic") return wrong;
    return [...wrong, ...next.canvas.slice(1).map((id) => this.#slot(id, "guess"))];
  }

  #drafted(pass) {
    const filled = new Set(pass.revealed);
    const slots = pass.canvas.map((id, i) => {
      if (id !== null) return this.#slot(id, "guess");
      const kind = filled.has(i) ? "guess" : "open";
      return this.#slot(pass.proposed[i], kind, pass.confidence[i]);
    });
    return slots.slice(1); // The first is committed.
  }

  #filling(pass) {
    const filled = new Set(pass.revealed);
    return pass.canvas.map((id, i) => {
      if (id !== null) return this.#slot(id, "known");
      const kind = filled.has(i) ? "fresh" : "open";
      return this.#slot(pass.proposed[i], kind, pass.confidence[i]);
    });
  }

  #slot(id, kind, sure = null) {
    return { text: this.pieces[id] ?? "", kind, sure };
  }

  /** What a pass did, for who never heard of one. */
  story(passes) {
    const pass = this.passes[passes - 1];
    if (!pass) return "Waits. The first answer of a kind takes longer: its programs are compiled.";
    const all = pass.canvas.length, right = pass.accepted - 1;
    switch (pass.phase) {
      case "prompt":
        return `Reads the prompt${pass.tokens.length ? ", and writes the first token" : ""}.`;
      case "ar":
        return "Writes one token.";
      case "draft":
        return `Guesses the next ${all - 1} tokens, all at once.`;
      case "verify":
        return `Checks the guesses: ${right} of ${all - 1} right, and one token more.`;
      case "quadratic":
        return `Checks ${all - 1} guesses (${right} right), adds a token, guesses anew.`;
      case "denoise":
        return `Fills ${pass.revealed.length} of ${pass.canvas.filter((id) => id === null).length} open places.`;
      default:
        return "Reads the finished block, to go on behind it.";
    }
  }
}

/** What two answers to one prompt prove; null while they grow. */
export function verdict(a, b) {
  if (!a.finish || !b.finish || !a.tokens.length || !b.tokens.length) return null;
  const ids = [a, b].map((lane) => lane.tokens.map((t) => t.id));
  const short = Math.min(ids[0].length, ids[1].length);
  let same = 0;
  while (same < short && ids[0][same] === ids[1][same]) same++;
  const equal = same === short && ids[0].length === ids[1].length;
  const count = (lane) => lane.passes.at(-1).nfe;
  const [few, many] = [a, b].sort((x, y) => count(x) - count(y));
  const times = (count(many) / count(few)).toFixed(1);
  const less = times > 1 ? `${times} times fewer` : "about as many";
  const passes = `${few.mode} ${count(few)}, ${many.mode} ${count(many)}: ${less}.`;
  const lossless = [a, b].every((lane) => LOSSLESS.includes(lane.mode));
  if (equal) {
    const promise = lossless ? "" : " Diffusion does not promise that.";
    return { equal, words: `The same text, token for token.${promise} Passes: ${passes}` };
  }
  const why = lossless
    ? "The modes promise one text; in bfloat16 a near-tie may flip."
    : "Diffusion does not promise the text of the others.";
  return { equal, words: `The texts part behind token ${same}. ${why} Passes: ${passes}` };
}

/** Sureness in [0, 1] of a bar: even steps for 50, 90, 99, 99.9, 99.99 %. */
export function bar(sure) {
  const odds = Math.log10(sure / Math.max(1 - sure, 1e-9));
  return Math.min(1, Math.max(0.04, (odds + 1) / 5));
}

/** A probability as people say it. */
export function percent(sure) {
  if (sure >= 0.9999) return "over 99.99 %";
  const digits = sure >= 0.999 ? 2 : sure >= 0.99 ? 1 : 0;
  return `${(100 * sure).toFixed(digits)} %`;
}
