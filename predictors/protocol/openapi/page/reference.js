// Shows openapi.json and sends requests from it. All text of the document is set as text, never as
// markup, and nothing is asked of another host.
"use strict";

const METHODS = ["get", "post", "delete"];
const MOST_SHOWN = 20000; // characters of an answer
const MOST_ROWS = 400; // fields of one table
const KEY = "predictors.key"; // the playground's too
const root = new URL("..", new URL(import.meta.url)); // the server, behind any prefix

let spec = null;

function make(tag, text = "", attributes = {}) {
  const found = document.createElement(tag);
  if (text) found.textContent = text;
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  return found;
}

function resolve(schema) {
  let found = schema;
  for (let depth = 0; found && found.$ref && depth < 8; depth += 1) {
    found = found.$ref.slice(2).split("/").reduce(
      (at, part) => at?.[part.replaceAll("~1", "/").replaceAll("~0", "~")], spec);
  }
  return found ?? {};
}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

// -- values in words ----------------------------------------------------------------------------
function bounds(schema) {
  const found = [];
  if (schema.minimum !== undefined) found.push(`from ${schema.minimum}`);
  if (schema.exclusiveMinimum !== undefined) found.push(`above ${schema.exclusiveMinimum}`);
  if (schema.maximum !== undefined) found.push(`to ${schema.maximum}`);
  if (schema.multipleOf !== undefined) found.push(`multiples of ${schema.multipleOf}`);
  if (schema.maxLength !== undefined) found.push(`at most ${schema.maxLength} characters`);
  if (schema.maxItems !== undefined) found.push(`at most ${schema.maxItems} items`);
  if (schema.pattern !== undefined) found.push(`matches ${schema.pattern}`);
  return found.join(", ");
}

function typeOf(given, depth = 0) {
  const schema = resolve(given);
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  const options = schema.anyOf ?? schema.oneOf;
  if (options && depth < 3) {
    const shared = schema.type ? { type: schema.type } : {};
    const names = options.map((each) => typeOf({ ...shared, ...resolve(each) }, depth + 1));
    return [...new Set(names)].join(" | ");
  }
  const kinds = [schema.type ?? "any"].flat();
  const inner = schema.items && depth < 3 ? ` of ${typeOf(schema.items, depth + 1)}` : "";
  const limits = bounds(schema);
  return kinds.join(" | ") + inner + (limits ? ` (${limits})` : "");
}

function fieldTable(schema, caption) {
  const found = resolve(schema);
  const needed = new Set(found.required ?? []);
  const rank = ([name, each]) =>
    needed.has(name) ? 0 : (resolve(each).description ?? "").startsWith("Ignored") ? 2 : 1;
  const properties = Object.entries(found.properties ?? {})
    .sort((one, other) => rank(one) - rank(other)).slice(0, MOST_ROWS);
  if (properties.length === 0) return null;
  const table = make("table");
  table.append(make("caption", caption));
  const head = table.createTHead().insertRow();
  for (const name of ["field", "type", "default", "meaning"]) {
    head.append(make("th", name, { scope: "col" }));
  }
  const body = table.createTBody();
  for (const [name, given] of properties) {
    const each = resolve(given);
    const row = body.insertRow();
    const title = make("th", "", { scope: "row" });
    title.append(make("code", name), needed.has(name) ? " (required)" : "");
    row.append(title);
    row.insertCell().append(make("code", typeOf(each)));
    const value = each.default === undefined ? "" : JSON.stringify(each.default);
    row.insertCell().append(make("code", value));
    row.insertCell().append(given.description ?? each.description ?? "");
  }
  const box = make("div", "", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption });
  box.append(table);
  return box;
}

function bodyTables(schema, media) {
  const found = resolve(schema);
  const options = found.oneOf ?? [found];
  return options.map((each) => {
    const model = resolve(resolve(each).properties?.model).enum?.[0];
    return fieldTable(each, `Fields (${media})${model ? ` of ${model}` : ""}`);
  }).filter(Boolean);
}

