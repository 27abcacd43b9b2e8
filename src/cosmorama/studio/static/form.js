// The form: everything that a request can hold and the loaded model has.

import { get, inputBlob, post } from "./api.js";
import { ask, button, fill, h, icon, later, toast } from "./dom.js";
import { control, groups, label, select } from "./knobs.js";
import { dataUrl, mediaField } from "./media.js";

const KEPT = "cosmorama.form";
const FEW_SIZES = 6;
const PRESETS = "cosmorama.presets";
const EXAMPLES = {
  microcosm: [
    "a red ball rolls to the right and hits a blue cube on a green floor",
    "a yellow cylinder falls on a wooden floor",
    "two blue balls collide on a gray floor",
    "the camera drives through a corridor of gray shelves, a red box stands ahead",
  ],
};
const ACTING = ["forward_dynamics", "inverse_dynamics", "policy"];
const TASKS = {
  forward_dynamics: "Forward dynamics: A picture and actions make a clip",
  inverse_dynamics: "Inverse dynamics: A clip tells its actions",
  policy: "Policy: A picture and a prompt make a clip and its actions",
};
const VIEWS = [
  ["ego_view", "The robot's eyes"],
  ["third_person_view", "In front of it"],
  ["wrist_view", "Its wrist"],
  ["concat_view", "Several of these"],
];
const CONTROLS = {
  edge: ["Edges", "Without a clip of its own, found in the clip above."],
  vis: ["Blurred colors", "Without a clip of its own, made of the clip above."],
  depth: ["Depth", "Needs a depth clip: nearer is brighter.", true],
  seg: ["Segmentation", "Needs a clip of colored segments.", true],
  wsm: ["World scenario map", "Needs a rendered map clip.", true],
};
const GENERAL = [
  "A robot arm picks up a red mug from a cluttered kitchen counter and sets it down on a tray.",
  "Dashboard view of a car that drives through light rain in a city at dusk.",
  "A forklift carries a pallet between the shelves of a bright warehouse.",
];

export class Form extends EventTarget {
  /** `capabilities` is the answer of /v1/capabilities; `models` are the names of all. */
  constructor(capabilities, models) {
    super();
    this.can = capabilities;
    this.models = models;
    this.values = {};
    this.media = { source: null };
    this.element = h("form.form", { autocomplete: "off", novalidate: true, onsubmit: (event) => event.preventDefault() });
    this.keep = later(() => this.#keep(), 300);
    window.addEventListener("pagehide", () => this.element.isConnected && this.#keep());
    this.#build();
    this.restore();
  }

  // --- values

  set(name, value) {
    this.values[name] = value;
    this.#changed(name);
  }

  value(name) {
    return this.values[name] ?? (name === "width" || name === "height" ? this.#usualSize()[name] : (this.can.knobs[name]?.default ?? null));
  }

  /** Whether the result follows something that has a length of its own. */
  #followed() {
    return Boolean(this.values.controls?.length) || (ACTING.includes(this.values.task) && Boolean(this.values.action));
  }

  /** The model's own size; where it has none of its own, its first. */
  #usualSize() {
    const { knobs, sizes, size_multiple } = this.can;
    const usual = { width: knobs.width.default, height: knobs.height.default };
    const listed = sizes.some(({ width, height }) => width === usual.width && height === usual.height);
    return listed || size_multiple || !sizes.length ? usual : sizes[0];
  }

  #changed(name) {
    if (name !== "source") this.controls[name]?.show?.(this.values[name] ?? null);
    this.controls[name]?.fail?.(null);
    this.#arrange();
    this.keep();
    this.dispatchEvent(new Event("change"));
  }

