// What can be served, what is, and the exchange of one for another.

import { call } from "./api.js";
import { button, byId, count, element, size } from "./dom.js";
import { recommend } from "./recommend.js";

const EVERY_MS = 5000;
const WATCH_MS = 300;
const ENDS = new Set(["done", "partial", "failed"]);
let generation = 0;
let busy = false;

export function start() {
  byId("rollback").addEventListener("click", () => exchange("/checkpoints/rollback", "Rolling back"));
  refresh();
  setInterval(() => { if (!document.hidden && !busy) refresh(); }, EVERY_MS);
}

async function refresh() {
  let state;
  try {
    state = await call("/checkpoints");
  } catch (error) {
    byId("operation").textContent = error.message;
    return;
  }
  generation = state.generation;
  const focused = document.activeElement?.dataset?.name;
  byId("checkpoints").replaceChildren(...state.checkpoints.map(row));
  if (focused) byId("checkpoints").querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus();
  byId("rollback").hidden = !state.can_roll_back_to;
  if (state.can_roll_back_to) byId("rollback").textContent = `Roll back to ${state.can_roll_back_to.name}`;
  byId("replicas").replaceChildren(...state.replicas.map((replica) => element("li", {},
    `Replica ${replica.replica}: ${replica.serving ? replica.serving.name : "nothing"}${replica.reason ? ` (${replica.reason})` : ""}`)));
}

function row(checkpoint) {
  const { name, model, state, parameters, quality } = checkpoint;
  const action = button("Activate", `Activate ${name}`, () =>
    exchange(`/checkpoints/${encodeURIComponent(name)}/activate`, `Activating ${name}`));
  action.dataset.name = name;
  action.disabled = busy;
  const share = quality && quality.teacher_ndcg10 ? `${(100 * quality.ndcg10 / quality.teacher_ndcg10).toFixed(1)} %` : "–";
  return element("tr", {},
    element("th", { scope: "row" }, element("span", { title: model }, name), " ", element("code", {}, model.split("@")[1])),
    element("td", {}, element("span", { class: `badge ${state === "serving" ? "good" : ""}` }, state)),
    element("td", { class: "number" }, count(parameters.total)),
    element("td", { class: "number" }, size(checkpoint.size_bytes)),
    element("td", { class: "number" }, quality ? quality.ndcg10.toFixed(4) : "–"),
    element("td", { class: "number" }, share),
    element("td", {}, state === "serving" ? "" : action));
}

async function exchange(path, doing) {
  if (busy) return;
  busy = true;
  const say = (text) => { byId("operation").textContent = text; };
  say(`${doing} …`);
  try {
    const headers = { "If-Match": String(generation) };
    let operation = await call(path, { method: "POST", headers, key: "admin" });
    while (!ENDS.has(operation.step)) {
      say(`${doing}: ${operation.step} …`);
      await new Promise((resolve) => setTimeout(resolve, WATCH_MS));
      operation = await call(`/operations/${operation.operation_id}`, { key: "admin" });
    }
    const missing = (operation.stragglers ?? []).map((one) => `${one.replica}: ${one.reason}`).join("; ");
    say(`${doing}: ${operation.step}${operation.reason ? ` (${operation.reason})` : ""}${missing ? ` (${missing})` : ""}.`);
  } catch (error) {
    say(error.message);
  }
  busy = false;
  await refresh();
  recommend();
}
