// Searching titles, building a history, showing what is recommended next.

import { call } from "./api.js";
import { button, byId, element, milliseconds } from "./dom.js";

const STAGES = ["history", "prompt", "queue", "prefill", "decode"];
const history = []; // what was enjoyed: {item_id, title}, oldest first
let pending = null; // aborts the recommendation that an older history asked for
let searching = null;

export function start() {
  let timer;
  byId("search").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(search, 120);
  });
  byId("clear").addEventListener("click", () => {
    history.length = 0;
    changed();
    byId("search").focus();
  });
  search();
  changed();
}

async function search() {
  searching?.abort();
  searching = new AbortController();
  const query = byId("search").value.trim();
  try {
    const path = `/items?limit=12&query=${encodeURIComponent(query)}`;
    const { items } = await call(path, { signal: searching.signal });
    byId("results").replaceChildren(...items.map((item) =>
      element("li", {}, button(item.title, `Add ${item.title}`, () => add(item)))));
    const found = items.length === 1 ? "One title found" : `${items.length === 12 ? "The best 12" : items.length} titles found`;
    byId("found").textContent = !query ? "The most popular titles:" : items.length ? `${found}:` : "No title contains this.";
  } catch (error) {
    if (error.name !== "AbortError") byId("found").textContent = error.message;
  }
}

function add(item) {
  history.push(item);
  changed();
}

function remove(place) {
  history.splice(place, 1);
  changed();
  (byId("history").querySelectorAll("button")[Math.min(place, history.length - 1)] ?? byId("search")).focus();
}

function changed() {
  byId("history").replaceChildren(...history.map((item, place) =>
    element("li", {}, element("span", {}, item.title), button("×", `Remove ${item.title}`, () => remove(place), "quiet"))));
  byId("empty").hidden = history.length > 0;
  byId("clear").hidden = history.length === 0;
  recommend();
}

/** Asks again with the same history: after a change of it, or of the checkpoint. */
export async function recommend() {
  pending?.abort();
  pending = new AbortController();
  try {
    const body = { history: history.map((item) => item.item_id), k: 10 };
    show(await call("/recommend", { method: "POST", body, signal: pending.signal }));
  } catch (error) {
    if (error.name !== "AbortError") byId("said").textContent = error.message;
  }
}

function show(answer) {
  const share = (item) => Math.exp(item.score);
  const most = Math.max(...answer.items.filter((item) => item.score !== null).map(share));
  byId("items").replaceChildren(...answer.items.map((item) => row(item, share(item), most)));
  byId("said").textContent = answer.strategy === "popular"
    ? "The most popular titles; the model needs a history."
    : "Probability among all titles of the catalogue, and its natural logarithm.";
  byId("model").textContent = answer.model;
  const badges = [[answer.strategy, ""]];
  if (answer.exact !== null) badges.push(answer.exact ? ["exact", "good"] : ["not proven", "bad"]);
  if (answer.degraded) badges.push([answer.degraded.replaceAll("_", " "), "bad"]);
  if (answer.unknown_items.length) badges.push([`${answer.unknown_items.length} unknown here`, "bad"]);
  byId("verdict").replaceChildren(...badges.map(([text, kind]) => element("span", { class: `badge ${kind}` }, text)));
  showTimings(answer.timings_ms);
}

function row(item, share, most) {
  const entry = element("li", {},
    element("span", { class: "rank number" }, String(item.rank)),
    element("span", { class: "title" }, item.title));
  if (item.score === null) return entry;
  const bar = element("i");
  bar.style.width = `${(100 * share) / most}%`;
  entry.append(
    element("span", { class: "number" }, `${(100 * share).toFixed(share < 0.01 ? 2 : 1)} %`),
    element("span", { class: "number score", title: "natural logarithm" }, item.score.toFixed(2)),
    element("span", { class: "bar", "aria-hidden": "true" }, bar));
  return entry;
}

function showTimings(timings) {
  byId("total").textContent = milliseconds(timings.total);
  byId("timings").replaceChildren(...STAGES.map((stage, place) => {
    const part = element("i", { class: `s${place}` });
    part.style.flexGrow = timings[stage];
    return part;
  }));
  byId("stages").replaceChildren(...STAGES.map((stage, place) => element("div", {},
    element("dt", { class: `s${place}` }, element("span", {}, stage)),
    element("dd", {}, milliseconds(timings[stage])))));
}
