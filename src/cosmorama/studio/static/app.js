// The page put together: header, views by the address's fragment, keys.

import { call, get } from "./api.js";
import { ask, button, fill, h, icon, toast } from "./dom.js";
import { setUsualNegative } from "./code.js";
import { Compare } from "./compare.js";
import { capabilities, Form } from "./form.js";
import { Grid } from "./grid.js";
import { History } from "./history.js";
import { page } from "./jobs.js";
import { Make } from "./make.js";

const THEME = "cosmorama.theme";
const MODEL = "cosmorama.model";
const THEMES = [
  ["", "auto", "Theme: as the system"],
  ["light", "sun", "Theme: light"],
  ["dark", "moon", "Theme: dark"],
];
const KEYS = [
  ["Ctrl Enter", "Generate, or make the grid"],
  ["Space", "Play or pause"],
  ["← →", "One frame back or on; ten with Shift"],
  ["Home End", "First or last frame"],
  ["1 2 3 4", "Make, Grid, Compare, History"],
  ["/", "Search the history, or write the prompt"],
  ["?", "This list"],
];

const main = document.getElementById("main");
const status = document.getElementById("status");
const go = (hash) => {
  if (location.hash === hash) route();
  else location.hash = hash;
};

let form;
let views;
let shown = null;

// --- the header

function theme() {
  let at = Math.max(0, THEMES.findIndex(([name]) => name === (localStorage.getItem(THEME) ?? "")));
  const turn = button("Theme", "auto", () => show((at + 1) % THEMES.length), { quiet: true });
  const show = (index) => {
    at = index;
    const [name, symbol, title] = THEMES[at];
    localStorage.setItem(THEME, name);
    if (name) document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
    turn.replaceChildren(icon(symbol));
    turn.title = title;
    turn.setAttribute("aria-label", title);
  };
  show(at);
  return turn;
}

function say(text, state) {
  status.textContent = text;
  status.dataset.state = state;
}

/** Nothing once the server is ready; until then, why it is not. The health route would be an error in the console. */
async function unready() {
  return get("v1/metadata").then(
    (answer) => answer.unready,
    ({ message }) => message,
  );
}

// --- keys