// -- answers ------------------------------------------------------------------------------------
function picturesIn(value, found = []) {
  if (Array.isArray(value)) value.forEach((each) => picturesIn(each, found));
  else if (value && typeof value === "object") {
    if (typeof value.b64_json === "string") found.push(value.b64_json);
    Object.values(value).forEach((each) => picturesIn(each, found));
  }
  return found;
}

function shortened(key, value) {
  return typeof value === "string" && value.length > 200
    ? `${value.slice(0, 80)}... (${value.length} characters)` : value;
}

function pictureType(base64) {
  if (base64.startsWith("/9j/")) return "image/jpeg";
  return base64.startsWith("UklGR") ? "image/webp" : "image/png";
}

function show(output, text, type) {
  const shown = text.slice(0, MOST_SHOWN);
  if (!type.includes("json")) {
    output.append(make("pre", shown, { tabindex: "0" }));
    return;
  }
  const value = JSON.parse(text);
  output.append(make("pre", JSON.stringify(value, shortened, 2).slice(0, MOST_SHOWN), { tabindex: "0" }));
  for (const base64 of picturesIn(value).slice(0, 16)) {
    const image = make("img", "", { class: "answer", alt: "The picture of the answer" });
    image.src = `data:${pictureType(base64)};base64,${base64}`;
    output.append(image);
  }
}

async function showStream(output, response) {
  const log = make("pre", "", { tabindex: "0" });
  output.append(log);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let last = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: {")) last = line.slice(6);
      if (log.textContent.length < MOST_SHOWN) log.textContent += `${shortened("", line)}\n`;
    }
  }
  for (const base64 of last ? picturesIn(JSON.parse(last)) : []) {
    const image = make("img", "", { class: "answer", alt: "The picture of the answer" });
    image.src = `data:${pictureType(base64)};base64,${base64}`;
    output.append(image);
  }
}

async function send(method, path, body, output, signal) {
  const started = performance.now();
  const type = body === null ? {} : { "Content-Type": "application/json" };
  const address = new URL(path.slice(1), root);
  const given = { method: method.toUpperCase(), headers: { ...headers(), ...type }, signal };
  const response = await fetch(address, body === null ? given : { ...given, body });
  const seconds = ((performance.now() - started) / 1000).toFixed(2);
  const line = make("p", `${response.status} ${response.statusText}, ${seconds} s`);
  if (!response.ok) line.className = "bad";
  output.replaceChildren(line);
  const kind = response.headers.get("content-type") ?? "";
  if (kind.includes("event-stream")) await showStream(output, response);
  else if (kind.startsWith("image/")) output.append(make("p", `A picture, ${kind}.`));
  else show(output, await response.text(), kind);
}

// -- operations -----------------------------------------------------------------------------------
function tryForm(method, path, operation, id) {
  const form = make("form", "", { class: "tries" });
  const inputs = new Map();
  for (const parameter of operation.parameters ?? []) {
    const label = make("label", parameter.name, { for: `${id}-${parameter.name}` });
    const input = make("input", "", { id: `${id}-${parameter.name}`, required: "" });
    input.value = resolve(parameter.schema).enum?.[0] ?? "";
    inputs.set(parameter.name, input);
    form.append(label, input);
  }
  const content = operation.requestBody?.content?.["application/json"];
  let area = null;
  if (content) {
    const examples = Object.entries(content.examples ?? {});
    area = make("textarea", "", { id: `${id}-body`, spellcheck: "false" });
    area.value = JSON.stringify(examples[0]?.[1].value ?? {}, null, 2);
    if (examples.length > 1) {
      const pick = make("select", "", { id: `${id}-example` });
      for (const [name] of examples) pick.append(make("option", name));
      pick.addEventListener("change", () => {
        area.value = JSON.stringify(content.examples[pick.value].value, null, 2);
      });
      form.append(make("label", "Example", { for: `${id}-example` }), pick);
    }
    form.append(make("label", "Body", { for: `${id}-body` }), area);
  }
  const go = make("button", "Send", { type: "submit" });
  const stop = make("button", "Stop", { type: "button", disabled: "" });
  const output = make("div", "", { role: "status" });
  form.append(go, stop, output);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const abort = new AbortController();
    stop.onclick = () => abort.abort();
    let address = path;
    for (const [name, input] of inputs) address = address.replace(`{${name}}`, encodeURIComponent(input.value));
    go.disabled = true;
    stop.disabled = false;
    output.replaceChildren(make("p", "Sent; no answer yet."));
    try {
      await send(method, address, area === null ? null : area.value, output, abort.signal);
    } catch (error) {
      const why = abort.signal.aborted ? "Stopped." : `No answer: ${error.message}`;
      output.append(make("p", why, { class: "bad" }));
    }
    go.disabled = false;
    stop.disabled = true;
  });
  return form;
}

