/** The panel that asks: pictures and questions over several turns, streamed. */

import { dataUrl, events, postJson } from "./api.js";
import { boxedPicture } from "./boxes.js";
import { showCode } from "./code.js";
import {
  adapterFields, byId, chosenAdapters, element, fillSelect, hideError, numberIn, show, showError,
  takePictures,
} from "./dom.js";

const SCHEMA = {
  type: "object",
  properties: {
    shapes: {
      type: "array",
      items: {
        type: "object",
        properties: {
          kind: { type: "string" }, colour: { type: "string" }, size: { type: "string" },
        },
        required: ["kind", "colour", "size"],
        additionalProperties: false,
      },
    },
    ground: { type: "string" },
  },
  required: ["shapes", "ground"],
  additionalProperties: false,
};
let models = [];
let model = null;
let running = null;
let messages = []; // of the conversation, as they are sent
let pictures = []; // their pictures in order: blobs
let attached = []; // of the next question: {blob, url}

/** Show the panel for these models. Returns a function that asks about a picture, or null. */
export function startChat(found) {
  models = found;
  show(byId("chat"), models.length > 0);
  if (!models.length) return null;
  const select = byId("chat-model");
  fillSelect(select, models.map((each) => each.name), models[0].name);
  show(select, models.length > 1);
  select.addEventListener("change", () => choose(select.value));
  choose(models[0].name);
  byId("schema").value = JSON.stringify(SCHEMA, null, 2);
  byId("json").addEventListener("change", showSchema);
  byId("chat-form").addEventListener("submit", submit);
  byId("chat-cancel").addEventListener("click", () => running?.abort());
  byId("chat-clear").addEventListener("click", clear);
  byId("attach").addEventListener("click", () => byId("attach-file").click());
  byId("attach-file").addEventListener("change", ({ target }) => {
    [...target.files].forEach(attach);
    target.value = "";
  });
  byId("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
  });
  byId("questions").addEventListener("click", suggest);
  takePictures(byId("chat"), attach);
  return async (blob) => {
    if (running) return;
    clear();
    await attach(blob);
    byId("question").value = "Describe this picture.";
    if (matchMedia("(max-width: 60rem)").matches) byId("chat").scrollIntoView();
    await ask();
  };
}

function choose(name) {
  model = models.find((each) => each.name === name);
  adapterFields(byId("chat-adapters"), model.limits.loras ?? []);
}

function suggest({ target }) {
  if (target.tagName !== "BUTTON" || running) return;
  byId("boxes").checked = "boxes" in target.dataset;
  byId("json").checked = "json" in target.dataset;
  showSchema();
  byId("question").value = target.textContent;
  if (attached.length || pictures.length) ask();
  else byId("attach").focus();
}

const showSchema = () => show(byId("schema-field"), byId("json").checked);

async function attach(blob) {
  hideError(byId("chat-error"));
  const most = model.limits.image_max_bytes ?? Infinity;
  if (blob.size > most) {
    const said = `The picture has ${blob.size} bytes; this server takes ${most}.`;
    showError(byId("chat-error"), new Error(said));
    return;
  }
  attached.push({ blob, url: URL.createObjectURL(blob) });
  showAttached();
  byId("question").focus();
}

function showAttached() {
  const list = byId("attached");
  list.replaceChildren(...attached.map((each, index) => {
    const remove = element("button", {
      type: "button", className: "remove", textContent: "×",
      "aria-label": `Remove picture ${index + 1}`,
    });
    remove.addEventListener("click", () => {
      attached.splice(index, 1);
      URL.revokeObjectURL(each.url);
      showAttached();
      byId("question").focus();
    });
    const alt = `Picture ${index + 1} for the next question`;
    return element("span", {}, element("img", { src: each.url, alt }), remove);
  }));
  show(list, attached.length > 0);
}

function clear() {
  running?.abort();
  messages = [];
  pictures = [];
  byId("turns").replaceChildren(byId("chat-hint") ?? hint());
  show(byId("chat-clear"), false);
  hideError(byId("chat-error"));
}

const hint = () => element("p", {
  id: "chat-hint", className: "hint",
  textContent: "Drop, paste or choose a picture and ask about it.",
});

// -- requests -------------------------------------------------------------------------------------
function responseFormat() {
  if (!byId("json").checked) return undefined;
  const text = byId("schema").value.trim();
  if (!text) return { type: "json_object" };
  let schema;
  try {
    schema = JSON.parse(text);
  } catch (error) {
    throw new Error(`The schema is not JSON: ${error.message}`, { cause: error });
  }
  return { type: "json_schema", json_schema: { name: "answer", schema, strict: true } };
}

/** The body of a request for the conversation with one more question. */
async function makeBody(question) {
  const parts = await Promise.all(attached.map(async ({ blob }) => ({
    type: "image_url", image_url: { url: await dataUrl(blob) },
  })));
  const content = parts.length ? [...parts, { type: "text", text: question }] : question;
  const fields = {
    model: model.name,
    messages: [...messages, { role: "user", content }],
    max_tokens: numberIn("max_tokens"),
    temperature: numberIn("temperature"),
    seed: numberIn("chat-seed"),
    loras: chosenAdapters(byId("chat-adapters")),
    response_format: responseFormat(),
    coordinates: byId("boxes").checked ? "original" : undefined,
  };
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
}

