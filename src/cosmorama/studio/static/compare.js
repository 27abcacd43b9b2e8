// Two clips in step: under a wipe, side by side, or as their difference.

import { button, fill, h } from "./dom.js";
import { clipOf, fetchJob, find, known, watched } from "./jobs.js";
import { essential } from "./code.js";
import { label, named } from "./knobs.js";
import { clockOf, screen, transport } from "./player.js";

const WAYS = [
  ["wipe", "Wipe"],
  ["side", "Side by side"],
  ["difference", "Difference"],
];

export class Compare {
  constructor(go) {
    Object.assign(this, { go, clock: null, way: "wipe", pair: [null, null], active: false });
    this.pickers = ["a", "b"].map((side) =>
      h("select", { id: `compare-${side}`, onchange: () => this.#go({ [side]: this.pickers[side === "a" ? 0 : 1].value }) }),
    );
    this.ways = h(
      "div.chips",
      { role: "group", "aria-label": "Way" },
      WAYS.map(([name, title]) => h("button.chip", { type: "button", "data-way": name, onclick: () => this.#go({ way: name }) }, title)),
    );
    this.stage = h("div.compare-stage");
    this.table = h("div.about");
    this.element = h(
      "div.compare",
      {},
      h(
        "div.page-head",
        {},
        h("h1", {}, "Compare"),
        h("div.pick", {}, h("label.side-a", { htmlFor: "compare-a" }, "A"), this.pickers[0]),
        button("Swap", "loop", () => this.#go({ a: this.pair[1], b: this.pair[0] }), { quiet: true }),
        h("div.pick", {}, h("label.side-b", { htmlFor: "compare-b" }, "B"), this.pickers[1]),
        this.ways,
      ),
      this.stage,
      this.table,
    );
    // The page may be opened before the jobs are known.
    watched.addEventListener("job", () => this.active && (this.pair.every(Boolean) ? this.#options() : this.open(this.query)));
  }

  #go(change) {
    const now = { a: this.pair[0] ?? "", b: this.pair[1] ?? "", way: this.way, ...change };
    this.go(`#/compare?${new URLSearchParams(Object.entries(now).filter(([, value]) => value))}`);
  }

  async open(query) {
    Object.assign(this, { active: true, query });
    const finished = known().filter((job) => job.state === "succeeded");
    const a = query.get("a") ?? finished[0]?.id ?? null;
    const b = query.get("b") ?? this.#partner(finished, a);
    this.way = WAYS.some(([name]) => name === query.get("way")) ? query.get("way") : "wipe";
    this.pair = [a, b];
    for (const id of this.pair) if (id && !find(id)) await fetchJob(id).catch(() => {});
    this.#options();
    this.#draw();
  }

  close() {
    this.active = false;
    this.clock?.stop();
    this.clock = null;
    fill(this.stage);
  }

  /** What goes best with a clip: the newest other one of its prompt, or else the newest other one. */
  #partner(finished, a) {
    const others = finished.filter((job) => job.id !== a);
    const prompt = find(a)?.request.prompt;
    return (others.find((job) => job.request.prompt === prompt) ?? others[0])?.id ?? null;
  }

  #options() {
    const finished = known().filter((job) => job.state === "succeeded");
    this.pickers.forEach((picker, index) => {
      const wanted = finished.map((job) => job.id).join();
      if (picker.dataset.of !== wanted) {
        picker.dataset.of = wanted;
        const text = ({ request, mode }) => `Seed ${request.seed} · guidance ${request.guidance_scale} · ${(request.prompt || label(mode)).slice(0, 60)}`;
        fill(picker, h("option", { value: "" }, "Choose a clip"), finished.map((job) => h("option", { value: job.id }, text(job))));
      }
      picker.value = this.pair[index] ?? "";
    });
    this.ways.querySelectorAll("button").forEach((one) => one.setAttribute("aria-pressed", String(one.dataset.way === this.way)));
  }

  #draw() {
    this.clock?.stop();
    this.clock = null;
    const jobs = this.pair.map((id) => (id ? find(id) : null));
    if (!jobs.every((job) => job?.state === "succeeded")) {
      const few = known().filter((job) => job.state === "succeeded").length < 2;
      const what = few ? "Two finished clips are needed: make another" : "Choose two finished clips";
      fill(this.stage, h("div.stage-empty", {}, h("p.big", {}, what), h("p", {}, "They play in step; drag the line between them.")));
      fill(this.table);
      return;
    }
    this.clock = clockOf(...jobs);
    const [a, b] = jobs.map((job) => screen(job, this.clock));
    const { width, height } = clipOf(jobs[0]);
    const ratio = `${width} / ${height}`;
    let shown;
    if (this.way === "side") {
      shown = h("div.side-by-side", {}, [a, b].map((one, index) => h("div.screen", {}, one, h("span.tag", {}, "AB"[index]))));
      shown.querySelectorAll(".screen").forEach((one) => one.style.setProperty("--ratio", ratio));
    } else {
      shown = h("div.screen.over", { class: this.way }, a, b, this.way === "wipe" && [h("span.tag", {}, "A"), h("span.tag.right", {}, "B")]);
      shown.style.setProperty("--ratio", ratio);
      if (this.way === "wipe") {
        const at = (percent) => shown.style.setProperty("--wipe", `${percent}%`);
        const line = h("input.wipe", { type: "range", min: 0, max: 100, step: 0.5, value: 50, "aria-label": "Wipe between A and B", oninput: () => at(line.value) });
        at(50);
        shown.append(h("span.wipe-line", { "aria-hidden": "true" }), line);
      }
    }
    this.clock.start();
    const lengths = jobs.map(clipOf).map(({ frames, fps }) => frames / fps);
    const unequal = clipOf(jobs[0]).fps !== clipOf(jobs[1]).fps || lengths[0] !== lengths[1];
    fill(this.stage, shown, transport(this.clock), unequal && h("p.hint", {}, "The clips differ in length or rate: they are in step by time, until the shorter one ends."));
    fill(this.table, differences(jobs));
  }
}

/** A table of the knobs in which two jobs differ. */
function differences(jobs) {
  const [a, b] = jobs.map((job) => ({ model: job.model, ...flat(essential(job.request)) }));
  const names = [...new Set([...Object.keys(a), ...Object.keys(b)])].filter((name) => a[name] !== b[name]);
  if (!names.length) return h("p.big", {}, "The same request: the clips are the same, byte for byte.");
  return h(
    "table.differences",
    {},
    h("caption", {}, "What differs"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Knob"), h("th", { scope: "col" }, "A"), h("th", { scope: "col" }, "B"))),
    h("tbody", {}, names.map((name) => h("tr", {}, h("th", { scope: "row" }, label(name)), [a, b].map((one) => h("td", {}, one[name] === undefined ? "–" : named(one[name])))))),
  );
}

const flat = (request) =>
  Object.fromEntries(
    Object.entries(request).flatMap(([name, value]) =>
      value && typeof value === "object" && !Array.isArray(value)
        ? Object.entries(value).filter(([, inner]) => inner !== null).map(([inner, one]) => [`${name}.${inner}`, String(one)])
        : [[name, typeof value === "object" ? JSON.stringify(value) : String(value)]],
    ),
  );