function answerTable(operation) {
  const table = make("table");
  table.append(make("caption", "Answers"));
  const body = table.createTBody();
  for (const [status, given] of Object.entries(operation.responses)) {
    const answer = resolve(given);
    const row = body.insertRow();
    row.append(make("th", status, { scope: "row" }));
    row.insertCell().append(answer.description ?? "");
    row.insertCell().append(make("code", Object.keys(answer.content ?? {}).join(", ")));
  }
  return table;
}

function fill(box, method, path, operation) {
  const id = operation.operationId;
  box.append(make("p", operation.description ?? ""));
  const other = spec.paths[path].servers?.slice(1).map((each) => each.url.slice(1) + path) ?? [];
  if (other.length) box.append(make("p", `Also ${other.join(", ")}.`, { class: "note" }));
  for (const [media, content] of Object.entries(operation.requestBody?.content ?? {})) {
    box.append(...bodyTables(content.schema, media));
  }
  box.append(answerTable(operation), make("h3", "Try it"), tryForm(method, path, operation, id));
}

function operationBox(method, path, operation) {
  const box = make("details", "", { class: "operation", id: operation.operationId });
  const title = make("summary");
  title.append(make("b", method.toUpperCase()), make("code", path),
    make("span", operation.summary ?? "", { class: "note" }));
  box.append(title);
  box.addEventListener("toggle", () => {
    if (box.open && box.childElementCount === 1) fill(box, method, path, operation);
  });
  box.dataset.words = `${method} ${path} ${operation.summary} ${operation.operationId}`.toLowerCase();
  return box;
}

function render() {
  document.getElementById("version").textContent = spec.info.version;
  document.getElementById("about").textContent = spec.info.description;
  const main = document.getElementById("operations");
  main.replaceChildren();
  for (const tag of spec.tags) {
    const section = make("section");
    section.append(make("h2", tag.name), make("p", tag.description ?? "", { class: "note" }));
    for (const [path, item] of Object.entries(spec.paths)) {
      for (const method of METHODS.filter((each) => item[each]?.tags?.includes(tag.name))) {
        section.append(operationBox(method, path, item[method]));
      }
    }
    main.append(section);
  }
  const open = document.getElementById(location.hash.slice(1));
  if (open instanceof HTMLDetailsElement) {
    open.open = true;
    open.scrollIntoView();
  }
}

async function load() {
  const state = document.getElementById("state");
  try {
    const response = await fetch(new URL("openapi.json", root), { headers: headers() });
    if (response.status === 401) {
      const given = sessionStorage.getItem(KEY) !== null;
      state.textContent = given ? "The server does not take this key." : "This server needs an API key.";
      document.getElementById("key-value").focus();
      return;
    }
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    spec = await response.json();
    document.getElementById("key").hidden = !spec.components.securitySchemes;
    document.getElementById("proto").hidden = !spec.paths["/proto"]; // where gRPC is off
    render();
    state.textContent = "";
  } catch (error) {
    state.textContent = `The document could not be read: ${error.message}`;
  }
}

document.getElementById("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, document.getElementById("key-value").value);
  load();
});
document.getElementById("find").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const box of document.querySelectorAll(".operation")) {
    box.hidden = !words.every((word) => box.dataset.words.includes(word));
  }
});
load();
