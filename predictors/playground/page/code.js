/** A request as a program that can be pasted: curl, Python and JavaScript. */

import { hasKey } from "./api.js";
import { byId, element } from "./dom.js";
import { writers } from "./writers.js";

let base = null;
let texts = {};

/** `url` is the address of the server, with its path prefix. */
export function startCode(url) {
  base = url;
  const buttons = [...byId("code-dialog").querySelectorAll("[data-language]")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const each of buttons) each.setAttribute("aria-pressed", String(each === button));
      byId("code").textContent = texts[button.dataset.language];
      byId("code-said").textContent = "";
    });
  }
  byId("code-close").addEventListener("click", () => byId("code-dialog").close());
  byId("code-copy").addEventListener("click", copy);
}

/** `{path, body, files}` of a request that this page has sent. */
export function showCode(request) {
  const { plain, files } = withoutPictures(request);
  texts = Object.fromEntries(Object.entries(writers).map(
    ([language, write]) => [language, write({ ...plain, base: base.href, hasKey: hasKey() })],
  ));
  byId("code-files").replaceChildren(...[...files].map(([name, blob]) =>
    element("a", { href: URL.createObjectURL(blob), download: name }, `Save ${name}`)));
  byId("code-dialog").querySelector("[data-language]").click();
  byId("code-dialog").showModal();
}

/** The request with names of files in place of its pictures, and these files. */
function withoutPictures({ path, body, files }) {
  const found = new Map();
  const forms = {};
  for (const [field, blob] of Object.entries(files)) {
    const name = `${field}.${blob.type.split("/")[1].split("+")[0]}`;
    found.set(name, blob);
    forms[field] = name;
  }
  const copy = structuredClone(body);
  for (const message of copy.messages ?? []) {
    if (typeof message.content === "string") continue;
    for (const part of message.content.filter((each) => each.type === "image_url")) {
      const [, type, base64] = /^data:([^;]+);base64,(.*)$/s.exec(part.image_url.url);
      const name = `picture-${found.size + 1}.${type.split("/")[1].split("+")[0]}`;
      const bytes = Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
      found.set(name, new Blob([bytes], { type }));
      part.image_url.url = { file: name, type };
    }
  }
  return { plain: { path, body: copy, forms }, files: found };
}

async function copy() {
  const text = byId("code").textContent;
  try {
    await navigator.clipboard.writeText(text);
    byId("code-said").textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren(byId("code")); // a page without TLS has no clipboard
    byId("code-said").textContent = "Selected: press Ctrl+C.";
  }
}
