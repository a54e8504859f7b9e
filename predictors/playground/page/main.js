/** The start of the page: models, key, panels, history, load. */

import { BASE, callJson, findModels, onMissingKey } from "./api.js";
import { startChat } from "./chat.js";
import { startCode } from "./code.js";
import { byId, show, showError } from "./dom.js";
import { recall, startDraw } from "./draw.js";
import { startHistory } from "./history.js";
import { startLive } from "./live.js";

const AGAIN_MS = 3000;

/** Ask for a key in a dialog. Resolves to null where it was closed without one. */
function askForKey(error) {
  const dialog = byId("key-dialog");
  byId("key-said").textContent = error.message;
  byId("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const given = () => (dialog.returnValue === "use" && byId("key").value.trim()) || null;
    dialog.addEventListener("close", () => resolve(given()), { once: true });
  });
}

let asking = null; // several calls that lack a key share one dialog

async function start() {
  const notice = byId("notice");
  try {
    const { draw, chat } = await findModels();
    const describe = startChat(chat);
    startDraw(draw, describe);
    show(notice, false);
    show(byId("panels"), true);
    byId("panels").dataset.count = String([draw, chat].filter((each) => each.length).length);
    if (draw.length) startHistory(recall);
    startLive();
    callJson("v2")
      .then(({ name, version }) => (byId("version").textContent = `${name} ${version}`))
      .catch(() => {});
    document.documentElement.dataset.ready = "true";
  } catch (error) {
    showError(notice, error);
    if (error.status === 401) return again(notice);
    setTimeout(start, AGAIN_MS); // it may be starting
  }
}

function again(notice) {
  const retry = document.createElement("button");
  retry.textContent = "Give a key";
  retry.addEventListener("click", start, { once: true });
  notice.append(retry);
}

onMissingKey((error) => {
  asking ??= askForKey(error).finally(() => (asking = null));
  return asking;
});
startCode(BASE);
start();
