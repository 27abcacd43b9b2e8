// Two or three knobs at several values each: one batch of jobs, shown as a matrix that plays in step.

import { call } from "./api.js";
import { ago, button, fill, h, seconds, toast } from "./dom.js";
import { clipOf, known, over, page, share, stageText, submit, watched } from "./jobs.js";
import { label, named, select } from "./knobs.js";
import { clockOf, save, screen, transport } from "./player.js";

const KEPT = "cosmorama.grids";
const AXES = ["x", "y", "z"];
const TITLES = { x: "Across", y: "Down", z: "Pages" };
const MOST = 100;

export class Grid {
  constructor(form, go) {
    Object.assign(this, { form, go, id: null, clock: null, page: 0, way: "clips", reference: null, making: null });
    this.axes = { x: { knob: "guidance_scale", text: "" }, y: { knob: "seed", text: "1, 2, 3" }, z: { knob: "", text: "" } };
    this.axes.x.text = usual(form.can.knobs.guidance_scale);
    this.builder = h("section.axes", { "aria-labelledby": "axes-title" });
    this.matrix = h("div.matrix-place");
    this.earlier = h("section.recent");
    this.element = h("div.grid", {}, this.builder, this.matrix, this.earlier);
    this.#build();
    form.addEventListener("change", () => this.#count());
    watched.addEventListener("job", ({ detail }) => {
      if (this.id && detail.metadata?.grid === this.id) this.#update(detail);
      if (detail.metadata?.grid) this.#list();
      if (detail.result) this.#count(); // how long one takes is known now
    });
    watched.addEventListener("gone", () => this.#list());
  }

  // --- the axes

  #build() {
    const { knobs } = this.form.can;
    const names = ["prompt", ...Object.keys(knobs).filter((name) => !/^(controls|adapters)\.|^output\.container/.test(name) && !Array.isArray(knobs[name].default))];
    const weights = this.form.can.controls.map((kind) => `controls.${kind}.weight`);
    const scales = this.form.can.adapters.map((name) => `adapters.${name}.scale`);
    const choices = [...names, ...weights, ...scales].map((name) => [name, label(name)]);
    this.counter = h("p.hint", { role: "status" });
    this.error = h("p.error", { role: "alert", hidden: true });
    const rows = AXES.map((axis) => {
      const { knob } = this.axes[axis];
      const values = h("div.axis-values");
      const pick = select(`axis-${axis}`, [...(axis === "x" ? [] : [["", "Nothing"]]), ...choices], (name) => {
        const before = this.axes[axis];
        const other = name && before.knob && AXES.find((one) => this.axes[one].knob === name);
        if (other) {
          Object.assign(this.axes, { [axis]: this.axes[other], [other]: before }); // they change places
          this.#build();
          document.getElementById(`axis-${axis}`).focus();
          return;
        }
        const spec = name === "seed" ? "1, 2, 3" : usual(knobs[name]);
        this.axes[axis] = { knob: name, text: name === "prompt" ? (this.form.values.prompt ?? "") : spec };
        this.#values(axis, values);
        this.#count();
      });
      pick.value = knob;
      this.#values(axis, values);
      return h("div.axis", { "data-axis": axis }, h("label", { htmlFor: `axis-${axis}` }, TITLES[axis]), pick, values);
    });
    fill(
      this.builder,
      h("div.page-head", {}, h("h1", { id: "axes-title" }, "Grid"), this.counter),
      h("p.hint", {}, "Everything else is as in the form. Where the seed is open, one is drawn for all."),
      h("div.axis-rows", {}, rows),
      this.error,
    );
    this.#count();
  }

  #values(axis, place) {
    const state = this.axes[axis];
    const knob = this.form.can.knobs[state.knob];
    const name = `Values ${TITLES[axis].toLowerCase()}`;
    const change = (text) => {
      state.text = text;
      this.#count();
    };
    if (!state.knob) return fill(place);
    if (state.knob === "prompt") {
      const area = h("textarea", { rows: 3, value: state.text, "aria-label": `${name}, one per line`, placeholder: "One prompt per line", oninput: () => change(area.value) });
      return fill(place, area);
    }
    const options = knob?.type === "boolean" ? ["true", "false"] : knob?.type === "string" ? knob.choices : null;
    if (options) {
      const chosen = new Set(options);
      state.text = options.join(", ");
      const boxes = options.map((value) =>
        h(
          "label.check",
          {},
          h("input", {
            type: "checkbox",
            checked: true,
            onchange: (event) => {
              chosen[event.target.checked ? "add" : "delete"](value);
              change(options.filter((one) => chosen.has(one)).join(", "));
            },
          }),
          named(value),
        ),
      );
      return fill(place, h("div.row", { role: "group", "aria-label": name }, boxes));
    }
    const input = h("input", { type: "text", value: state.text, "aria-label": name, placeholder: "1, 4, 7 or 1..5", oninput: () => change(input.value) });
    return fill(place, input);
  }

