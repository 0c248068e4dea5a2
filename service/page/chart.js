// Curves as SVG: lines that differ by dashes as well as colour, a legend that tells the newest values.

import { element } from "./dom.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM] = [520, 190, 58, 22];
const shape = (tag, attributes, ...children) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};

/** Draws `lines` ({name: [number or null, …]}, oldest first) into `place`; `say` words a value. */
export function draw(place, lines, say, seconds) {
  const names = Object.keys(lines);
  const most = nice(Math.max(0, ...names.flatMap((name) => lines[name].filter((value) => value !== null))));
  const y = (value) => 8 + (HEIGHT - BOTTOM - 8) * (1 - value / most);
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  for (const part of [0, 0.5, 1]) {
    svg.append(
      shape("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: y(most * part), y2: y(most * part) }),
      shape("text", { x: LEFT - 8, y: y(most * part) + 4, "text-anchor": "end" }, say(most * part)));
  }
  svg.append(shape("text", { x: LEFT, y: HEIGHT - 4 }, `${seconds} s ago`),
    shape("text", { x: WIDTH, y: HEIGHT - 4, "text-anchor": "end" }, "now"));
  const newest = (name) => lines[name].findLast((value) => value !== null) ?? null;
  names.forEach((name, number) => svg.append(shape("g", { class: `s${number}` }, ...pieces(lines[name], y))));
  const told = names.map((name) => `${name} ${newest(name) === null ? "not measured" : say(newest(name))}`);
  svg.setAttribute("aria-label", `Curves, now: ${told.join(", ")}.`);
  const legend = element("ul", { class: "legend", "aria-hidden": "true" }, ...names.map((name, number) =>
    element("li", { class: `s${number}` },
      shape("svg", { viewBox: "0 0 26 8" }, shape("polyline", { points: "0,4 26,4" })),
      element("b", {}, name), element("span", {}, newest(name) === null ? "–" : say(newest(name))))));
  place.replaceChildren(svg, legend);
}

/** A line's unbroken pieces: where nothing was measured there is nothing to draw. */
function pieces(values, y) {
  const x = (index) => LEFT + ((WIDTH - LEFT) * index) / Math.max(1, values.length - 1);
  const runs = [];
  values.forEach((value, index) => {
    if (value === null) return;
    if (index === 0 || values[index - 1] === null) runs.push([]);
    runs.at(-1).push(`${x(index).toFixed(1)},${y(value).toFixed(1)}`);
  });
  return runs.map((run) => shape("polyline", { points: (run.length === 1 ? [run[0], run[0]] : run).join(" ") }));
}

/** The next of 1, 2, 5, 10, … times a power of ten. */
function nice(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((step) => step * power >= value);
}
