/** The panel that draws: from words, or a picture with a mask, step by step. */

import { call, events, fileOf, postJson } from "./api.js";
import {
  adapterFields, byId, chosenAdapters, fillSelect, hideError, numberIn, show, showError,
  takePictures,
} from "./dom.js";
import { Mask } from "./mask.js";
import { remember } from "./history.js";
import { showCode } from "./code.js";

const PARTIALS = 3;
const NUMBERS = ["num_inference_steps", "guidance_scale", "true_cfg_scale"];
const mask = new Mask(byId("brush"));
let models = [];
let model = null;
let running = null; // AbortController of the request
let drawn = null; // {blob, seed, request}
let source = null; // picture that is edited, or null
let shownUrl = "";

/** Show the panel for these models. `describe(blob)` asks the chat about a picture; null: none. */
export function startDraw(found, describe) {
  models = found;
  show(byId("draw"), models.length > 0);
  if (!models.length) return;
  const select = byId("draw-model");
  fillSelect(select, models.map((each) => each.name), models[0].name);
  show(select, models.length > 1);
  select.addEventListener("change", () => choose(select.value));
  choose(models[0].name);
  show(byId("describe"), describe !== null);
  byId("draw-form").addEventListener("submit", submit);
  byId("draw-cancel").addEventListener("click", () => running?.abort());
  byId("describe").addEventListener("click", () => drawn && describe(drawn.blob));
  byId("edit-drawn").addEventListener("click", () => drawn && edit(drawn.blob));
  byId("edit-end").addEventListener("click", endEdit);
  byId("mask-clear").addEventListener("click", () => mask.clear());
  byId("brush-size").addEventListener("input", (event) => mask.setSize(event.target.value));
  byId("again").addEventListener("click", () => (byId("seed").value = drawn?.seed ?? ""));
  byId("draw-code").addEventListener("click", () => drawn && showCode(drawn.request));
  byId("open").addEventListener("click", () => byId("open-file").click());
  byId("open-file").addEventListener("change", ({ target }) => {
    if (target.files[0]) edit(target.files[0]);
    target.value = "";
  });
  takePictures(byId("draw"), edit);
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
  });
}

function choose(name) {
  model = models.find((each) => each.name === name);
  const { parameters, limits } = model;
  byId("sizes").replaceChildren(...(limits.sizes ?? []).map((size) => new Option(size)));
  byId("size").value = limits.default_size ?? "";
  for (const id of [...NUMBERS, "strength"]) {
    const { minimum, maximum, default: usual } = parameters[id] ?? {};
    const field = byId(id);
    Object.assign(field, { min: minimum ?? "", max: maximum ?? "" });
    if (id !== "strength") field.value = usual ?? "";
  }
  fillSelect(byId("tier"), limits.tiers ?? [], limits.default_tier);
  const { enum: formats = ["png"], default: format } = parameters.output_format ?? {};
  fillSelect(byId("output_format"), formats, format);
  adapterFields(byId("draw-adapters"), limits.loras ?? []);
  const can = limits.edits ?? [];
  show(byId("open"), can.some((each) => each !== "generate"));
  show(byId("edit-drawn"), can.some((each) => each !== "generate"));
  show(byId("strength-field"), "strength" in parameters && !can.includes("reference"));
  if (source) endEdit();
}

const canMask = () => (model.limits.edits ?? []).includes("inpaint");

// -- edits ----------------------------------------------------------------------------------------
/** Begin an edit of a picture, drawn here or brought. */
export async function edit(blob) {
  if (running || !(model.limits.edits ?? []).some((each) => each !== "generate")) return;
  hideError(byId("draw-error"));
  try {
    const bitmap = await createImageBitmap(blob);
    source = { blob, width: bitmap.width, height: bitmap.height };
    bitmap.close();
  } catch {
    showError(byId("draw-error"), new Error("This file is no picture that the browser can show."));
    return;
  }
  showPicture(blob, "The picture that is edited");
  mask.start(source.width, source.height);
  show(byId("brush"), canMask());
  byId("edit-note").textContent = canMask()
    ? "Paint over what should be drawn again. Nothing painted: all of it."
    : "The model reads this picture beside the prompt.";
  for (const id of ["brush-size", "mask-clear"]) show(byId(id).closest("label") ?? byId(id), canMask());
  show(byId("edit-tools"), true);
  show(byId("stage-tools"), false);
  byId("draw-go").textContent = "Draw again";
  byId("stage").dataset.state = "edit";
  byId("facts").textContent = "";
  if (canMask()) byId("brush").focus();
}

function endEdit() {
  source = null;
  show(byId("brush"), false);
  show(byId("edit-tools"), false);
  byId("draw-go").textContent = "Draw";
  if (drawn) {
    showPicture(drawn.blob, drawn.request.body.prompt);
    byId("facts").textContent = drawn.facts;
  } else {
    byId("facts").textContent = "";
    show(byId("picture"), false);
    show(byId("stage-hint"), true);
  }
  byId("stage").dataset.state = drawn ? "done" : "empty";
  show(byId("stage-tools"), drawn !== null);
}

// -- requests -------------------------------------------------------------------------------------
function fields() {
  const body = { model: model.name, prompt: byId("prompt").value };
  const size = byId("size").value.trim();
  if (size) body.size = size;
  for (const id of [...NUMBERS, "seed"]) {
    const number = numberIn(id);
    if (number !== undefined) body[id] = number;
  }
  for (const id of ["tier", "output_format"]) if (byId(id).value) body[id] = byId(id).value;
  const negative = byId("negative_prompt").value;
  if (negative.trim()) body.negative_prompt = negative;
  const loras = chosenAdapters(byId("draw-adapters"));
  if (loras) body.loras = loras;
  return body;
}