function keys(event) {
  const typing = event.target.closest?.("input:not([type=range]):not([type=radio]):not([type=checkbox]), textarea, select");
  if ((event.ctrlKey || event.metaKey) && event.key === "Enter") {
    event.preventDefault();
    if (shown === views?.grid) views.grid.make();
    else if (shown === views?.make) views.make.generate();
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const { clock = null } = shown ?? {};
  const slider = event.target.matches?.("input[type=range], input[type=radio]");
  const pressed = event.target.closest?.("button, a, summary, input");
  const act = {
    " ": () => clock && !pressed && clock.toggle(),
    ArrowLeft: () => clock && !slider && clock.step(event.shiftKey ? -10 : -1),
    ArrowRight: () => clock && !slider && clock.step(event.shiftKey ? 10 : 1),
    Home: () => clock && !slider && clock.seek(0),
    End: () => clock && !slider && clock.seek(clock.frames - 1),
    1: () => go("#/make"),
    2: () => go("#/grid"),
    3: () => go("#/compare"),
    4: () => go("#/history"),
    "/": () => (document.querySelector(".history input[type=search]") ?? document.getElementById("field-prompt"))?.focus(),
    "?": help,
  }[event.key];
  // Where there was nothing to do the key keeps its own meaning.
  const done = act ? act() : false;
  if (done !== null && done !== false) event.preventDefault();
}

const help = () =>
  ask("Keys", () => h("dl.keys", {}, KEYS.map(([key, what]) => h("div", {}, h("dt", {}, key.split(" ").map((k) => h("kbd", {}, k))), h("dd", {}, what)))));

// --- views

function route() {
  const [, name = "make", id, query = ""] = location.hash.match(/^#\/(\w+)(?:\/([\w-]+))?(?:\?(.*))?$/) ?? [];
  const view = { make: views.make, job: views.make, grid: views.grid, compare: views.compare, history: views.history }[name] ?? views.make;
  if (shown !== view) {
    shown?.close?.();
    shown = view;
    const withForm = view === views.make || view === views.grid;
    fill(main, withForm && side(view), view.element);
    main.className = withForm ? "with-form" : "";
    const tab = name === "job" ? "make" : name;
    document.querySelectorAll("nav a").forEach((link) => (link.dataset.view === tab ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current")));
    document.title = `${{ make: "Make", grid: "Grid", compare: "Compare", history: "History" }[tab] ?? "Make"} · Cosmorama`;
    window.scrollTo(0, 0);
  }
  const parameters = new URLSearchParams(query);
  if (view === views.make) {
    if (name === "make" && parameters.size) form.fromLink(parameters);
    view.open(name === "job" ? id : null);
  } else if (view === views.grid) view.open(id ?? null);
  else view.open(parameters);
}

/** The form with the one button that matters below it. */
function side(view) {
  const act = view === views.grid ? () => views.grid.make() : () => views.make.generate();
  const press = h("button.button.primary.big-button", { type: "button", onclick: () => run(press, act) }, view === views.grid ? "Make the grid" : "Generate");
  return h("aside.side", { "aria-label": "What to make" }, form.element, h("div.side-foot", {}, press, h("kbd.hint", {}, "Ctrl Enter")));
}

async function run(pressed, act) {
  if (pressed.disabled) return;
  pressed.disabled = true;
  try {
    await act();
  } finally {
    pressed.disabled = false;
  }
}

/** What a model can do, once it is there: of several models not all are loaded at a time. */
async function loaded(model) {
  for (;;) {
    try {
      // Asked again before the server would answer that it takes long: that would be an error in the console.
      return await capabilities(model, { signal: AbortSignal.timeout(20_000) });
    } catch (error) {
      if (error.status !== 503 && error.name !== "TimeoutError") throw error;
      say(`loading ${model}`, "busy");
      fill(main, h("div.stage-empty", {}, h("p.big", {}, `${model} is being loaded`), h("p", {}, "The studio opens by itself as soon as it is there.")));
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

async function build(model) {
  const { data } = await get("v1/models");
  const names = data.map(({ id }) => id);
  const wanted = names.includes(model) ? model : names[0];
  const can = await loaded(wanted);
  form = new Form(can, names);
  form.addEventListener("model", ({ detail }) => {
    localStorage.setItem(MODEL, detail);
    start(detail).catch(failed);
  });
  setUsualNegative(can.knobs.negative_prompt?.default);
  say(can.model, "ready");
  // Jobs are not waited for: the form is there first.
  page(null, 50).catch((error) => toast(error.message, "bad"));
  get("openapi.json").then(
    ({ paths }) => form.offerRewriting("/v1/upsample" in paths),
    () => {},
  );
}

async function start(model) {
  await build(model);
  shown?.close?.();
  shown = null;
  views = { make: new Make(form, go), grid: new Grid(form, go), compare: new Compare(go), history: new History(go) };
  route();
}

function failed(error) {
  say("not reachable", "bad");
  fill(main, h("div.stage-empty", {}, h("p.big", {}, "The studio could not start"), h("p.error", { role: "alert" }, error.message), h("button.button", { type: "button", onclick: () => location.reload() }, "Try again")));
}

async function boot() {
  document.getElementById("tools").prepend(h("button.icon-button", { type: "button", "aria-label": "Keys", title: "Keys (?)", onclick: help }, h("kbd", {}, "?")), theme());
  document.addEventListener("keydown", keys);
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])][0];
    if (file && form && main.contains(form.element)) form.source.take(file, file.name || "pasted");
  });
  // A file that misses its field would be opened instead of the page.
  for (const kind of ["dragover", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      const file = kind === "drop" && event.dataTransfer.files[0];
      if (file && form && main.contains(form.element)) form.source.take(file, file.name);
    });
  }
  for (let why, told; (why = await unready()); await new Promise((resolve) => setTimeout(resolve, 1000))) {
    if (why === told) continue;
    told = why;
    say("not ready", "busy");
    fill(main, h("div.stage-empty", {}, h("p.big", {}, "The server is not ready yet"), h("p", { role: "status" }, why), h("p", {}, "The studio opens by itself as soon as it is.")));
  }
  await start(localStorage.getItem(MODEL));
  window.addEventListener("hashchange", route);
}

boot().catch(failed);
