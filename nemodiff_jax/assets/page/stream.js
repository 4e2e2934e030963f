// The server: what it offers, and its streams.

/** What went wrong, in a sentence; `status` of HTTP, where there is one. */
export class Failure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const CUT = "The connection broke before the answer was complete. What came is kept.";

/** What the server says of its model. */
export async function card(key) {
  const response = await reach("v1/models", { headers: headers(key) });
  return (await response.json()).data[0];
}

/** Sends a request; calls `take` with each choice as it comes. */
export async function stream(body, key, signal, take) {
  const response = await reach("v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((e) => {
      throw e.name === "AbortError" ? e : new Failure(CUT);
    });
    const lines = (rest + (value ?? "")).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (!line.startsWith("data: ")) continue;
      const chunk = JSON.parse(line.slice(6));
      if (chunk.error) throw new Failure(`The server says: ${chunk.error.message}`);
      chunk.choices.forEach(take);
    }
    if (done) throw new Failure(CUT);
  }
}

const headers = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

async function reach(path, how) {
  let response;
  try {
    response = await fetch(path, how);
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new Failure("The server cannot be reached. Is it running?");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  if (response.status === 401) {
    throw new Failure("This server asks for an API key: see Settings.", 401);
  }
  const message = told.error?.message ?? `it answers with status ${response.status}`;
  throw new Failure(`The server says: ${message}`, response.status);
}