  /** `[{axis, knob, values}]` of the axes that have a knob; throws in words. */
  #plan() {
    const plan = AXES.map((axis) => ({ axis, ...this.axes[axis] })).filter(({ knob }) => knob);
    const names = plan.map(({ knob }) => knob);
    const twice = names.find((name, index) => names.indexOf(name) !== index);
    if (twice) throw new Error(`${label(twice)} is on two axes.`);
    return plan.map(({ axis, knob, text }) => {
      const values = parse(text, this.form.can.knobs[knob]?.type ?? (knob === "prompt" ? "prompt" : "number"), knob);
      if (!values.length) throw new Error(`${TITLES[axis]}: give at least one value.`);
      return { axis, knob, values };
    });
  }

  #count() {
    try {
      const plan = this.#plan();
      const cells = plan.reduce((product, { values }) => product * values.length, 1);
      const done = known().filter((job) => job.result?.timings_s);
      const each = done.length ? done.slice(0, 5).reduce((sum, job) => sum + Object.values(job.result.timings_s).reduce((a, b) => a + b, 0), 0) / Math.min(done.length, 5) : null;
      const sides = plan.length > 1 ? `${plan.map(({ values }) => values.length).join(" × ")} = ` : "";
      const time = each && cells > 1 ? `, about ${seconds(Math.max(1, each * cells))} if they are like the last ones` : "";
      this.counter.textContent = `${sides}${cells} ${cells === 1 ? "clip" : "clips"}${time}`;
      this.error.hidden = true;
    } catch (error) {
      this.counter.textContent = "";
      this.error.textContent = error.message;
      this.error.hidden = false;
    }
  }

  // --- making

  async make() {
    let plan;
    try {
      plan = this.#plan();
    } catch (error) {
      toast(error.message, "bad");
      return;
    }
    const cells = product(plan.map(({ values }) => values));
    if (cells.length > MOST) {
      toast(`${cells.length} clips are more than a grid of ${MOST}.`, "bad");
      return;
    }
    this.form.clearErrors();
    const body = await this.form.body();
    if (body.seed === undefined && !plan.some(({ knob }) => knob === "seed")) body.seed = Math.floor(Math.random() * 2 ** 32);
    const grid = { id: `grid-${Date.now().toString(36)}${Math.random().toString(36).slice(2, 6)}`, created_at: Date.now() / 1000, plan, body };
    keep(grid);
    await this.#submit(grid, cells.map((_, index) => index));
  }

  async #submit(grid, wanted) {
    const { id, plan, body } = grid;
    const values = product(plan.map((axis) => axis.values));
    this.making = id;
    let opened = this.id === id;
    try {
      for (const index of wanted) {
        if (this.making !== id) return;
        const metadata = { grid: id, grid_cell: String(index), grid_size: plan.map((axis) => axis.values.length).join("x") };
        const request = structuredClone(body);
        plan.forEach(({ axis, knob }, at) => {
          set(request, knob, values[index][at]);
          metadata[`grid_${axis}`] = `${knob}=${String(values[index][at]).slice(0, 400)}`;
        });
        await this.#patiently(() => submit({ ...request, metadata }, `${id}-${index}`));
        if (!opened) this.go(`#/grid/${id}`);
        opened = true;
      }
    } catch (error) {
      const rest = this.form.fail(error);
      toast(rest ?? error.message, "bad");
    } finally {
      this.making = null;
      this.#says("");
    }
  }

  /** A full queue is waited for. */
  async #patiently(submission) {
    for (;;) {
      try {
        return await submission();
      } catch (error) {
        if (error.status !== 429 && error.status !== 503 && error.status !== 0) throw error;
        this.#says("The queue is full; the next cell is given as soon as there is room.");
        await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(error.retry_s ?? 3, 10)));
      }
    }
  }

  #says(text) {
    if (this.note) this.note.textContent = text;
  }

  // --- the matrix

  async open(id) {
    if (id === this.id && this.clock) return;
    this.close();
    Object.assign(this, { id, page: 0, reference: null, way: "clips" });
    this.#list();
    if (!id) return fill(this.matrix);
    let jobs = this.#jobs();
    const [first] = jobs;
    const size = first ? count(first) : (kept(id)?.plan.reduce((all, { values }) => all * values.length, 1) ?? Infinity);
    // The rest may be further down the server's list.
    for (let cursor = null, pages = 0; jobs.length < size && pages < 20; pages += 1) {
      cursor = await page(cursor, 100).catch(() => null);
      jobs = this.#jobs();
      if (cursor === null) break;
    }
    if (this.id !== id) return undefined;
    if (!jobs.length) return fill(this.matrix, h("div.stage-empty", {}, h("p.big", {}, "There is no such grid any more")));
    this.#draw();
    return undefined;
  }

  close() {
    this.clock?.stop();
    this.clock = null;
    this.id = null;
    cancelAnimationFrame(this.drawing);
    fill(this.matrix);
  }

  #jobs() {
    return known().filter((job) => job.metadata?.grid === this.id);
  }

  /** Axes as the jobs tell them: `[{axis, knob, values}]`, and jobs by cell. */
  #read() {
    const cells = new Map(this.#jobs().map((job) => [Number(job.metadata.grid_cell), job]));
    const [job] = cells.values();
    const sizes = job.metadata.grid_size.split("x").map(Number);
    const used = AXES.filter((axis) => job.metadata[`grid_${axis}`] !== undefined);
    const plan = kept(this.id)?.plan;
    const axes = used.map((axis, at) => {
      const stride = sizes.slice(at + 1).reduce((a, b) => a * b, 1);
      const values = Array.from({ length: sizes[at] }, (_, value) => {
        const one = [...cells].find(([index]) => Math.floor(index / stride) % sizes[at] === value);
        return one ? one[1].metadata[`grid_${axis}`].replace(/^[^=]*=/, "") : String(plan?.[at]?.values[value] ?? "…");
      });
      return { axis, knob: job.metadata[`grid_${axis}`].split("=")[0], values, stride };
    });
    return { axes, cells, size: sizes.reduce((a, b) => a * b, 1) };
  }

  #draw() {
    this.clock?.stop();
    cancelAnimationFrame(this.drawing);
    const { axes, cells, size } = this.#read();
    const by = Object.fromEntries(axes.map((axis) => [axis.axis, axis]));
    const [x, y, z] = [by.x, by.y, by.z];
    const [any] = cells.values();
    this.clock = clockOf(...cells.values());
    this.cells = new Map();
    this.note = h("p.hint", { role: "status" });
    const index = (column, row) => column * x.stride + row * (y?.stride ?? 0) + this.page * (z?.stride ?? 0);
    const head = (axis, value) => `${label(axis.knob)} ${named(value)}`;
    const table = h(
      "table.matrix",
      {},
      h("caption.offscreen", {}, "The clips of the grid"),
      h("thead", {}, h("tr", {}, y && h("td"), x.values.map((value) => h("th", { scope: "col" }, head(x, value))))),
      h(
        "tbody",
        {},
        Array.from({ length: y?.values.length ?? 1 }, (_, row) =>
          h(
            "tr",
            {},
            y && h("th", { scope: "row" }, head(y, y.values[row])),
            x.values.map((_, column) => h("td", {}, this.#cell(index(column, row), cells.get(index(column, row))))),
          ),
        ),
      ),
    );
    table.style.setProperty("--ratio", `${clipOf(any).width} / ${clipOf(any).height}`);
    table.style.setProperty("--columns", x.values.length);
    const chips = (name, choices, chosen, choose) =>
      h("div.chips", { role: "group", "aria-label": name }, choices.map(([value, title]) => h("button.chip", { type: "button", "aria-pressed": String(value === chosen), onclick: () => choose(value) }, title)));
    const redraw = (change) => {
      Object.assign(this, change);
      this.#draw();
    };
    const missing = size - cells.size;
    const spec = kept(this.id);
    fill(
      this.matrix,
      h(
        "div.page-head.matrix-head",
        {},
        z && chips("Page", z.values.map((value, at) => [at, head(z, value)]), this.page, (at) => redraw({ page: at })),
        chips("Show", [["clips", "Clips"], ["difference", "Differences"]], this.way, (way) => redraw({ way })),
        h("span.spacer"),
        button("PNG sheet", "download", () => this.#export("png")),
        button("MP4", "download", () => this.#export("mp4")),
      ),
      this.way === "difference" && h("p.hint", {}, "Brightness is how far each clip is from the marked one, four times amplified. Mark another with its flag."),
      h("div.matrix-scroll", { tabIndex: 0, role: "region", "aria-label": "Matrix" }, table),
      transport(this.clock),
      this.note,
      missing > 0 &&
        spec &&
        this.making !== this.id &&
        button(`Make the ${missing} missing ${missing === 1 ? "clip" : "clips"}`, "again", () =>
          this.#submit(spec, Array.from({ length: size }, (_, at) => at).filter((at) => !cells.has(at))),
        ),
    );
    this.clock.start();
    if (this.way === "difference") this.#differences();
  }

  #cell(index, job) {
    const cell = h("div.cell", { "data-cell": index });
    this.cells.set(index, cell);
    if (job) this.#fillCell(cell, job);
    return cell;
  }

  #fillCell(cell, job) {
    const state = job.state === "succeeded" ? "succeeded" : over(job) ? job.state : "open";
    if (cell.dataset.state === state) {
      const bar = cell.querySelector("progress");
      if (bar) {
        bar.value = share(job);
        cell.querySelector(".cell-text").textContent = stageText(job);
      }
      return;
    }
    cell.dataset.state = state;
    cell.dataset.job = job.id;
    if (state === "open") {
      fill(cell, h("span.cell-text", {}, stageText(job)), h("progress", { max: 1, value: share(job), "aria-label": "Progress" }));
    } else if (state !== "succeeded") {
      fill(cell, h("a.cell-text", { href: `#/job/${job.id}` }, job.error?.message ?? stageText(job)));
    } else {
      this.reference ??= job.id;
      const shown = screen(job, this.clock);
      const mark = button("Compare the others with this one", "flag", () => {
        this.reference = job.id;
        this.way = "difference";
        this.#draw();
      }, { quiet: true, "aria-pressed": String(this.reference === job.id) });
      fill(
        cell,
        shown,
        this.way === "difference" && h("canvas", { width: 320, height: Math.round((320 * clipOf(job).height) / clipOf(job).width), "aria-hidden": "true" }),
        h("div.cell-tools", {}, mark, h("a.icon-button", { href: `#/job/${job.id}`, "aria-label": "Open the clip", title: "Open" }, "↗")),
      );
    }
  }

  #update(job) {
    const cell = this.cells?.get(Number(job.metadata.grid_cell));
    if (cell && this.clock && !this.#isOther(job)) {
      if (this.matrix.textContent.includes("…")) this.#soon();
      this.#fillCell(cell, job);
    }
    else if (this.id && this.clock && !this.cells?.has(Number(job.metadata.grid_cell))) this.#soon();
    else if (this.id && !this.clock && !this.matrix.childElementCount) this.#draw();
  }

  #isOther(job) {
    const { dataset } = this.cells.get(Number(job.metadata.grid_cell));
    return dataset.job !== undefined && dataset.job !== job.id;
  }

  #soon() {
    clearTimeout(this.soon);
    this.soon = setTimeout(() => this.id && this.#draw(), 100);
  }

  #differences() {
    const draw = () => {
      const base = [...this.cells.values()].find((cell) => cell.dataset.job === this.reference)?.querySelector("video");
      for (const cell of this.cells.values()) {
        const [video, canvas] = [cell.querySelector("video"), cell.querySelector("canvas")];
        if (!base || !video || !canvas || base.readyState < 2 || video.readyState < 2) continue;
        canvas.hidden = video === base;
        if (video === base) continue;
        const paint = canvas.getContext("2d");
        const { width, height } = canvas;
        paint.globalCompositeOperation = "copy";
        paint.drawImage(video, 0, 0, width, height);
        paint.globalCompositeOperation = "difference";
        paint.drawImage(base, 0, 0, width, height);
        paint.globalCompositeOperation = "lighter";
        paint.drawImage(canvas, 0, 0);
        paint.drawImage(canvas, 0, 0);
      }
      this.drawing = requestAnimationFrame(draw);
    };
    draw();
  }

  async #export(format) {
    const { axes, cells } = this.#read();
    const by = Object.fromEntries(axes.map((axis) => [axis.axis, axis]));
    const [x, y, z] = [by.x, by.y, by.z];
    const title = (axis) => axis?.values.map((value) => `${label(axis.knob)} ${named(value)}`) ?? [];
    const rows = Array.from({ length: y?.values.length ?? 1 }, (_, row) =>
      x.values.map((_, column) => {
        const job = cells.get(column * x.stride + row * (y?.stride ?? 0) + this.page * (z?.stride ?? 0));
        return job?.state === "succeeded" ? job.id : null;
      }),
    );
    const body = { rows, columns: title(x), row_titles: title(y), format, ...(format === "png" ? { frame: this.clock.frame } : {}) };
    this.#says("Putting the sheet together…");
    try {
      const answer = await call("v1/sheets", { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
      save(await answer.blob(), `${this.id}.${format}`);
    } catch (error) {
      toast(error.message, "bad");
    } finally {
      this.#says("");
    }
  }

  // --- earlier grids

  #list() {
    const grids = new Map();
    for (const job of known()) if (job.metadata?.grid && job.metadata.grid_size) grids.set(job.metadata.grid, [...(grids.get(job.metadata.grid) ?? []), job]);
    const rows = [...grids].map(([id, jobs]) => {
      const [{ metadata, request, created_at }] = jobs;
      const what = AXES.map((axis) => metadata[`grid_${axis}`]?.split("=")[0]).filter(Boolean).map(label).join(" × ");
      const done = jobs.filter((job) => job.state === "succeeded").length;
      return h(
        "li",
        {},
        h("a", { href: `#/grid/${id}`, "aria-current": id === this.id ? "true" : null }, h("strong", {}, what), metadata.grid_size.includes("x") && ` ${metadata.grid_size.replaceAll("x", "×")}`),
        h("span.hint.clip-text", {}, request.prompt ?? ""),
        h("span.hint", {}, `${done} of ${metadata.grid_size.split("x").reduce((a, b) => a * b, 1)} · ${ago(created_at)}`),
      );
    });
    fill(this.earlier, rows.length > 0 && [h("h2", {}, "Grids"), h("ul.grids", {}, rows)]);
  }
}

