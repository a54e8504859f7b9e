/** Calls of this server. Addresses are relative to the page, so a path prefix in front is kept. */

export const BASE = new URL("../", import.meta.url);
const KEY = "predictors.key";
let askForKey = null;

/** A refusal or a failure, in the server's words. */
export class ServerError extends Error {
  constructor(body, status = 0, headers = new Headers()) {
    const said = body?.error;
    super(
      (typeof said === "string" ? said : said?.message) || `The server answered HTTP ${status}.`,
    );
    this.status = status;
    this.param = said?.param ?? "";
    this.code = said?.code ?? "";
    this.retryAfter = headers.get("retry-after") ?? "";
    this.requestId = headers.get("x-request-id") ?? "";
  }
}

/** `ask(error)` is called on a 401 and resolves to a key, or to null. */
export function onMissingKey(ask) {
  askForKey = ask;
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** Fetch a path below the base. A 401 asks for a key once and tries again. Throws `ServerError`. */
export async function call(path, options = {}) {
  const url = new URL(path, BASE);
  for (let attempt = 0; ; attempt += 1) {
    const headers = new Headers(options.headers);
    const key = sessionStorage.getItem(KEY);
    if (key) headers.set("authorization", `Bearer ${key}`);
    const response = await fetch(url, { ...options, headers, credentials: "omit" }).catch(explain);
    if (response.ok) return response;
    const error = await readError(response);
    if (response.status !== 401 || attempt > 0 || !askForKey) throw error;
    const given = await askForKey(error);
    if (!given) throw error;
    sessionStorage.setItem(KEY, given);
  }
}

/** @returns {never} */
function explain(error) {
  if (error.name === "AbortError") throw error;
  throw new Error("The server can't be reached. Is it still running?", { cause: error });
}

async function readError(response) {
  const text = await response.text();
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {
    body = text ? { error: text.slice(0, 500) } : null;
  }
  return new ServerError(body, response.status, response.headers);
}

export const callJson = async (path, options) => (await call(path, options)).json();

export const postJson = (path, body, signal) =>
  call(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });

/** The JSON of each server-sent event of a response, up to its end or `[DONE]`. Throws
 * `ServerError` for an event with an error. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let parts = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      if (!value.includes("\n")) {
        parts.push(value); // a picture comes in many pieces: join them once
        continue;
      }
      const blocks = (parts.join("") + value).split("\n\n");
      parts = [blocks.pop()];
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data:"));
        if (!data.length) continue; // a comment
        const text = data.map((line) => line.slice(5).trimStart()).join("\n");
        if (text === "[DONE]") return;
        const event = JSON.parse(text);
        if (event.error) throw new ServerError(event, 0, response.headers);
        yield event;
      }
    }
  } finally {
    await reader.cancel().catch(() => {}); // closes the stream: the server frees the slot
  }
}

/** Models by what they can do, from their V2 metadata. Those that come and go are left out. */
export async function findModels() {
  const { data } = await callJson("v1/models");
  const names = data.filter((card) => !card.parent).map((card) => card.id).slice(0, 32);
  const path = (name) => `v2/models/${name.split("/").map(encodeURIComponent).join("/")}`;
  const found = await Promise.all(
    names.map((name) => callJson(path(name)).catch((error) => ({ name, error }))),
  );
  const named = (list, name) => (list ?? []).some((each) => each.name === name);
  const models = found
    .filter((model) => !model.error)
    .map((model) => ({ ...model, parameters: model.parameters ?? {}, limits: model.limits ?? {} }));
  if (!models.length && found.length) throw found[0].error;
  return {
    draw: models.filter((model) => named(model.outputs, "image")),
    chat: models.filter((model) => named(model.outputs, "text")),
  };
}

/** A data URL of a file. */
export const dataUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The picture can't be read."));
    reader.readAsDataURL(blob);
  });

/** The bytes of a base64 text as a file. */
export function fileOf(base64, format) {
  const bytes = Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
  return new Blob([bytes], { type: `image/${format}` });
}
