/** Earlier pictures with their requests, kept in this browser and bounded. */

import { byId, element, show } from "./dom.js";

const KEY = "predictors.history";
const MOST = 24;
const SIDE = 96; // pixels of a kept preview
const MOST_TEXT = 2000; // characters of a prompt
/** @type {(body: Record<string, any>) => void} */
let recall = () => {};

/** `use(body)` fills the form with an earlier request. */
export function startHistory(use) {
  recall = use;
  byId("history-clear").addEventListener("click", () => {
    store([]);
    byId("prompt").focus();
  });
  draw();
}

/** Keep a picture's preview, request and time. Without storage nothing is kept. */
export async function remember({ blob, body, isEdit, computeMs }) {
  const kept = Object.fromEntries(Object.entries(body).map(
    ([name, value]) => [name, typeof value === "string" ? value.slice(0, MOST_TEXT) : value],
  ));
  const entry = { body: kept, isEdit, computeMs, at: Date.now(), preview: await previewOf(blob) };
  store([entry, ...load()].slice(0, MOST));
}

async function previewOf(blob) {
  const bitmap = await createImageBitmap(blob);
  const ratio = SIDE / Math.max(bitmap.width, bitmap.height);
  const canvas = Object.assign(document.createElement("canvas"), {
    width: Math.max(1, Math.round(bitmap.width * ratio)),
    height: Math.max(1, Math.round(bitmap.height * ratio)),
  });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL("image/webp", 0.8);
}

function load() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(found) ? found.filter((each) => each?.body?.prompt !== undefined) : [];
  } catch {
    return []; // no storage here, or another page's
  }
}

function store(entries) {
  for (let kept = entries; ; kept = kept.slice(0, -1)) {
    try {
      localStorage.setItem(KEY, JSON.stringify(kept));
      break;
    } catch {
      if (!kept.length) break; // full, or no storage
    }
  }
  draw();
}

function draw() {
  const entries = load();
  show(byId("history"), entries.length > 0);
  byId("drawn").replaceChildren(...entries.map(({ body, isEdit, computeMs, preview }) => {
    const use = element("button", { type: "button" });
    if (String(preview).startsWith("data:image/")) {
      use.append(element("img", { src: preview, alt: "" }));
    }
    use.append(
      element("span", { className: "prompt" }, String(body.prompt)),
      element("span", { className: "facts" },
        `${isEdit ? "edit · " : ""}seed ${body.seed} · ${computeMs} ms`),
    );
    use.addEventListener("click", () => recall(body));
    return element("li", {}, use);
  }));
}