/** Values to begin with: low, usual and high. */
function usual(knob) {
  if (!knob || knob.type === "string" || knob.type === "boolean") return "";
  if (knob.choices) return knob.choices.join(", ");
  const { minimum, maximum, default: middle } = knob;
  if (minimum === null || maximum === null) return "";
  const round = (value) => (knob.type === "integer" ? Math.round(value) : Number(value.toFixed(2)));
  const centre = typeof middle === "number" ? middle : (minimum + maximum) / 2;
  return [...new Set([minimum, round((minimum + centre) / 2), round(centre)])].join(", ");
}

/** "1, 4, 7", "1..5" and "0..1/0.25" as values; text as its lines. */
export function parse(text, type, knob = "") {
  if (type === "prompt") return text.split("\n").map((line) => line.trim()).filter(Boolean);
  const parts = text.split(",").map((part) => part.trim()).filter(Boolean);
  if (type === "boolean") return parts.map((part) => part === "true");
  if (type === "string") return parts;
  return parts.flatMap((part) => {
    const run = part.match(/^(-?[\d.]+?)\s*\.\.\s*(-?[\d.]+?)(?:\s*\/\s*([\d.]+))?$/);
    if (run) {
      const [from, to, by = 1] = run.slice(1).map((one) => (one === undefined ? undefined : Number(one)));
      const steps = Math.floor((to - from) / by + 1e-9);
      if (!(by > 0) || !(steps >= 0) || steps > 200) throw new Error(`${label(knob)}: ${part} is no run of values.`);
      return Array.from({ length: steps + 1 }, (_, at) => Number((from + at * by).toFixed(6)));
    }
    const value = Number(part);
    if (Number.isNaN(value)) throw new Error(`${label(knob)}: ${part} is not a number.`);
    return [value];
  });
}

const product = (lists) => lists.reduce((all, list) => all.flatMap((head) => list.map((one) => [...head, one])), [[]]);
const count = (job) => job.metadata.grid_size.split("x").reduce((a, b) => a * b, 1);

/** Set one knob of a request, also inside its output, controls and adapters. */
function set(request, knob, value) {
  const [outer, name, inner] = knob.split(".");
  if (outer === "controls") {
    const control = (request.controls ??= []).find(({ kind }) => kind === name);
    if (control) control[inner] = value;
    else request.controls.push({ kind: name, [inner]: value });
  } else if (outer === "adapters") {
    const adapter = (request.adapters ??= []).find((one) => one.name === name);
    if (adapter) adapter[inner] = value;
    else request.adapters.push({ name, [inner]: value });
  } else if (name) (request[outer] ??= {})[name] = value;
  else request[knob] = value;
}

const all = () => JSON.parse(localStorage.getItem(KEPT) ?? "[]");
const kept = (id) => all().find((grid) => grid.id === id);

function keep(grid) {
  try {
    localStorage.setItem(KEPT, JSON.stringify([grid, ...all()].slice(0, 12)));
  } catch {
    // A grid with a large picture is not kept; what was submitted is on the server.
  }
}

