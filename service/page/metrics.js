// Live curves out of /metrics: no server keeps them, the page remembers the last minutes.

import { binary, draw, linear } from "./chart.js";
import { byId, milliseconds, size } from "./dom.js";

const EVERY_MS = 2000;
const KEPT = 90;
const WINDOW = 5; // samples: quantiles are of the last ten seconds
const QUANTILES = { p50: 0.5, p95: 0.95, p99: 0.99 };
const KINDS = { process: "process", weights: "weights", "KV cache": "kv_cache", trie: "trie", accelerator: "accelerator" };
const latency = { p50: [], p95: [], p99: [] };
const memory = Object.fromEntries(Object.keys(KINDS).map((name) => [name, []]));
const seen = []; // cumulative buckets, newest last

export function start() {
  poll();
  setInterval(poll, EVERY_MS);
}

async function poll() {
  if (document.hidden) return;
  const ready = fetch("/readyz").then(async (answer) => (answer.ok ? "ready" : (await answer.json()).detail));
  byId("ready").textContent = await ready.catch(() => "does not answer");
  const text = await fetch("/metrics").then((answer) => answer.text()).catch(() => null);
  if (text === null) return;
  const samples = parse(text);
  seen.push(buckets(samples));
  if (seen.length > WINDOW + 1) seen.shift();
  for (const [name, q] of Object.entries(QUANTILES)) keep(latency[name], quantile(seen[0], seen.at(-1), q));
  for (const [name, kind] of Object.entries(KINDS)) {
    const found = samples.find((s) => s.name === "espalier_memory_bytes" && s.labels.kind === kind);
    keep(memory[name], found?.value || null); // nothing of 0 bytes has a place on a logarithmic scale
  }
  const seconds = Math.round(((latency.p50.length - 1) * EVERY_MS) / 1000);
  draw(byId("latency"), latency, milliseconds, seconds, linear);
  draw(byId("memory"), memory, size, seconds, binary);
}

function keep(line, value) {
  line.push(value);
  if (line.length > KEPT) line.shift();
}

/** Samples of Prometheus' text format. */
function parse(text) {
  return text.split("\n").flatMap((line) => {
    const parts = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!parts) return [];
    const labels = Object.fromEntries([...(parts[2] ?? "").matchAll(/(\w+)="((?:\\.|[^"\\])*)"/g)].map((m) => [m[1], m[2]]));
    return [{ name: parts[1], labels, value: Number(parts[3]) }];
  });
}

function buckets(samples) {
  const found = new Map();
  for (const { name, labels, value } of samples) {
    if (name !== "espalier_request_duration_seconds_bucket" || labels.route !== "/recommend") continue;
    const edge = labels.le === "+Inf" ? Infinity : Number(labels.le);
    found.set(edge, (found.get(edge) ?? 0) + value);
  }
  return found;
}

/** As Prometheus' histogram_quantile: linear within a bucket; null when nothing happened. Milliseconds. */
function quantile(before, after, q) {
  const edges = [...after.keys()].sort((a, b) => a - b);
  const grown = edges.map((edge) => after.get(edge) - (before.get(edge) ?? 0));
  const total = grown.at(-1) ?? 0;
  if (total <= 0) return null;
  const index = grown.findIndex((number) => number >= q * total);
  const [low, under] = index ? [edges[index - 1], grown[index - 1]] : [0, 0];
  if (edges[index] === Infinity) return 1000 * low;
  return 1000 * (low + ((edges[index] - low) * (q * total - under)) / (grown[index] - under));
}
