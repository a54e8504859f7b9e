/** The strip with the load of the server, from `/metrics` if this port has it. */

import { call } from "./api.js";
import { byId, element, show } from "./dom.js";

const EVERY_MS = 3000;
const LINE = /^predictors_(\w+)\{([^}]*)\} ([-+.\deE]+|NaN)$/;
const WANTED = new Set([
  "queue_depth", "requests_running", "step_duration_seconds_sum", "step_duration_seconds_count",
  "generation_tokens_total",
]);

/** Follow the load while the page is seen, until the server has no metrics here. */
export function startLive() {
  let before = null;
  let timer = 0;
  const look = async () => {
    clearTimeout(timer);
    if (document.hidden) return;
    try {
      const now = read(await (await call("metrics")).text());
      if (before) draw(now, before);
      before = now;
    } catch (error) {
      show(byId("live"), false);
      if (error.status) return; // on another port, or behind another key
    }
    timer = setTimeout(look, EVERY_MS);
  };
  document.addEventListener("visibilitychange", look);
  look();
}

/** Sums over all models, by the series' names. */
function read(text) {
  const found = { at: performance.now() };
  for (const line of text.split("\n")) {
    const [, name, labels, value] = LINE.exec(line) ?? [];
    if (!WANTED.has(name)) continue;
    found[name] = (found[name] ?? 0) + Number(value);
    if (name.startsWith("step_")) {
      const model = /model="([^"]*)"/.exec(labels)?.[1] ?? "";
      ((found.steps ??= {})[model] ??= {})[name] = Number(value);
    }
  }
  return found;
}

function draw(now, before) {
  const seconds = (now.at - before.at) / 1000;
  const rate = (now.generation_tokens_total - before.generation_tokens_total) / seconds;
  const cells = [["waiting", now.queue_depth ?? 0], ["running", now.requests_running ?? 0]];
  for (const [model, own] of Object.entries(now.steps ?? {})) {
    const old = before.steps?.[model] ?? {};
    const count = own.step_duration_seconds_count - (old.step_duration_seconds_count ?? 0);
    const spent = own.step_duration_seconds_sum - (old.step_duration_seconds_sum ?? 0);
    cells.push([`${model} step`, count > 0 ? `${((1000 * spent) / count).toFixed(1)} ms` : "idle"]);
  }
  if (now.generation_tokens_total !== undefined) {
    cells.push(["tokens/s", Number.isFinite(rate) ? Math.round(rate) : 0]);
  }
  byId("live").replaceChildren(...cells.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, String(value)))));
  show(byId("live"), true);
}
