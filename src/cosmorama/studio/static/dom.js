// Small helpers for building elements. Text is always set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `h("p.hint", {id: "x", onclick: f}, "text", child)`. Null and false children are left out. */
export function h(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "class") element.classList.add(...value.split(" ").filter(Boolean));
    else if (key in element && !key.startsWith("aria") && key !== "list" && key !== "form") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const PATHS = {
  play: "M7 4.5v15l12-7.5z",
  pause: "M7 5h3.5v14H7zM13.5 5H17v14h-3.5z",
  back: "M6 5h2v14H6zM19 5v14L9 12z",
  next: "M16 5h2v14h-2zM5 5v14l10-7z",
  close: "M6 6l12 12M18 6L6 18",
  star: "M12 3.6l2.6 5.3 5.8.8-4.2 4.1 1 5.8-5.2-2.8-5.2 2.8 1-5.8L3.6 9.7l5.8-.8z",
  trash: "M5 7h14M10 7V4.5h4V7M7 7l.8 12.5h8.4L17 7M10.2 10.5v6M13.8 10.5v6",
  download: "M12 4v11M7.5 11L12 15.5 16.5 11M5 19.5h14",
  link: "M10 14a4 4 0 0 0 6 .4l3-3a4 4 0 0 0-5.7-5.7L12 7M14 10a4 4 0 0 0-6-.4l-3 3a4 4 0 0 0 5.7 5.7L12 17",
  dice: "M5 5h14v14H5zM9 9h.01M15 9h.01M12 12h.01M9 15h.01M15 15h.01",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 3v2M12 19v2M3 12h2M19 12h2M5.6 5.6L7 7M17 17l1.4 1.4M18.4 5.6L17 7M7 17l-1.4 1.4",
  moon: "M19 14.5A7.5 7.5 0 0 1 9.5 5 7.5 7.5 0 1 0 19 14.5z",
  auto: "M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16zM12 4v16",
  loop: "M5 12a6 6 0 0 1 6-6h6M14 3l3 3-3 3M19 12a6 6 0 0 1-6 6H7M10 21l-3-3 3-3",
  camera: "M4 8h3.5L9 5.5h6L16.5 8H20v11H4zM12 10a3.2 3.2 0 1 0 0 6.4 3.2 3.2 0 0 0 0-6.4z",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9h.01",
  again: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4",
  compare: "M12 3v18M4 6h5v12H4zM15 6h5v12h-5z",
  copy: "M8 8h12v12H8zM16 8V4H4v12h4",
  forward: "M4 12h13M12 6.5L17.5 12 12 17.5M20 5v14",
  flag: "M6 21V4h11l-2 4 2 4H6",
  search: "M10.5 4.5a6 6 0 1 0 0 12 6 6 0 0 0 0-12zM15 15l5 5",
  reset: "M5 12a7 7 0 1 0 2.2-5.1M5 4v4h4",
  tune: "M4 8h9M17 8h3M15 5.5v5M4 16h3M11 16h9M9 13.5v5",
};
const SOLID = new Set(["play", "pause", "back", "next"]);

/** A drawn symbol, hidden from screen readers: the button around it carries the name. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", SOLID.has(name) ? "icon solid" : "icon");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** Rows of numbers over time, one line per column, all on one scale. */
export function lines(rows) {
  const svg = document.createElementNS(SVG, "svg");
  const all = rows.flat();
  const [low, high] = [Math.min(...all), Math.max(...all)];
  svg.setAttribute("viewBox", "0 0 600 160");
  svg.setAttribute("class", "lines");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${rows[0].length} lines between ${low.toFixed(3)} and ${high.toFixed(3)}`);
  rows[0].forEach((_, column) => {
    const line = document.createElementNS(SVG, "polyline");
    const at = (row, index) => [(600 * index) / Math.max(1, rows.length - 1), 155 - (150 * (row[column] - low)) / (high - low || 1)];
    line.setAttribute("points", rows.map((row, index) => at(row, index).map((value) => value.toFixed(1)).join(",")).join(" "));
    line.style.setProperty("--hue", `${(360 * column) / rows[0].length}`);
    svg.append(line);
  });
  return svg;
}

/** A button with a symbol; the name is shown, or only spoken and told on hover. */
export function button(name, symbol, onclick, { quiet = false, ...props } = {}) {
  return quiet
    ? h("button.icon-button", { type: "button", "aria-label": name, title: name, onclick, ...props }, icon(symbol))
    : h("button.button", { type: "button", onclick, ...props }, symbol && icon(symbol), h("span", {}, name));
}

/** Empty an element and put others in. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A short message that goes by itself, spoken too. */
export function toast(text, kind = "") {
  const box = document.getElementById("toasts");
  const note = h("p.toast", { class: kind }, text);
  box.append(note);
  setTimeout(() => note.remove(), kind === "bad" ? 9000 : 4000);
}

/** Copy text, also where the page is not served over https. */
export async function copy(text, said = "Copied") {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea.offscreen", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast(said);
}

/** A modal dialog with a title; `build(close)` gives its contents. Resolves with what `close` is given. */
export function ask(title, build) {
  return new Promise((resolve) => {
    const id = `dialog-${Math.random().toString(36).slice(2)}`;
    const dialog = h("dialog", { "aria-labelledby": id });
    const close = (value) => {
      dialog.returned = value;
      dialog.close();
    };
    dialog.append(
      h("div.dialog-head", {}, h("h2", { id }, title), button("Close", "close", () => close(undefined), { quiet: true })),
      h("div.dialog-body", {}, build(close)),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returned);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** `f`, but only once calls have stopped for a while. */
export function later(f, wait_ms) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => f(...args), wait_ms);
  };
}

export const seconds = (s) =>
  s < 1 ? "under a second" : s < 90 ? `${Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;

export const bytes = (n) => (n < 1e6 ? `${Math.max(1, Math.round(n / 1e3))} kB` : `${(n / 1e6).toFixed(1)} MB`);

export function ago(epoch_s) {
  const past = Date.now() / 1000 - epoch_s;
  if (past < 60) return "just now";
  if (past < 3600) return `${Math.floor(past / 60)} min ago`;
  if (past < 86400) return `${Math.floor(past / 3600)} h ago`;
  return new Date(epoch_s * 1000).toLocaleDateString();
}