  /** The request as JSON in the server's own wire format; media is there as data URLs. */
  async body() {
    const { can, values } = this;
    const body = { prompt: values.prompt?.trim() || null };
    if (this.models.length > 1) body.model = can.model;
    const { source } = this.media;
    if (source) body[source.kind] = await dataUrl(source.blob);
    for (const [name, knob] of Object.entries(can.knobs)) {
      const value = values[name] ?? null;
      if (value === null || /^(controls|adapters)\./.test(name)) continue;
      if (name === "conditioning_frames" && source?.kind !== "video") continue;
      const [outer, inner] = name.split(".");
      if (inner) (body[outer] ??= {})[inner] = value;
      else if (name !== "negative_prompt" || value !== knob.default || value === "") body[name] = value;
    }
    for (const name of ["width", "height", "frames", "fps", "steps", "guidance_scale"]) {
      // A control clip or the actions say how long the result is.
      if (!(["frames", "fps"].includes(name) && this.#followed())) body[name] ??= this.value(name);
    }
    if (can.knobs.negative_prompt?.default === "") body.negative_prompt ??= "";
    if (values.task) body.task = values.task;
    if (values.fit) body.fit = true;
    body.controls = await Promise.all(
      (values.controls ?? []).map(async ({ kind, weight, preset }) => {
        const own = this.media[`controls.${kind}`];
        return { kind, weight, preset, ...(own ? { source: await dataUrl(own.blob) } : {}) };
      }),
    );
    body.adapters = values.adapters ?? [];
    if (values.action && ACTING.includes(values.task)) body.action = values.action;
    for (const name of ["controls", "adapters"]) if (body[name].length === 0) delete body[name];
    return Object.fromEntries(Object.entries(body).filter(([, value]) => value !== null));
  }

  /** Put a request into the form, as a job's `request` or a body has it. `keepSeed` false leaves the seed open. */
  async fillIn(request, { keepSeed = true } = {}) {
    const values = { prompt: request.prompt ?? "" };
    for (const [name, knob] of Object.entries(this.can.knobs)) {
      const [outer, inner] = name.split(".");
      const value = inner ? request[outer]?.[inner] : request[name];
      values[name] = value === knob.default ? null : (value ?? null);
    }
    if (!request.video) values.conditioning_frames = null; // says nothing of a clip that is given later
    if (!keepSeed) values.seed = null;
    if (request.task && this.can.modes.includes(request.task)) values.task = request.task;
    values.controls = (request.controls ?? []).filter((c) => this.can.controls.includes(c.kind));
    values.adapters = (request.adapters ?? []).filter((a) => this.can.adapters.includes(a.name));
    values.action = request.action ?? null;
    values.fit = request.fit || null; // other clients' sizes and rates are made at the model's nearest
    if (values.action) Object.assign(values, { frames: null, fps: null });
    this.values = values;
    const wanted = { source: request.image ?? request.video };
    for (const { kind, source } of values.controls) wanted[`controls.${kind}`] = source;
    this.media = { source: null };
    for (const [name, from] of Object.entries(wanted)) {
      if (!from) continue;
      try {
        const kind = name === "source" && request.image ? "image" : "video";
        this.media[name] = { kind, blob: await load(from), name: kind === "image" ? "the job's picture" : "the job's clip" };
      } catch {
        toast("A picture or clip of this request cannot be fetched again; give it anew.", "bad");
      }
    }
    this.#showAll();
  }

  setSource(value) {
    this.media.source = value;
    this.source.show(value);
    this.#changed("source");
  }

  // --- what survives a reload

  #keep() {
    try {
      localStorage.setItem(KEPT, JSON.stringify({ model: this.can.model, values: this.values }));
    } catch {
      // No room or not allowed: then the form is new after a reload.
    }
  }

  restore() {
    const kept = JSON.parse(localStorage.getItem(KEPT) ?? "null");
    this.values = kept?.model === this.can.model ? kept.values : { prompt: kept?.values.prompt ?? "" };
    this.#showAll();
  }

  /** The form as the fragment of a link. Pictures and clips do not fit in one. */
  link() {
    const set = Object.fromEntries(Object.entries(this.values).filter(([, v]) => v !== null && v !== "" && !(Array.isArray(v) && !v.length)));
    return `#/make?${new URLSearchParams(Object.entries(set).map(([k, v]) => [k, typeof v === "string" ? v : JSON.stringify(v)]))}`;
  }

  fromLink(query) {
    const strings = (name) => ["prompt", "negative_prompt", "task"].includes(name) || this.can.knobs[name]?.type === "string";
    const values = {};
    for (const [name, text] of query) {
      try {
        values[name] = strings(name) ? text : JSON.parse(text);
      } catch {
        values[name] = text;
      }
    }
    this.values = { prompt: "", ...values };
    this.media = { source: null };
    this.#showAll();
  }

  // --- errors

  /** Show what the server refused at its fields; what belongs to none is returned. */
  fail(error) {
    const rest = [];
    let first = null;
    for (const [field, text] of error.problems ?? []) {
      const name = { image: "source", video: "source", width: "size", height: "size", mode: this.controls.task ? "task" : "controls" }[field] ?? field;
      const place = this.controls[name] ?? this.controls[name.split(".")[0]];
      if (!place?.fail || place.hidden) {
        rest.push(`${label(field)}: ${text}`);
        continue;
      }
      place.fail(text, field);
      place.closest("details")?.setAttribute("open", "");
      first ??= place;
    }
    first?.scrollIntoView({ block: "center" });
    first?.querySelector("input, select, textarea")?.focus({ preventScroll: true });
    return rest.length || !first ? rest.join("; ") || error.message : null;
  }

  clearErrors() {
    for (const place of Object.values(this.controls)) place.fail?.(null);
  }

  // --- building

  #build() {
    const { can } = this;
    const { main, fine, file } = groups(can.knobs);
    this.controls = {};
    const knob = (name) =>
      (this.controls[name] = control(
        name,
        can.knobs[name],
        (value) => this.set(name, value),
        name === "seed" && button("Draw a seed", "dice", () => this.set("seed", Math.floor(Math.random() * 2 ** 32)), { quiet: true }),
      ));
    const frame = main.filter((name) => ["frames", "fps"].includes(name));
    fill(
      this.element,
      this.models.length > 1 && this.#model(),
      this.#task(),
      this.#prompt(),
      this.#source(knob),
      can.controls.length > 0 && this.#controls(),
      can.action_domains.length > 0 && this.#action(),
      section("Frame", this.#size(), frame.map(knob)),
      section("Sampling", this.#presets(), main.filter((name) => !frame.includes(name)).map(knob)),
      can.adapters.length > 0 && this.#adapters(),
      details("Finer", "tune", fine.map(knob)),
      details("File", "download", file.map(knob)),
    );
  }

  #prompt() {
    const area = (name, title, rows, placeholder) => {
      const count = h("span.hint.count");
      const field = h("textarea", { id: `field-${name}`, rows, placeholder, oninput: () => this.set(name, field.value) });
      const error = h("p.error", { role: "alert", hidden: true });
      const element = h("div.text", { "data-field": name }, h("div.knob-head", {}, h("label", { htmlFor: field.id }, title), count), field, error);
      element.show = (value) => {
        const text = value ?? (name === "prompt" ? "" : (this.can.knobs[name]?.default ?? ""));
        if (field.value !== text) field.value = text;
        const words = text.split(/\s+/).filter(Boolean).length;
        count.textContent = this.can.prompt_words && words > this.can.prompt_words * 0.6 ? `${words} of ${this.can.prompt_words} words` : "";
      };
      element.fail = (message) => {
        error.textContent = message ?? "";
        error.hidden = !message;
        element.classList.toggle("failed", Boolean(message));
        field.toggleAttribute("aria-invalid", Boolean(message));
      };
      this.controls[name] = element;
      return element;
    };
    const examples = EXAMPLES[this.can.family] ?? GENERAL;
    const tries = h(
      "div.examples",
      { role: "group", "aria-label": "Examples" },
      h("span.hint", {}, "Try"),
      examples.map((text) => h("button.chip", { type: "button", title: text, onclick: () => this.set("prompt", text) }, text)),
    );
    this.examples = tries;
    const rewrite = h("button.button.small", { type: "button", onclick: () => this.#rewrite(rewrite) }, "Show the rewritten prompt");
    this.rewriter = rewrite;
    const negative = this.can.knobs.negative_prompt && area("negative_prompt", "What it should not be", 4, "");
    return h(
      "section.prompt",
      {},
      area("prompt", "Prompt", 4, "What happens, where, and how the camera moves"),
      tries,
      h("div.row", {}, rewrite),
      negative && h("details.inline", {}, h("summary", {}, "Negative prompt"), negative),
    );
  }

  /** The text that the model would be given, to be read and edited before anything is generated. */
  async #rewrite(pressed) {
    const { source } = this.media;
    pressed.disabled = true;
    try {
      const prompt = this.values.prompt?.trim();
      const asked = source ? { [source.kind]: await dataUrl(source.blob) } : {};
      const found = prompt ? await post("v1/upsample", { prompt, ...asked }) : await post("v1/caption", asked);
      const text = found.upsampled_prompt ?? found.caption ?? found.prompt ?? found.text;
      const edited = await ask(prompt ? "The prompt, rewritten" : "What is seen", (close) => {
        const area = h("textarea", { rows: 8, value: text, "aria-label": "Rewritten prompt" });
        return [
          area,
          h("p.hint", {}, "Used as it stands here, without being rewritten again."),
          h("div.row", {}, h("button.button.primary", { type: "button", onclick: () => close(area.value) }, "Use this text")),
        ];
      });
      if (edited !== undefined) {
        this.set("prompt", edited);
        this.set("prompt_upsampling", false);
      }
    } catch (error) {
      toast(error.message, "bad");
    } finally {
      pressed.disabled = false;
    }
  }

  #source(knob) {
    const picture = this.can.modes.some((mode) => ["image2world", "policy", "forward_dynamics"].includes(mode));
    const clip = this.can.modes.some((mode) => ["video2world", "transfer", "inverse_dynamics"].includes(mode));
    const follows = this.can.modes.every((mode) => mode === "transfer");
    this.source = mediaField({
      name: "source",
      title: follows ? "Clip to follow" : "Picture or clip to start from",
      accepts: [picture && "image", clip && "video"].filter(Boolean),
      change: (value) => this.setSource(value),
      reuse: async (request) => {
        await this.fillIn(request);
        const begun = /^(image|video)2world$/.test(request.mode) ? " What it started from is not in the file." : "";
        toast(`Its prompt, seed and settings are in the form.${begun}`);
      },
    });
    this.controls.source = this.source;
    return h("section", { hidden: !picture && !clip }, h("h2", {}, follows ? "Follow" : "Start from"), this.source, this.can.knobs.conditioning_frames && knob("conditioning_frames"));
  }

  #model() {
    const field = select("field-model", this.models.map((name) => [name, name]), (name) =>
      this.dispatchEvent(new CustomEvent("model", { detail: name })),
    );
    field.value = this.can.model;
    return h("section", {}, h("div.knob", {}, h("div.knob-head", {}, h("label", { htmlFor: "field-model" }, "Model"), field)));
  }