function submit(event) {
  event.preventDefault();
  if (!running && byId("question").value.trim()) ask();
}

async function ask() {
  running = new AbortController();
  const own = running;
  const question = byId("question").value.trim();
  const added = attached;
  const turns = byId("turns");
  hideError(byId("chat-error"));
  setBusy(true);
  const asked = element("div", { className: "turn asked" });
  const answered = element("div", { className: "turn answered", "aria-busy": "true" });
  let body = null;
  let text = "";
  try {
    body = await makeBody(question);
    byId("chat-hint")?.remove();
    asked.append(
      ...added.map(({ url }) => element("img", { src: url, alt: "The picture that was sent" })),
      element("p", {}, question),
    );
    turns.append(asked, answered);
    const started = performance.now();
    const options = { stream: true, stream_options: { include_usage: true } };
    const response = await postJson("v1/chat/completions", { ...body, ...options }, own.signal);
    byId("question").value = "";
    attached = [];
    showAttached();
    const answer = { boxes: [], usage: null, timings: null, firstMs: 0, end: "" };
    const said = answered.appendChild(element("p", { className: "said" }));
    for await (const { choices, usage, timings, seed } of events(response)) {
      const [{ delta, finish_reason: end } = {}] = choices;
      if (delta?.content) {
        answer.firstMs ||= performance.now() - started;
        said.textContent = text += delta.content;
        turns.scrollTop = turns.scrollHeight;
      }
      answer.boxes = delta?.boxes ?? answer.boxes;
      answer.end = end ?? answer.end;
      answer.usage = usage ?? answer.usage;
      answer.timings = timings ?? answer.timings;
      answer.seed = seed ?? answer.seed;
    }
    keep(body, added, text);
    finish(answered, said, body, answer, text);
  } catch (error) {
    if (error.name !== "AbortError") showError(byId("chat-error"), error);
    if (text && answered.isConnected) {
      keep(body, added, text);
      answered.append(element("p", { className: "facts" }, "Not finished."));
    } else {
      asked.remove();
      answered.remove();
      if (!byId("question").value) byId("question").value = question;
      if (!attached.length) attached = added;
      showAttached();
      if (!turns.children.length) turns.append(hint());
    }
  } finally {
    answered.removeAttribute("aria-busy");
    if (running === own) running = null;
    setBusy(false);
  }
}

/** The turn is part of the conversation from now on. */
function keep(body, added, text) {
  messages = [...body.messages, { role: "assistant", content: text }];
  pictures = [...pictures, ...added.map(({ blob }) => blob)];
  show(byId("chat-clear"), true);
}

function finish(answered, said, body, answer, text) {
  if (body.response_format) showJson(said, text);
  if (body.coordinates) showBoxes(answered, answer.boxes);
  const { usage, timings } = answer;
  const facts = [];
  if (usage) facts.push(`${usage.prompt_tokens} + ${usage.completion_tokens} tokens`);
  if (answer.firstMs) facts.push(`first after ${Math.round(answer.firstMs)} ms`);
  if (timings) facts.push(`${timings.compute_ms} ms computed`, `${timings.queue_ms} ms waited`);
  if (answer.seed !== undefined) facts.push(`seed ${answer.seed}`);
  if (answer.end === "length") facts.push("cut off: more tokens are needed");
  const code = element("button", { type: "button", className: "quiet", textContent: "Copy as …" });
  const seeded = { ...body, seed: answer.seed ?? body.seed };
  const request = { path: "v1/chat/completions", body: seeded, files: {} };
  code.addEventListener("click", () => showCode(request));
  answered.append(element("div", { className: "facts" }, facts.join(" · "), " ", code));
  byId("turns").scrollTop = byId("turns").scrollHeight;
}

function showJson(said, text) {
  try {
    const shown = JSON.stringify(JSON.parse(text), null, 2);
    said.replaceWith(element("pre", {
      className: "said code", textContent: shown, tabIndex: 0, "aria-label": "JSON",
    }));
  } catch {
    // cut off: it stays as it came
  }
}

function showBoxes(answered, boxes) {
  const used = [...new Set(boxes.map(({ picture }) => picture))];
  for (const index of used) {
    const own = boxes.filter(({ picture }) => picture === index);
    if (pictures[index]) answered.append(boxedPicture(pictures[index], own));
  }
  if (!used.length) answered.append(element("p", { className: "facts" }, "No boxes in this answer."));
}

function setBusy(isBusy) {
  show(byId("chat-cancel"), isBusy);
  show(byId("chat-go"), !isBusy);
  byId("chat").setAttribute("aria-busy", String(isBusy));
  if (isBusy) byId("chat-cancel").focus({ preventScroll: true });
  else if (document.activeElement === document.body) byId("question").focus({ preventScroll: true });
}
