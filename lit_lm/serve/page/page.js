// The page of `lit-lm serve`: panes with a text each, what can be done with them, and the settings.
//
// A pane's text is a list of tokens (see tokens.js); everything shown is drawn from it. One writes in a textarea, whose
// own characters are transparent: behind it lies the same text as one text node, on which the browser paints shades as
// highlights. What comes from a model is set as text, never as HTML.

import { number, percent, say, speakLanguage } from "./strings.js";
import { ALTERNATIVES, attention, chat, chosen, complete, edited, fromModel, login } from "./tokens.js";
import { models as served, numbered, positions, scored, textOf, unnumbered } from "./tokens.js";

const SLIDERS = {
  temperature: { min: 0, max: 2, step: 0.05 },
  top_k: { min: 0, max: 200, step: 1, off: 0 },
  top_p: { min: 0.05, max: 1, step: 0.05, off: 1 },
  min_p: { min: 0, max: 0.5, step: 0.01, off: 0 },
  max_tokens: { min: 1, max: 256, step: 1 }, // max: the longest context
};
const DEFAULTS = { temperature: 0.8, top_k: 0, top_p: 0.95, min_p: 0, max_tokens: 120, keepSeed: false, shade: true };
const SHADES = [0.9, 0.5, 0.2, 0.05]; // below each of these probabilities, a token is a shade darker

const $ = (selector, root = document) => root.querySelector(selector);
const settings = { ...DEFAULTS, seed: 0, ...stored() };
let models = []; // as /v1/models lists them
let panes = [];
let active = null; // the pane that had the focus last
let view = "write";
let running = null; // AbortController of what is being written
let finished = Promise.resolve(); // until it has ended
let status = ["ready"]; // a name in strings.js, and its values
const done = []; // before each change, the panes' models and lists of tokens, for undo
const undone = []; // and for redo
let lastTyped = 0; // time of the last key: what is typed without a pause is undone together

function element(name, text, className = "") {
  return Object.assign(document.createElement(name), { textContent: text, className });
}

function button(action, className, ...children) {
  const made = Object.assign(element("button", "", className), { type: "button" });
  made.append(...children);
  made.addEventListener("click", action);
  return made;
}

/** A token with its spaces and line breaks visible. */
function visible(token) {
  return token.text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "→") || (token.shown ?? "…");
}

const quoted = (token) => say("quote", visible(token)) + (token.text ? "" : ` (${say("part")})`);
const likely = (token) => (token.logprob === null ? "" : percent(Math.exp(token.logprob)));

function shadeOf(token) {
  if (!settings.shade || token.logprob === null) return "";
  const level = SHADES.filter((least) => Math.exp(token.logprob) < least).length;
  return level ? `shade-${level}` : "";
}

function translate() {
  speakLanguage(settings.language);
  const set = (name, apply) => {
    for (const each of document.querySelectorAll(`[data-${name}]`)) apply(each, say(each.dataset[name]));
  };
  set("text", (each, words) => (each.textContent = words));
  set("label", (each, words) => each.setAttribute("aria-label", words));
  set("title", (each, words) => (each.title = words));
  set("placeholder", (each, words) => (each.placeholder = words));
}

function show(...words) {
  status = words;
  $("#status").textContent = say(...words);
}

/** Shows an error in words. One that is not the server's is a mistake in this file. */
function complain(error) {
  if (!error.kind) console.error(error);
  const words = error.kind ? say(error.kind, error.detail) : say("broken", error.message);
  $("#alert").replaceChildren(words, button(() => $("#alert").replaceChildren(), "", say("dismiss")));
}

// ---- A pane: a model and a text

class Pane {
  constructor(model) {
    this.tokens = [];
    this.root = $("#pane").content.cloneNode(true).firstElementChild;
    this.area = $("textarea", this.root);
    this.strip = $(".strip", this.root);
    this.text = $(".mirror", this.root).appendChild(document.createTextNode(""));
    this.position = null; // of the token in focus in the views of tokens and attention
    this.weights = null; // {tokens, position, layers}: what attention was asked for, and layers[layer][head][token]
    $(".models", this.root).append(...models.map(({ id }) => new Option(id)));
    $(".models", this.root).hidden = models.length < 2;
    this.use(model);
    this.listen();
  }

