// Settings of the page: shown in a form, kept in the browser.

const NAME = "nemodiff.settings";

/** The form of the settings; its fields' names are those of requests. */
export class Settings {
  /** Reads what is kept into the form; `changed` is told of every change. */
  constructor(form, changed) {
    this.form = form;
    this.values = {};
    try {
      this.values = JSON.parse(localStorage.getItem(NAME)) ?? {};
    } catch {
      // Nothing readable is kept.
    }
    form.addEventListener("input", () => {
      this.#read();
      localStorage.setItem(NAME, JSON.stringify(this.values));
      this.#apply();
      changed();
    });
    form.addEventListener("submit", (e) => e.preventDefault());
    this.#write();
  }

  /** Offers what the server has. */
  offer({ mode, modes, block_lengths }) {
    this.widths = block_lengths;
    this.default = mode;
    const { form } = this;
    form.mode.replaceChildren(...modes.map((m) => new Option(m, m)));
    form.beside.replaceChildren(new Option("nothing", ""), ...modes.map((m) => new Option(m, m)));
    const other = modes.includes("ar") ? "ar" : "";
    this.values = { mode, beside: other === mode ? "" : other, ...this.values };
    if (!modes.includes(this.values.mode)) this.values.mode = mode;
    if (!modes.includes(this.values.beside)) this.values.beside = "";
    this.#write();
  }

  get key() {
    return this.values.key ?? "";
  }

  /** The modes of the next answer's lanes. */
  get lanes() {
    const { mode, beside } = this.values;
    return beside && beside !== mode ? [mode, beside] : [mode];
  }

  /** Fields of a request to a mode. */
  request(mode, seed) {
    const v = this.values;
    const body = { mode, temperature: number(v.temperature) ?? 0, seed: number(v.seed) ?? seed };
    const most = number(v.max_tokens);
    if (most !== null) body.max_tokens = most;
    const block = v.block_length === "auto" ? "auto" : number(v.block_length);
    if (block !== null && mode === v.mode && mode !== "ar") body.block_length = block;
    if (mode === "diffusion" && number(v.threshold) !== null) body.threshold = number(v.threshold);
    body.stream_options = { include_passes: v.passes !== false };
    return body;
  }

  #read() {
    for (const field of this.form.elements) {
      const empty = field.options?.length === 0; // The server was not asked yet.
      if (!field.name || empty) continue;
      this.values[field.name] = field.type === "checkbox" ? field.checked : field.value;
    }
  }

  #write() {
    for (const field of this.form.elements) {
      if (!(field.name in this.values)) continue;
      if (field.type === "checkbox") field.checked = this.values[field.name];
      else if (field.name !== "block_length") field.value = this.values[field.name];
    }
    this.#apply();
  }

  /** Shows what the mode has. */
  #apply() {
    const { form, values } = this;
    const mode = values.mode ?? this.default;
    const widths = this.widths?.[mode] ?? [];
    const kept = values.block_length ?? "";
    form.block_length.replaceChildren(new Option("the server's", ""), ...widths.map((w) => new Option(w, w)));
    form.block_length.value = widths.map(String).includes(kept) ? kept : "";
    form.block_length.disabled = widths.length < 2;
    form.threshold.disabled = !this.lanes.includes("diffusion");
    for (const option of form.beside.options) option.disabled = option.value === mode;
    if (values.beside === mode) form.beside.value = "";
  }
}

function number(text) {
  return text === undefined || text === "" || text === null ? null : Number(text);
}
