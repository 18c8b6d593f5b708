// The server's API, and texts as lists of tokens. Nothing here touches the page.
//
// A token: {id, text, logprob, alternatives: [{id, text, logprob}], source: "typed" | "model"}. Its id is null while the
// text is being edited, until the server has split it. The texts of a list of tokens join to the whole text: of the
// tokens that are parts of a character, the last has the character, and the others have "".

export const ALTERNATIVES = 8; // that the server is asked for with each token

/** What went wrong, as a name in strings.js and the value in that sentence. */
export class ServerError extends Error {
  constructor(kind, detail) {
    super(`${kind}: ${detail ?? ""}`);
    this.kind = kind;
    this.detail = detail;
  }
}

const headers = { "Content-Type": "application/json" };

/** Sends this key from now on. It is kept nowhere else. */
export function login(key) {
  headers.Authorization = `Bearer ${key}`;
}

/** The error of a connection: the user's own, or that the server is gone. */
function lost(error) {
  throw error?.name === "AbortError" ? error : new ServerError("lost");
}

async function request(path, body, signal) {
  const post = { method: "POST", body: JSON.stringify(body) };
  const response = await fetch(path, { ...(body && post), headers, signal }).catch(lost);
  if (response.ok) return response;
  if (response.status === 401) throw new ServerError("locked");
  if (response.status === 429) throw new ServerError("busy", response.headers.get("Retry-After") ?? "1");
  if (response.status >= 500) throw new ServerError("failed", response.status);
  const answer = await response.json().catch(() => ({}));
  throw new ServerError("refused", answer.error?.message ?? String(response.status));
}

async function answer(path, body, signal) {
  const response = await request(path, body, signal);
  return response.json().catch(lost);
}

/** The objects of a stream of server-sent events, until [DONE]. */
async function* stream(path, body, signal) {
  const response = await request(path, { ...body, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let received = "";
  for (;;) {
    const { value, done } = await reader.read().catch(lost);
    if (done) lost(); // before [DONE]
    received += value;
    const events = received.split(/\r?\n\r?\n/);
    received = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: ?/, "");
      if (data === event) continue; // a comment
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError("refused", chunk.error.message);
      yield chunk;
    }
  }
}

export const models = async () => (await answer("/v1/models")).data;
export const complete = (body, signal) => stream("/v1/completions", body, signal);
export const chat = (body, signal) => stream("/v1/chat/completions", body, signal);
export const attention = async (body) => (await answer("/api/attention", body)).weights;

export const textOf = (tokens) => tokens.map((token) => token.text).join("");
export const typed = (text) => ({ id: null, text, logprob: null, alternatives: [], source: "typed" });
export const unnumbered = (token) => ({ ...typed(token.text), source: token.source });

/** A new token. A textarea has no carriage returns. */
export const fromModel = (token) => ({ ...token, text: token.text.replaceAll("\r", ""), source: "model" });

/** An alternative in the place of a token. The server writes one that is a part of a character as its bytes, <E4>. */
export function chosen({ id, text, logprob }, { alternatives }) {
  const part = /^(<[0-9A-F]{2}>)+$/.test(text);
  return fromModel({ id, text: part ? "" : text, shown: part ? text : undefined, logprob, alternatives });
}

/** The tokens after an edit that made their text `text`. Tokens before the edit stay as they are. */
export function edited(tokens, text) {
  let first = 0; // index of the first token that changed, which begins at character `from`
  let from = 0;
  while (first < tokens.length && text.startsWith(tokens[first].text, from)) from += tokens[first++].text.length;
  let last = tokens.length; // index after the last one, which ends at character `to`
  let to = text.length;
  while (last > first && to - tokens[last - 1].text.length >= from && text.endsWith(tokens[last - 1].text, to)) {
    to -= tokens[--last].text.length;
  }
  const inserted = from < to ? [typed(text.slice(from, to))] : [];
  return [...tokens.slice(0, first), ...inserted, ...tokens.slice(last).map(unnumbered)];
}

/** The same text with an id for every token. Tokens before the first change keep their probabilities. */
export async function numbered(model, tokens, signal) {
  const text = textOf(tokens);
  const pieces = text ? (await answer("/api/tokenize", { model, text }, signal)).tokens : [];
  let old = 0; // index of the old token that has the next character, and where that one ends
  let end = tokens[0].text.length;
  let at = 0;
  let same = true;
  return aligned(text, pieces).map((piece, index) => {
    while (old < tokens.length - 1 && end <= at) end += tokens[++old].text.length;
    at += piece.text.length;
    same &&= tokens[index]?.id === piece.id && tokens[index].text === piece.text;
    return same ? { ...tokens[index], ...piece } : { ...typed(""), ...piece, source: tokens[old].source };
  });
}

/** The same tokens with their probabilities; the first has none. */
export async function scored(model, tokens, signal) {
  const prompt = tokens.map((token) => token.id);
  const body = { model, prompt, echo: true, max_tokens: 0, logprobs: ALTERNATIVES, return_tokens: true };
  const found = (await answer("/v1/completions", body, signal)).choices[0].tokens;
  return tokens.map((token, index) => {
    const { logprob, alternatives } = found[index];
    return { ...token, logprob, alternatives };
  });
}

/**
 * The server's tokens of a text, with the characters that each completes: it writes a byte of a character as <E4>, and
 * a tokenizer may have changed characters. What is found nowhere belongs to the token after it.
 */
function aligned(text, pieces) {
  const bytes = new TextEncoder().encode(text);
  const inside = (place) => (bytes[place] & 0xc0) === 0x80; // between the bytes of one character
  let read = 0; // bytes of the tokens so far
  let shown = 0; // bytes of the whole characters among them
  return pieces.map(({ id, text: name }, index) => {
    read = index === pieces.length - 1 ? bytes.length : after(bytes, read, name);
    let whole = read;
    while (inside(whole)) whole--;
    const characters = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes.subarray(shown, whole));
    shown = whole;
    return { id, text: characters, shown: characters ? undefined : name };
  });
}

/** Where a token named `name` ends in the bytes of a text, if it begins at `start` or soon after. */
function after(bytes, start, name) {
  const literal = new TextEncoder().encode(name);
  const escaped = name.split(/<(?:0x)?([0-9A-F]{2})>/).flatMap((part, index) =>
    index % 2 ? [parseInt(part, 16)] : [...new TextEncoder().encode(part)],
  );
  for (let begin = start; begin < start + 8; begin++) {
    for (const token of [literal, escaped]) {
      if (token.length && token.every((byte, index) => bytes[begin + index] === byte)) return begin + token.length;
    }
  }
  return start;
}

/** The character at which each token begins, and the end of the text. */
export function positions(tokens) {
  const starts = [0];
  for (const token of tokens) starts.push(starts.at(-1) + token.text.length);
  return starts;
}