  use({ id, lit_lm: model }) {
    this.id = id;
    this.model = model;
    this.set(this.tokens.map(unnumbered));
    $(".models", this.root).value = id;
    for (const [name, count] of [["layer", model.num_layers], ["head", model.num_heads]]) {
      const mean = new Option(say("mean"), "");
      mean.dataset.text = "mean";
      const each = Array.from({ length: count }, (_, index) => new Option(index + 1, index));
      $(`.${name}`, this.root).replaceChildren(mean, ...each);
    }
  }

  listen() {
    $(".models", this.root).addEventListener("change", async (event) => {
      await stop();
      this.use(models.find((model) => model.id === event.target.value));
    });
    for (const name of [".layer", ".head"]) $(name, this.root).addEventListener("change", draw);
    this.root.addEventListener("focusin", () => (active = this));
    this.area.addEventListener("input", () => this.type());
    this.area.addEventListener("pointermove", (event) => hover(this, event, this.tokenAt(event)));
    this.area.addEventListener("pointerleave", hideSoon);
    this.area.addEventListener("click", (event) => {
      const index = this.tokenAt(event);
      hideChoices();
      if (event.pointerType !== "mouse" && index !== null) showChoices(this, index);
      choices.clicked = index;
    });
    this.area.addEventListener("keydown", (event) => {
      if (!event.altKey || event.key !== "ArrowDown" || !this.tokens.length) return;
      event.preventDefault();
      const next = positions(this.tokens).findIndex((start) => start > this.area.selectionStart);
      showChoices(this, next > 0 ? next - 1 : this.tokens.length - 1, true);
    });
    this.strip.addEventListener("keydown", (event) => this.move(event));
  }

  /** Takes over what has been typed. While no model has written, it is typed into every pane. */
  type() {
    if (Date.now() - lastTyped > 1500) remember();
    lastTyped = Date.now();
    hideChoices();
    const together = panes.every((pane) => pane.tokens.every((token) => token.source === "typed"));
    for (const pane of together ? panes : [this]) {
      pane.tokens = edited(pane.tokens, this.area.value);
      clearTimeout(pane.pause);
      pane.pause = setTimeout(() => pane.prepare().catch(complain), 400);
    }
    draw();
  }

  set(tokens) {
    this.tokens = tokens;
    this.prepare().catch(complain);
  }

  /** Gets every token its id and, if all fit into the context, its probability. */
  async prepare(signal) {
    while (this.tokens.some((token) => token.id === null)) await this.update(numbered, signal);
    draw();
    if (!this.isScored()) await this.update(scored, signal);
    draw();
  }

  /** Whether all probabilities are known that the model can tell. */
  isScored() {
    const known = this.tokens.slice(1).every((token) => token.logprob !== null);
    return known || this.tokens.length > this.model.context_length;
  }

  async update(find, signal) {
    const before = this.tokens;
    const found = await find(this.id, before, signal);
    if (this.tokens === before) this.tokens = found; // nothing has been typed meanwhile
  }

  /** Lets the model write on. Returns why it ended: a name in strings.js, and its values. */
  async write(signal) {
    await this.prepare(signal);
    const first = this.tokens.length;
    const room = this.model.context_length - Math.max(first, 1);
    if (room < 1) return ["full", this.model.context_length];
    const max_tokens = Math.min(settings.max_tokens, room);
    const prompt = first ? this.tokens.map((token) => token.id) : "";
    let reason;
    this.said = 0;
    try {
      const body = { model: this.id, prompt, logprobs: ALTERNATIVES, return_tokens: true, ...sampling(), max_tokens };
      for await (const { choices: [choice] } of complete(body, signal)) {
        this.tokens = [...this.tokens, ...choice.tokens.map(fromModel)];
        reason = choice.finish_reason;
        this.speak(first);
        draw();
      }
    } finally {
      const whole = this.tokens.findLastIndex((token) => token.text) + 1; // no part of a character at the end
      this.tokens = this.tokens.slice(0, Math.max(first, whole));
      this.speak(first, true);
    }
    if (reason === "stop") return ["ended"];
    return max_tokens < settings.max_tokens ? ["full", this.model.context_length] : ["length", max_tokens];
  }