  #task() {
    const tasks = this.can.modes.filter((mode) => ACTING.includes(mode));
    if (!tasks.length) return null;
    const field = select("field-task", [["", "A clip of what is given"], ...tasks.map((task) => [task, TASKS[task].split(":")[0]])], (task) =>
      this.set("task", task || null),
    );
    const hint = h("p.hint", { id: "field-task-hint" });
    field.setAttribute("aria-describedby", hint.id);
    const { error, fail } = failing();
    const element = h("div.knob", { "data-field": "task" }, h("div.knob-head", {}, h("label", { htmlFor: "field-task" }, "Task"), field), hint, error);
    element.show = (value) => {
      field.value = value ?? "";
      hint.textContent = value ? `${TASKS[value].split(": ")[1]}.` : "";
      hint.hidden = !value;
    };
    element.fail = fail;
    this.controls.task = element;
    return h("section", {}, element);
  }

  #size() {
    const { can } = this;
    const { error, fail } = failing();
    const chips = can.sizes.map(({ width, height }) => {
      const scale = 22 / Math.max(width, height);
      const shape = h("span.shape", { "aria-hidden": "true" });
      shape.style.width = `${width * scale}px`;
      shape.style.height = `${height * scale}px`;
      const input = h("input", { type: "radio", name: "size", value: `${width}x${height}`, onchange: () => this.#take(width, height) });
      return h("label.size", {}, input, shape, h("span", {}, `${width}×${height}`));
    });
    const sides = ["width", "height"].map((side) =>
      h("input.number", {
        type: "number",
        "aria-label": side === "width" ? "Width" : "Height",
        step: can.size_multiple,
        min: can.size_multiple,
        oninput: () => this.#take(Number(sides[0].value) || null, Number(sides[1].value) || null),
      }),
    );
    const own = can.size_multiple && h("div.pair", {}, sides[0], h("span", { "aria-hidden": "true" }, "×"), sides[1]);
    const more = chips.length > FEW_SIZES && h("details.inline", {}, h("summary", {}, `${chips.length - FEW_SIZES} more sizes`), h("div.size-chips", {}, chips.slice(FEW_SIZES)));
    const few = h("div.size-chips", {}, more ? chips.slice(0, FEW_SIZES) : chips);
    const legend = h("legend");
    const element = h("fieldset.sizes", { "data-field": "size" }, legend, few, more, own, error);
    element.show = () => {
      if (more && more.querySelector(`input[value="${this.value("width")}x${this.value("height")}"]`)) more.open = true;
      const [width, height] = [this.value("width"), this.value("height")];
      const inputs = [...element.querySelectorAll("input[type=radio]")];
      for (const input of inputs) input.checked = input.value === `${width}x${height}`;
      legend.textContent = own || inputs.some((input) => input.checked) ? "Size" : `Size: ${width}×${height}, made at the nearest`;
      if (own) [width, height].forEach((value, index) => Number(sides[index].value) !== value && (sides[index].value = value));
    };
    element.fail = fail;
    this.controls.size = element;
    return element;
  }

  #take(width, height) {
    Object.assign(this.values, { width, height });
    this.#changed("size");
  }

  #presets() {
    const usual = this.can.knobs;
    const built = {
      "Quick look": { steps: Math.max(usual.steps.minimum, Math.round(usual.steps.default / 3)), frames: Math.min(usual.frames.default, 33) },
      Usual: { steps: null, frames: null, guidance_scale: null, solver: null, fps: null },
    };
    const own = () => JSON.parse(localStorage.getItem(PRESETS) ?? "{}");
    const chips = h("div.presets", { role: "group", "aria-label": "Presets" });
    const apply = (preset) => Object.entries(preset).forEach(([name, value]) => name in usual && this.set(name, value));
    const show = () =>
      fill(
        chips,
        Object.entries(built).map(([name, preset]) => h("button.chip", { type: "button", onclick: () => apply(preset) }, name)),
        Object.entries(own()).map(([name, preset]) =>
          h(
            "span.chip-pair",
            {},
            h("button.chip", { type: "button", onclick: () => apply(preset) }, name),
            button(`Forget ${name}`, "close", () => save(name, undefined), { quiet: true }),
          ),
        ),
        h("button.chip.add", { type: "button", onclick: add }, "Keep these…"),
      );
    const save = (name, preset) => {
      localStorage.setItem(PRESETS, JSON.stringify({ ...own(), [name]: preset }));
      show();
    };
    const add = async () => {
      const name = await ask("Keep these settings", (close) => {
        const input = h("input", { type: "text", id: "preset-name", required: true, maxLength: 40 });
        const submit = (event) => {
          event.preventDefault();
          close(input.value.trim());
        };
        return h(
          "form.stack",
          { onsubmit: submit },
          h("label", { htmlFor: "preset-name" }, "Name"),
          input,
          h("p.hint", {}, "Every knob but prompt and seed, in this browser."),
          h("button.button.primary", { type: "submit" }, "Keep"),
        );
      });
      if (!name) return;
      const { prompt, seed, controls, adapters, action, task, ...rest } = this.values;
      save(name, rest);
    };
    show();
    return chips;
  }

  #controls() {
    const rows = this.can.controls.map((kind) => {
      const on = h("input", { type: "checkbox", id: `control-${kind}` });
      const [name, hint, needs = false] = CONTROLS[kind] ?? [label(kind), "Needs a clip of its own.", true];
      const weight = h("input.number", { type: "number", id: `weight-${kind}`, min: 0, max: 1, step: 0.05, value: 1, "aria-label": `Weight of ${kind}` });
      const { error, fail } = failing();
      const strength = ["very_low", "low", "medium", "high", "very_high"].map((name) => [name, label(name)]);
      const preset = select(`preset-${kind}`, strength, () => {});
      preset.value = "medium";
      preset.setAttribute("aria-label", `Preset of ${kind}`);
      const own = mediaField({
        name: `controls.${kind}`,
        title: `Own clip for ${kind}`,
        accepts: ["video", "image"],
        webcam: false,
        hint,
        change: (value) => {
          this.media[`controls.${kind}`] = value;
          own.show(value);
          update();
        },
      });
      const weighed = h("label.check", { htmlFor: weight.id }, "Weight");
      const strong = !needs && [h("label.check", { htmlFor: preset.id }, kind === "vis" ? "Blur" : "Threshold"), preset];
      const body = h("div.control-body", { hidden: true }, h("div.row", {}, weighed, weight, strong), own, error);
      const row = h("div.control", { "data-field": `controls.${kind}` }, h("label.check", {}, on, name), body);
      return { kind, on, weight, preset, own, body, row, fail };
    });
    const update = () => {
      const chosen = rows.filter(({ on }) => on.checked);
      const values = chosen.map(({ kind, weight, preset }) => ({ kind, weight: Number(weight.value), preset: preset.value }));
      this.set("controls", values);
    };
    rows.forEach(({ on, weight, preset }) => {
      on.onchange = weight.oninput = preset.onchange = update;
    });
    const { error, fail } = failing();
    const element = section("Controls", h("p.hint", {}, this.can.knobs["controls.kind"]?.description), rows.map(({ row }) => row), error);
    element.show = (value) => {
      for (const { kind, on, weight, preset, own, body } of rows) {
        const given = (value ?? []).find((control) => control.kind === kind);
        on.checked = Boolean(given);
        body.hidden = !given;
        if (given) {
          weight.value = given.weight;
          preset.value = given.preset ?? "medium";
        }
        own.show(this.media[`controls.${kind}`] ?? null);
      }
    };
    // By kind or by number, as the server names them; what is said of none is said below all.
    element.fail = (message, where = "") => {
      const [, which] = where.split(".");
      const row = rows.find(({ kind }) => kind === (this.values.controls?.[which]?.kind ?? which));
      rows.forEach((each) => each.fail(each === row ? message : null));
      fail(row ? null : message);
    };
    element.dataset.field = "controls";
    this.controls.controls = element;
    return element;
  }

  #adapters() {
    const rows = this.can.adapters.map((name) => {
      const on = h("input", { type: "checkbox", id: `adapter-${name}` });
      const scale = h("input.number", { type: "number", step: 0.05, value: 1, "aria-label": `Scale of ${name}` });
      return { name, on, scale };
    });
    const update = () =>
      this.set("adapters", rows.filter(({ on }) => on.checked).map(({ name, scale }) => ({ name, scale: Number(scale.value) })));
    rows.forEach(({ on, scale }) => (on.onchange = scale.oninput = update));
    const { error, fail } = failing();
    const element = section(
      "Adapters",
      h("p.hint", {}, this.can.knobs["adapters.name"]?.description, " Scale 1 is as it was trained."),
      rows.map(({ name, on, scale }) => h("div.knob-head", {}, h("label.check", {}, on, name), scale)),
      error,
    );
    element.fail = fail;
    element.show = (value) =>
      rows.forEach(({ name, on, scale }) => {
        const given = (value ?? []).find((adapter) => adapter.name === name);
        on.checked = Boolean(given);
        if (given) scale.value = given.scale;
      });
    element.dataset.field = "adapters";
    this.controls.adapters = element;
    return element;
  }

  #action() {
    const domains = this.can.action_domains;
    const domain = select("field-domain", [["", "Choose one"], ...domains.map(({ id, name, width }) => [String(id), `${name} (${width} numbers)`])], () => update());
    const steps = h("input.number", { type: "number", id: "field-action-steps", min: 4, step: 4, value: 16, oninput: () => update() });
    const view = select("field-view", VIEWS, () => update());
    const count = h("span.hint.count");
    const rows = h("textarea.mono", { id: "field-action", rows: 5, placeholder: "One action per line: 0.1, 0, 0.25, …\nor JSON: [[0.1, 0], [0.2, 0]]", spellcheck: false, oninput: () => given() });
    const file = h("input.offscreen", { type: "file", tabIndex: -1, accept: ".json,.csv,.txt", "aria-label": "Actions: choose a file", onchange: () => taken() });
    const { error, fail } = failing();
    const taken = async () => {
      if (!file.files[0]) return;
      rows.value = await file.files[0].text();
      file.value = "";
      given();
    };
    const given = () => {
      const values = actionRows(rows.value);
      if (values?.length) steps.value = 4 * Math.ceil(values.length / 4);
      update();
    };
    const update = () => {
      const values = actionRows(rows.value);
      const width = domains.find(({ id }) => String(id) === domain.value)?.width;
      count.textContent = values?.length ? `${values.length} × ${values[0].length}` : "";
      const action = { domain: Number(domain.value), steps: Number(steps.value), view: view.value };
      this.set("action", domain.value === "" ? null : values ? { ...action, values } : action);
      const odd = values?.find((row) => row.length !== (width ?? values[0].length));
      if (values === undefined) fail("Only numbers: one action per line, or JSON such as [[0.1, 0], [0.2, 0]].");
      else if (odd) fail(`An action of ${odd.length} numbers, where ${width ? `${domain.selectedOptions[0].text.split(" ")[0]} has ${width}` : `the first has ${values[0].length}`}.`);
    };
    this.written = h(
      "div.text",
      {},
      h("div.knob-head", {}, h("label", { htmlFor: "field-action" }, "Actions"), count, h("button.button.small", { type: "button", onclick: () => file.click() }, "Choose a file")),
      rows,
      file,
    );
    const element = section(
      "Action",
      h("div.knob-head", {}, h("label", { htmlFor: "field-domain" }, "Robot"), domain),
      h("div.knob-head", {}, h("label", { htmlFor: "field-view" }, "Camera"), view),
      h("div.knob-head", {}, h("label", { htmlFor: "field-action-steps" }, "Number of actions"), steps),
      h("p.hint", {}, "A multiple of 4; the clip has one frame more."),
      this.written,
      error,
    );
    element.dataset.field = "action";
    element.show = (value) => {
      domain.value = value ? String(value.domain) : domain.value;
      if (value) steps.value = value.steps;
      if (value?.view) view.value = value.view;
      if (value?.values && actionRows(rows.value) === null) rows.value = value.values.map((row) => row.join(", ")).join("\n");
    };
    element.fail = fail;
    this.controls.action = element;
    return element;
  }

  #showAll() {
    for (const [name, place] of Object.entries(this.controls)) {
      if (name === "source") place.show(this.media.source);
      else place.show?.(this.values[name] ?? null);
    }
    this.clearErrors();
    this.#arrange();
    this.keep();
    this.dispatchEvent(new Event("change"));
  }

  /** What depends on other fields. */
  #arrange() {
    const clip = this.media.source?.kind === "video";
    if (this.controls.conditioning_frames) this.controls.conditioning_frames.hidden = !clip || this.can.modes.every((mode) => mode === "transfer");
    const { task } = this.values;
    if (this.controls.action) {
      this.controls.action.hidden = !ACTING.includes(task);
      this.written.hidden = task !== "forward_dynamics";
    }
    const followed = this.#followed();
    for (const name of ["frames", "fps"]) this.controls[name].leave(followed ? "Unless set, that of what it follows." : null);
    this.examples.hidden = Boolean(this.values.prompt?.trim());
    this.rewriter.hidden = !this.rewrites || (!this.values.prompt?.trim() && !this.media.source);
    const words = this.media.source && !this.values.prompt?.trim();
    this.rewriter.textContent = words ? "Describe what is seen" : "Show the rewritten prompt";
  }

  /** Say whether the server has routes that rewrite and describe; the button is shown then. */
  offerRewriting(yes) {
    this.rewrites = yes;
    this.#arrange();
  }
}

