// Small helpers: text always goes in as text, never as markup.

export const byId = (id) => document.getElementById(id);

/** An element with attributes (class, type, …), and children that are elements or text. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function button(text, label, onClick, kind = "") {
  const made = element("button", { type: "button", class: kind }, text);
  if (label !== text) made.setAttribute("aria-label", label);
  made.addEventListener("click", onClick);
  return made;
}

export function size(bytes) {
  const power = bytes < 1024 ? 0 : Math.min(4, Math.floor(Math.log2(bytes) / 10));
  const value = bytes / 1024 ** power;
  return `${value.toFixed(power && value < 100 ? 1 : 0)} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

export const count = (number) => new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(number);
export const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