async function makeRequest() {
  const body = fields();
  if (!source) return { path: "v1/images/generations", body, files: {} };
  const files = { image: source.blob };
  delete body.size; // the picture's own
  if (canMask() && !mask.isEmpty) files.mask = await mask.toBlob();
  if (!byId("strength-field").hidden) body.strength = numberIn("strength");
  return { path: "v1/images/edits", body, files };
}

function send(request, signal) {
  const body = { ...request.body, stream: true, partial_images: PARTIALS, progress: true };
  if (!request.files.image) return postJson(request.path, body, signal);
  const form = new FormData();
  for (const [name, value] of Object.entries(body)) {
    form.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  for (const [name, blob] of Object.entries(request.files)) form.append(name, blob, `${name}.png`);
  return call(request.path, { method: "POST", body: form, signal });
}

async function submit(event) {
  event.preventDefault();
  if (running) return;
  running = new AbortController();
  hideError(byId("draw-error"));
  setBusy(true);
  const started = performance.now();
  try {
    const request = await makeRequest();
    const response = await send(request, running.signal);
    const answer = await follow(response, request.body.prompt);
    finish(request, answer, performance.now() - started);
  } catch (error) {
    restore();
    if (error.name === "AbortError") byId("facts").textContent = "Cancelled.";
    else showError(byId("draw-error"), error);
  } finally {
    running = null;
    setBusy(false);
  }
}

/** Show each event of a stream of pictures; the last one is returned. */
async function follow(response, prompt) {
  const bar = byId("steps");
  for await (const event of events(response)) {
    if (event.type.endsWith(".progress")) {
      Object.assign(bar, { value: event.step, max: event.steps });
      byId("facts").textContent = `Step ${event.step} of ${event.steps}`;
    } else if (event.type.endsWith(".partial_image")) {
      showPicture(fileOf(event.b64_json, event.output_format), `${prompt} (still being drawn)`);
      byId("picture").dataset.partial = event.partial_image_index;
      byId("stage").dataset.state = "partial";
    } else if (event.type.endsWith(".completed")) {
      return event;
    }
  }
  throw new Error("The stream ended before the picture was complete.");
}

function finish(request, answer, totalMs) {
  const blob = fileOf(answer.b64_json, answer.output_format);
  const { queue_ms: queueMs, compute_ms: computeMs } = answer.timings;
  const calls = answer.num_model_steps < answer.num_inference_steps
    ? ` (${answer.num_model_steps} calls)` : "";
  const facts = [
    `Seed ${answer.seed}`, answer.size.replace("x", " × "),
    `${answer.num_inference_steps} steps${calls}`, `${answer.tier} ${answer.precision}`,
    `${computeMs} ms drawn`, `${queueMs} ms waited`, `${Math.round(totalMs)} ms in all`,
  ].join(" · ");
  drawn = { blob, seed: answer.seed, request: seeded(request, answer.seed), facts };
  source = null;
  show(byId("brush"), false);
  show(byId("edit-tools"), false);
  byId("draw-go").textContent = "Draw";
  showPicture(blob, request.body.prompt);
  delete byId("picture").dataset.partial;
  byId("stage").dataset.state = "done";
  byId("facts").textContent = facts;
  show(byId("stage-tools"), true);
  const save = byId("save");
  save.href = shownUrl;
  save.download = `picture-${answer.seed}.${answer.output_format}`;
  remember({ blob, body: drawn.request.body, isEdit: "image" in request.files, computeMs });
}

const seeded = (request, seed) => ({ ...request, body: { ...request.body, seed } });

function restore() {
  if (source) {
    showPicture(source.blob, "The picture that is edited");
    show(byId("brush"), canMask());
    byId("stage").dataset.state = "edit";
    byId("facts").textContent = "";
  } else {
    endEdit();
  }
  delete byId("picture").dataset.partial;
}

function setBusy(isBusy) {
  const bar = byId("steps");
  bar.removeAttribute("value"); // until the first step
  show(bar, isBusy);
  show(byId("draw-cancel"), isBusy);
  show(byId("draw-go"), !isBusy);
  byId("draw").setAttribute("aria-busy", String(isBusy));
  if (isBusy) {
    if (!source) show(byId("stage-tools"), false);
    show(byId("brush"), false);
    byId("facts").textContent = "Waiting for a place";
    byId("stage").dataset.state = "waiting";
    byId("draw-cancel").focus();
  } else if (document.activeElement === document.body) {
    byId("draw-go").focus();
  }
}

function showPicture(blob, description) {
  const picture = byId("picture");
  const old = shownUrl;
  shownUrl = URL.createObjectURL(blob);
  picture.src = shownUrl;
  picture.alt = description;
  show(picture, true);
  show(byId("stage-hint"), false);
  if (old) URL.revokeObjectURL(old);
}

/** Fill the form with the fields of an earlier request. */
export function recall(body) {
  if (source) endEdit();
  if (models.some((each) => each.name === body.model)) {
    byId("draw-model").value = body.model;
    choose(body.model);
  }
  const texts = ["prompt", "negative_prompt", "size", "seed", "tier", "output_format", ...NUMBERS];
  for (const id of texts) if (id in body) byId(id).value = body[id];
  if (!("negative_prompt" in body)) byId("negative_prompt").value = "";
  for (const row of byId("draw-adapters").querySelectorAll("div")) {
    const [use, scale] = row.querySelectorAll("input");
    const asked = (body.loras ?? []).find((each) => each.name === use.value);
    use.checked = asked !== undefined;
    scale.value = asked?.scale ?? 1;
  }
  byId("prompt").focus();
}