  /** Has screen readers say what is new since token `first`, in whole sentences; of two panes, each at its end. */
  speak(first, end = false) {
    const text = textOf(this.tokens.slice(first)).slice(this.said);
    const sentences = /^[^]*(?:[.!?]["”’]?(?=\s)|[。！？…][”’」』]?|\n)/;
    const words = end ? text : panes.length === 1 && text.match(sentences)?.[0];
    if (!words) return;
    this.said += words.length;
    $("#spoken").append(element("p", panes.length === 1 ? words : `${this.id}: ${words}`));
  }

  /** The characters of a token in the mirror, without the first `skipped`. */
  range(index, starts = positions(this.tokens), skipped = 0) {
    const range = document.createRange();
    range.setStart(this.text, Math.min(starts[index] + skipped, this.text.length));
    range.setEnd(this.text, Math.min(starts[index + 1], this.text.length));
    return range;
  }

  /** Index of the token under the pointer, or null. */
  tokenAt({ clientX: x, clientY: y }) {
    const starts = positions(this.tokens);
    const under = (rect) => rect.left <= x && x < rect.right && rect.top <= y && y < rect.bottom;
    const index = this.tokens.findIndex((_, at) => [...this.range(at, starts).getClientRects()].some(under));
    return index < 0 ? null : index;
  }

  render() {
    const text = textOf(this.tokens);
    if (this.area.value !== text) {
      const { selectionStart: place, value } = this.area;
      const end = place >= Math.min(value.length, text.length) ? text.length : place;
      this.area.value = text;
      if (document.activeElement === this.area) this.area.setSelectionRange(end, end);
    }
    this.area.readOnly = running !== null;
    if (this.text.data !== `${text}\u200b`) this.text.data = `${text}\u200b`; // so that an empty last line has a height
    $(".facts", this.root).textContent = say("modelFacts", models.length < 2 ? `${this.id}: ` : "", this.model);
    const count = $(".count", this.root);
    const isNumbered = this.tokens.every((token) => token.id !== null);
    if (isNumbered) count.textContent = say("count", this.tokens.length, this.model.context_length);
    count.setAttribute("aria-busy", String(!isNumbered || !this.isScored()));
    $(".paper", this.root).hidden = view !== "write";
    $(".inside", this.root).hidden = view === "write";
    if (view !== "write") this.renderInside(text);
  }

  /** The views of tokens and attention: a button for each token. */
  renderInside(text) {
    const count = this.tokens.length;
    this.position = count ? Math.min(this.position ?? count - 1, count - 1) : null;
    const help = view === "tokens" ? say("tokensHelp", count, [...text].length) : say("attentionHelp");
    $(".help", this.root).textContent = count ? help : say("noTokens");
    $(".heads", this.root).hidden = view !== "attention" || !count;
    while (this.strip.children.length > count) this.strip.lastChild.remove();
    this.tokens.forEach((token, index) => this.renderChip(token, index));
    $(".seen", this.root).textContent = "";
    if (view === "attention" && count && !running) this.renderAttention();
  }

  renderChip(token, index) {
    let chip = this.strip.children[index];
    if (!chip) {
      chip = button(() => this.choose(index), "", element("span", "", "piece"), element("span", "", "number"));
      chip.addEventListener("pointermove", (event) => view === "tokens" && hover(this, event, index));
      chip.addEventListener("pointerleave", hideSoon);
      this.strip.append(chip);
    }
    const tokenizing = view === "tokens";
    const later = !tokenizing && index > this.position ? "later" : "";
    chip.className = `chip ${token.source} ${tokenizing ? shadeOf(token) : later}`;
    chip.tabIndex = index === this.position ? 0 : -1;
    chip.removeAttribute("aria-current");
    chip.firstChild.textContent = visible(token);
    chip.lastChild.textContent = tokenizing ? (token.id ?? "") : "";
    const facts = tokenizing ? [say("tokenId", token.id), likely(token)] : [];
    chip.setAttribute("aria-label", [quoted(token), ...facts.filter(Boolean)].join(", "));
  }

  renderAttention() {
    const { tokens, position, layers } = this.weights ?? {};
    if (tokens !== this.tokens || position !== this.position) this.weigh().catch(complain);
    else if (layers) this.renderWeights(layers);
  }

  /** Asks what the token in focus looked at. */
  async weigh() {
    const { tokens, position } = this;
    if (tokens.some((token) => token.id === null)) return; // drawn again when they have their ids
    const asked = (this.weights = { tokens, position });
    const ids = tokens.slice(0, position + 1).map((token) => token.id);
    asked.layers = await attention({ model: this.id, ids, position });
    this.strip.children[position]?.scrollIntoView({ block: "nearest" });
    draw();
  }

  renderWeights(layers) {
    const wanted = (name) => (_, index) => ["", String(index)].includes($(name, this.root).value);
    const rows = layers.filter(wanted(".layer")).flatMap((heads) => heads.filter(wanted(".head")));
    const mean = rows[0].map((_, index) => rows.reduce((sum, row) => sum + row[index], 0) / rows.length);
    const most = Math.max(...mean);
    const named = (index) => `${quoted(this.tokens[index])} ${percent(mean[index])}`;
    mean.forEach((weight, index) => {
      const chip = this.strip.children[index];
      chip.classList.add("looked-at");
      chip.style.setProperty("--weight", weight / most);
      chip.lastChild.textContent = percent(weight);
      chip.setAttribute("aria-label", named(index));
    });
    this.strip.children[this.position].setAttribute("aria-current", "true");
    const order = [...mean.keys()].sort((one, other) => mean[other] - mean[one]);
    const most3 = order.slice(0, 3).map(named);
    $(".seen", this.root).textContent = say("attentionSeen", quoted(this.tokens[this.position]), most3);
  }

  choose(index) {
    this.position = index;
    draw();
    if (view === "tokens") showChoices(this, index, true);
  }

  /** Arrow keys, Home and End in the strip. */
  move(event) {
    const last = this.tokens.length - 1;
    const to = { ArrowLeft: this.position - 1, ArrowRight: this.position + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.position = Math.max(0, Math.min(last, to));
    this.strip.children[this.position].focus();
    draw();
  }
}

// ---- Drawing

let drawing = 0;

/** Draws everything before the next frame. */
function draw() {
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    const covered = () => $("#panes").getBoundingClientRect().bottom - $("#actions").getBoundingClientRect().top;
    const before = covered();
    for (const pane of panes) pane.render();
    paint();
    if (running && before <= 0 && covered() > 0) scrollBy(0, covered()); // follow the text as it grows
    $("#go").textContent = say(running ? "stop" : "continue");
    const any = (test) => panes.some((pane) => pane.tokens.some(test));
    const written = any((token) => token.source === "model");
    const can = { undo: done.length, redo: undone.length, restart: written, rewrite: any(() => true) };
    for (const [id, able] of Object.entries(can)) $(`#${id}`).setAttribute("aria-disabled", String(!able));
  });
}

/** Paints the texts, with highlights that page.css names. */
function paint() {
  if (!CSS.highlights) return; // an old browser: the numbers are still there
  CSS.highlights.clear();
  const add = (name, range) => CSS.highlights.set(name, (CSS.highlights.get(name) ?? new Highlight()).add(range));
  for (const pane of panes) {
    const starts = positions(pane.tokens);
    pane.tokens.forEach((token, index) => {
      const space = token.text.length - token.text.trimStart().length; // before a word: left blank
      const range = pane.range(index, starts, space < token.text.length ? space : 0);
      if (token.source === "typed") add("typed", range);
      if (shadeOf(token)) add(shadeOf(token), range);
      if (choices.pane === pane && choices.index === index) add("marked", range);
    });
  }
}

// ---- A token's probability and alternatives, in a box below it

const choices = { pane: null, index: null, clicked: null, timer: 0, light: true }; // light: goes when the mouse leaves

function hover(pane, event, index) {
  if (event.pointerType !== "mouse" || !(event.movementX || event.movementY)) return; // the text moved, not the mouse
  if (!choices.light) return;
  keepChoices();
  if (index !== choices.clicked) choices.clicked = null; // after a click, one writes
  if (index === null || choices.clicked !== null) return hideSoon();
  if (choices.pane !== pane || choices.index !== index) {
    choices.timer = setTimeout(() => showChoices(pane, index, false, true), choices.pane ? 60 : 200);
  }
}

const keepChoices = () => clearTimeout(choices.timer);

function hideSoon() {
  keepChoices();
  if (choices.light) choices.timer = setTimeout(hideChoices, 250);
}

function hideChoices() {
  keepChoices();
  const { pane, index } = choices;
  if ($("#choices").contains(document.activeElement)) owner(pane, index)?.focus();
  Object.assign(choices, { pane: null, index: null, light: true });
  $("#choices").hidden = true;
  draw();
}

/** What has the focus before and after the box. */
const owner = (pane, index) => (view === "write" ? pane.area : pane.strip.children[index]);

function showChoices(pane, index, focus = false, light = false) {
  keepChoices();
  const token = pane.tokens[index];
  if (!token) return;
  Object.assign(choices, { pane, index, light });
  const box = $("#choices");
  const head = element("p", "", "head");
  const id = element("span", say("tokenId", token.id ?? "…"), "hint");
  head.append(element("strong", visible(token)), element("span", likely(token)), id);
  const none = element("p", say(index ? "noProbability" : "firstToken"), "hint");
  box.replaceChildren(head, ...(token.alternatives.length ? alternatives(pane, index, token) : [none]));
  box.setAttribute("aria-label", [say("alternatives", quoted(token)), likely(token)].filter(Boolean).join(": "));
  box.hidden = false;
  const place = (view === "write" ? pane.range(index) : owner(pane, index)).getBoundingClientRect();
  const below = place.bottom + box.offsetHeight < innerHeight || place.top < box.offsetHeight;
  const left = Math.min(place.left, document.documentElement.clientWidth - box.offsetWidth - 8);
  box.style.left = `${scrollX + Math.max(8, left)}px`;
  box.style.top = `${scrollY + (below ? place.bottom : place.top - box.offsetHeight)}px`;
  if (focus) ($("[aria-current]", box) ?? box).focus();
  draw();
}

/** A button for each alternative, likeliest first, with the token itself among them. */
function alternatives(pane, index, token) {
  const isListed = token.alternatives.some((other) => other.id === token.id);
  const all = isListed ? token.alternatives : [...token.alternatives, token];
  const rest = 1 - all.reduce((sum, other) => sum + Math.exp(other.logprob), 0);
  const buttons = all.map((other) => {
    const parts = [element("span", visible(other), "piece"), element("span", likely(other), "number")];
    const made = button(() => branch(pane, index, other), "choice", ...parts);
    made.style.setProperty("--probability", Math.exp(other.logprob));
    if (other.id === token.id) made.setAttribute("aria-current", "true");
    return made;
  });
  return [element("p", say("choose"), "hint"), ...buttons, element("p", say("rest", Math.max(0, rest)), "hint rest")];
}

// ---- What one can do

const snapshot = () => panes.map(({ id, tokens }) => ({ id, tokens }));

function remember() {
  done.push(snapshot());
  undone.length = 0;
  lastTyped = 0;
}

/** Goes back to the text before the last change, or forth again. */
async function step(from, to, words) {
  await stop();
  const isShown = ({ tokens }, index) => !panes[index] || textOf(panes[index].tokens) === textOf(tokens);
  while (from.length && from.at(-1).every(isShown)) from.pop(); // a change of which nothing came
  if (from.length) {
    to.push(snapshot());
    for (const [index, { id, tokens }] of from.pop().entries()) {
      panes[index]?.set(id === panes[index].id ? tokens : tokens.map(unnumbered));
    }
    show(words);
  }
  lastTyped = 0;
  hideChoices();
}

async function stop() {
  running?.abort();
  await finished;
}

/** Lets the models of some panes write on, all with the same seed, after a change that is undone together with it. */
async function write(which = panes, change = () => {}) {
  await stop();
  remember();
  change();
  const { signal } = (running = new AbortController());
  if (!settings.keepSeed) settings.seed = crypto.getRandomValues(new Uint32Array(1))[0];
  showSettings();
  hideChoices();
  $("#alert").replaceChildren();
  $("#spoken").replaceChildren();
  show("writing");
  const failed = (error) => void (error.name === "AbortError" || complain(error));
  finished = Promise.all(which.map((pane) => pane.write(signal).catch(failed))).then((ends) => {
    running = null;
    show(...(ends.find(Boolean) ?? ["stopped"]));
    draw();
  });
}

/** Puts an alternative in a token's place, and continues from there. */
async function branch(pane, index, alternative) {
  const token = chosen(alternative, pane.tokens[index]);
  await write([pane], () => (pane.tokens = [...pane.tokens.slice(0, index), token]));
}

async function rewrite() {
  const pane = panes.includes(active) ? active : panes[0];
  const place = pane.area.selectionStart;
  await write([pane], () => (pane.tokens = edited(pane.tokens, textOf(pane.tokens).slice(0, place))));
}

/** Leaves what was typed before a model wrote: in all panes, that of the first. */
async function restart() {
  await stop();
  remember();
  const written = panes[0].tokens.findIndex((token) => token.source === "model");
  const [first, ...others] = panes;
  if (written >= 0) first.set(first.tokens.slice(0, written));
  for (const pane of others) pane.set(edited([], textOf(first.tokens)));
  hideChoices();
  show("ready");
}

async function compare() {
  await stop();
  if (panes.length > 1) panes.pop().root.remove();
  else addPane(models.find((model) => model.id !== panes[0].id));
  const two = panes.length > 1;
  $("#compare").setAttribute("aria-pressed", String(two));
  $("#compare-hint").hidden = !two;
  $("#panes").classList.toggle("two", two);
  if (two) await restart();
  draw();
}

function addPane(model) {
  panes.push(new Pane(model));
  $("#panes").append(panes.at(-1).root);
  translate();
}

function look(name) {
  view = name;
  hideChoices();
  const talking = name === "chat";
  $("#panes").hidden = $("#actions").hidden = talking;
  $("#chat").hidden = !talking;
  $("#legend").hidden = talking || name === "attention";
  $("#compare").hidden = talking || models.length < 2;
  if (!running) show(talking ? "chatReady" : "ready");
}

// ---- Chat

const messages = []; // {role, content}

function addMessage(role, content) {
  const line = element("p", "", role);
  line.append(element("strong", role === "user" ? say("you") : $("#chat-model").value), element("span", content));
  $("#conversation").append(line);
  return line.lastChild;
}

async function send() {
  if (running) return stop();
  const content = $("#message").value.trim();
  if (!content) return;
  $("#alert").replaceChildren();
  $("#message").value = "";
  messages.push({ role: "user", content });
  const question = addMessage("user", content);
  running = new AbortController();
  finished = reply(question, addMessage("assistant", ""), running.signal);
  await finished;
}

async function reply(question, line, signal) {
  $("#send").textContent = say("stop");
  $("#conversation").setAttribute("aria-busy", "true"); // screen readers wait until the answer is whole
  show("writing");
  let failed = false;
  try {
    const body = { model: $("#chat-model").value, messages, ...sampling() };
    for await (const { choices: [choice] } of chat(body, signal)) line.textContent += choice.delta.content ?? "";
    show("chatReady");
  } catch (error) {
    failed = true;
    if (error.name !== "AbortError") complain(error);
    show("stopped");
  }
  if (line.textContent || !failed) messages.push({ role: "assistant", content: line.textContent });
  else {
    // without an answer, the question is none of the conversation; it can be changed and sent again
    messages.pop();
    $("#message").value ||= question.textContent;
    for (const each of [question, line]) each.parentNode.remove();
  }
  $("#conversation").removeAttribute("aria-busy");
  $("#send").textContent = say("send");
  running = null;
}

// ---- Settings

function stored() {
  try {
    return JSON.parse(localStorage.getItem("lit-lm")) ?? {};
  } catch {
    return {}; // the browser keeps nothing
  }
}

function change(values) {
  Object.assign(settings, values);
  showSettings();
  draw();
  try {
    localStorage.setItem("lit-lm", JSON.stringify(settings));
  } catch {
    // the browser keeps nothing
  }
}

/** The settings as the server's API has them. */
function sampling() {
  const { temperature, top_k, top_p, min_p, max_tokens, seed } = settings;
  return { temperature, top_k: top_k || null, top_p, min_p, max_tokens, seed };
}

function addSliders() {
  SLIDERS.max_tokens.max = Math.max(...models.map((model) => model.lit_lm.context_length));
  for (const [name, { min, max, step }] of Object.entries(SLIDERS)) {
    const control = element("div", "", "control");
    const label = Object.assign(element("label", ""), { htmlFor: name });
    const slider = Object.assign(document.createElement("input"), { type: "range", id: name, min, max, step });
    const hint = Object.assign(element("p", "", "hint"), { id: `${name}-hint` });
    label.dataset.text = name;
    hint.dataset.text = hint.id;
    slider.setAttribute("aria-describedby", hint.id);
    slider.addEventListener("input", () => change({ [name]: Number(slider.value) }));
    control.append(label, element("output", ""), slider, hint);
    $("#controls").append(control);
  }
}

function showSettings() {
  for (const [name, { off }] of Object.entries(SLIDERS)) {
    const shown = settings[name] === off ? say("off") : number(settings[name]);
    $(`#${name}`).value = settings[name];
    $(`#${name}`).setAttribute("aria-valuetext", shown);
    $(`#${name}`).previousSibling.textContent = shown;
  }
  $("#seed").value = settings.seed;
  $("#keep-seed").checked = settings.keepSeed;
  $("#shade").checked = settings.shade;
  const dark = settings.dark ?? matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("#theme").setAttribute("aria-pressed", String(dark));
}

// ---- The start

function listen() {
  const actions = {
    go: () => (running ? stop() : write()),
    rewrite,
    restart,
    undo: () => step(done, undone, "undone"),
    redo: () => step(undone, done, "redone"),
    compare,
    theme: () => change({ dark: document.documentElement.dataset.theme !== "dark" }),
    language: () => {
      change({ language: document.documentElement.lang === "en" ? "zh" : "en" });
      translate();
      showSettings();
      show(...status);
      hideChoices();
    },
    defaults: () => change(DEFAULTS),
    clear: async () => {
      await stop();
      messages.length = 0;
      $("#conversation").replaceChildren();
    },
  };
  for (const [id, action] of Object.entries(actions)) {
    const each = $(`#${id}`);
    each.addEventListener("click", () => each.getAttribute("aria-disabled") === "true" || action());
  }
  const onChange = (selector, action) => $(selector).addEventListener("change", (event) => action(event.target));
  onChange("#views", (radio) => look(radio.value));
  const natural = (input) => Math.max(0, Math.floor(input.valueAsNumber || 0));
  onChange("#seed", (input) => change({ seed: natural(input), keepSeed: true }));
  onChange("#keep-seed", (box) => change({ keepSeed: box.checked }));
  onChange("#shade", (box) => change({ shade: box.checked }));
  $("#chat").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  const box = $("#choices");
  box.addEventListener("pointerenter", keepChoices);
  box.addEventListener("pointerleave", hideSoon);
  box.addEventListener("focusout", ({ relatedTarget: next }) => next && !box.contains(next) && hideChoices());
  box.addEventListener("keydown", (event) => {
    const other = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    if (!other) return;
    event.preventDefault();
    if (document.activeElement[other]?.matches("button")) document.activeElement[other].focus();
  });
  document.addEventListener("pointerdown", (event) => box.contains(event.target) || hideChoices());
  document.addEventListener("keydown", shortcut);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showSettings);
}

function shortcut(event) {
  const key = event.ctrlKey || event.metaKey ? `ctrl ${event.key.toLowerCase()}` : event.key;
  if (key === "Escape") {
    hideChoices();
    stop();
  } else if (key === "ctrl enter") {
    event.preventDefault();
    if (view === "chat") send();
    else if (event.shiftKey) rewrite();
    else if (!running) write();
  } else if (key === "ctrl z" && view !== "chat" && !event.target.matches("input")) {
    event.preventDefault(); // the browser's own undo knows nothing of the model
    $(event.shiftKey ? "#redo" : "#undo").click();
  }
}

async function start() {
  translate();
  for (;;) {
    try {
      models = await served();
      break;
    } catch (error) {
      const key = error.kind === "locked" && prompt(say("locked"));
      if (!key) throw error;
      login(key);
    }
  }
  addSliders();
  listen();
  addPane(models[0]);
  const talkers = models.filter((model) => model.lit_lm.chat);
  $("#chat-model").append(...talkers.map(({ id }) => new Option(id)));
  $("#chat-view").hidden = !talkers.length;
  $("#settings").open = matchMedia("(min-width: 60rem)").matches;
  showSettings();
  look("write");
  panes[0].area.focus();
}

start().catch(complain);