/** Rows of numbers, written as JSON or as a row per line; null of nothing, undefined of what is neither. */
function actionRows(text) {
  if (!text.trim()) return null;
  let rows;
  try {
    rows = JSON.parse(text);
  } catch {
    rows = text.trim().split(/\r?\n/).map((line) => line.split(/[,;\s]+/).filter(Boolean).map(Number));
  }
  return Array.isArray(rows) && rows.every((row) => Array.isArray(row) && row.length && row.every(Number.isFinite)) ? rows : undefined;
}

/** The place for an error, and what puts one there. */
function failing() {
  const error = h("p.error", { role: "alert", hidden: true });
  const fail = (message) => {
    error.textContent = message ?? "";
    error.hidden = !message;
  };
  return { error, fail };
}

/** A picture or clip that a request names: a data URL, or what came with a job. */
async function load(from) {
  if (from.startsWith("/v1/jobs/")) return inputBlob(from);
  if (from.startsWith("data:")) {
    const [head, data] = from.split(",");
    return new Blob([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], { type: head.slice(5).split(";")[0] });
  }
  throw new Error("of another host");
}

export const capabilities = (model, options) => get(`v1/capabilities${model ? `?model=${encodeURIComponent(model)}` : ""}`, options);

const section = (title, ...children) => h("section", {}, h("h2", {}, title), ...children);
const details = (title, symbol, children) =>
  children.length ? h("details.group", {}, h("summary", {}, icon(symbol), title), h("div", {}, children)) : null;
