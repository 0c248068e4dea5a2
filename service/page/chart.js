// Curves as SVG: lines that differ by dashes as well as colour, a legend that tells the newest values.

import { element } from "./dom.js";

const [HEIGHT, LEFT, BOTTOM, TOP] = [190, 64, 22, 8];
const shape = (tag, attributes, ...children) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};

/**
 * Draws `lines` ({name: [number or null, …]}, oldest first) into `place`; `say` words a value, `scale` is
 * `linear` or `binary`. It is drawn as wide as the place is, so that letters keep their size.
 */
export function draw(place, lines, say, seconds, scale) {
  const names = Object.keys(lines);
  const width = Math.max(240, place.clientWidth);
  const { ticks, height } = scale(names.flatMap((name) => lines[name].filter((value) => value !== null)));
  const y = (value) => TOP + (HEIGHT - BOTTOM - TOP) * (1 - height(value));
  const svg = shape("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
  for (const tick of ticks) {
    svg.append(
      shape("line", { class: "grid", x1: LEFT, x2: width, y1: y(tick), y2: y(tick) }),
      shape("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, say(tick)));
  }
  svg.append(shape("text", { x: LEFT, y: HEIGHT - 4 }, `${seconds} s ago`),
    shape("text", { x: width, y: HEIGHT - 4, "text-anchor": "end" }, "now"));
  const newest = (name) => lines[name].findLast((value) => value !== null) ?? null;
  names.forEach((name, number) => svg.append(shape("g", { class: `s${number}` }, ...pieces(lines[name], y, width))));
  const told = names.map((name) => `${name} ${newest(name) === null ? "not measured" : say(newest(name))}`);
  svg.setAttribute("aria-label", `Curves, now: ${told.join(", ")}.`);
  const legend = element("ul", { class: "legend", "aria-hidden": "true" }, ...names.map((name, number) =>
    element("li", { class: `s${number}` },
      shape("svg", { viewBox: "0 0 26 8" }, shape("polyline", { points: "0,4 26,4" })),
      element("b", {}, name), element("span", {}, newest(name) === null ? "–" : say(newest(name))))));
  place.replaceChildren(svg, legend);
}

/** A line's unbroken pieces: where nothing was measured there is nothing to draw. */
function pieces(values, y, width) {
  const x = (index) => LEFT + ((width - LEFT) * index) / Math.max(1, values.length - 1);
  const runs = [];
  values.forEach((value, index) => {
    if (value === null) return;
    if (index === 0 || values[index - 1] === null) runs.push([]);
    runs.at(-1).push(`${x(index).toFixed(1)},${y(value).toFixed(1)}`);
  });
  return runs.map((run) => shape("polyline", { points: (run.length === 1 ? [run[0], run[0]] : run).join(" ") }));
}

/** From 0 to the next of 1, 2, 5, 10, … times a power of ten. */
export function linear(values) {
  const most = Math.max(0, ...values) || 1;
  const power = 10 ** Math.floor(Math.log10(most));
  const top = power * [1, 2, 5, 10].find((step) => step * power >= most);
  return { ticks: [0, top / 2, top], height: (value) => value / top };
}

/** Logarithmic, between powers of 1024: what needs kilobytes shows beside what needs gigabytes. */
export function binary(values) {
  const powers = values.filter((value) => value > 0).map((value) => Math.log2(value) / 10);
  const low = Math.floor(Math.min(1, ...powers));
  const high = Math.max(low + 1, Math.ceil(Math.max(...powers)));
  const ticks = Array.from({ length: high - low + 1 }, (_, step) => 1024 ** (low + step));
  return { ticks, height: (value) => (Math.log2(value) / 10 - low) / (high - low) };
}
