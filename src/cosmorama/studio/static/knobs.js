// The knobs of the loaded model, as /v1/capabilities tells them, with what a form needs besides.

import { h, button } from "./dom.js";

const LABELS = {
  negative_prompt: "Negative prompt",
  prompt_upsampling: "Rewrite the prompt",
  seed: "Seed",
  guidance_scale: "Guidance",
  guidance_interval: "Guidance interval",
  guidance_rescale: "Guidance rescale",
  steps: "Steps",
  solver: "Solver",
  frames: "Frames",
  fps: "Frames per second",
  conditioning_frames: "Frames to continue",
  "output.container": "File",
  "output.codec": "Codec",
  "output.quality": "Quality",
  reuse: "Step reuse",
  vae_tiling: "Tiles",
  flow_shift: "Flow shift",
  control_guidance: "Control guidance",
  chunk_frames: "Frames at once",
  first_conditioning_frames: "Frames to begin with",
};
const NAMES = {
  mp4: "MP4",
  webm: "WebM",
  gif: "GIF",
  png: "PNG frames (zip)",
  jpeg: "JPEG (one frame)",
  h264: "H.264",
  vp9: "VP9",
  av1: "AV1",
  euler: "Euler",
  edm_euler: "EDM Euler",
  unipc: "UniPC",
  dpmpp_2m: "DPM++ 2M",
};
// Made by parts of the form that know more of them than one value.
const ELSEWHERE = new Set(["prompt", "negative_prompt", "width", "height", "conditioning_frames", "controls.kind", "controls.weight", "adapters.name"]);
const FIRST = ["frames", "fps", "seed", "steps", "guidance_scale", "solver"];
const LAST = ["output.container", "output.codec", "output.quality"];

export const label = (name) => LABELS[name] ?? (name.charAt(0).toUpperCase() + name.slice(1)).replace(/[_.]/g, " ");
export const named = (value) => NAMES[value] ?? String(value);

/** Names of the plain knobs in three groups: what everybody turns, the finer ones, and the file's. */
export function groups(knobs) {
  const plain = Object.keys(knobs).filter((name) => !ELSEWHERE.has(name));
  return {
    main: FIRST.filter((name) => plain.includes(name)),
    fine: plain.filter((name) => !FIRST.includes(name) && !LAST.includes(name)),
    file: LAST.filter((name) => plain.includes(name)),
  };
}

/** What a knob takes, in words: "1 to 50, usually 35." */
export function range(name, knob) {
  const parts = [];
  if (name === "seed") parts.push("empty draws one");
  else if (knob.choices && knob.type !== "string") parts.push(knob.choices.join(", "));
  else if (knob.minimum !== null && knob.maximum !== null) parts.push(`${knob.minimum} to ${knob.maximum}`);
  const usual = knob.default;
  if (usual !== null && usual !== undefined && !Array.isArray(usual) && usual !== "") parts.push(`usually ${named(usual)}`);
  const text = parts.join(", ");
  return text && `${text[0].toUpperCase()}${text.slice(1)}.`;
}

const step = (knob) => (knob.type === "integer" ? 1 : knob.maximum - knob.minimum <= 1 ? 0.05 : 0.5);

/** Whether a knob is a slider's: a seed has a range too, but nobody slides to one. */
const slides = (name, knob) => knob.minimum !== null && knob.maximum !== null && name !== "seed";

/**
 * The control of one knob. `change(value)` is called with what the person chose; null is "the model's own choice".
 * The element has `show(value)` and `fail(message or null)`.
 */
export function control(name, knob, change, extra = null) {
  const id = `knob-${name.replace(/\W/g, "-")}`;
  const title = label(name);
  const accepted = h("span.range", {}, range(name, knob));
  const hint = h("p.hint", { id: `${id}-hint` }, knob.description, " ", accepted);
  const error = h("p.error", { role: "alert", hidden: true });
  const reset = button(`Reset ${title}`, "reset", () => change(null), { quiet: true, class: "reset" });
  let field;
  let show;
  if (Array.isArray(knob.default)) {
    const ends = ["start", "end"].map((end, index) =>
      h("input.number", {
        type: "number",
        id: index ? `${id}-end` : id,
        min: knob.minimum,
        max: knob.maximum,
        step: "any",
        "aria-label": `${title}, ${end}`,
        oninput: () => change(ends.map((input) => read(input))),
      }),
    );
    field = h("span.pair", {}, ends[0], h("span", { "aria-hidden": "true" }, "to"), ends[1]);
    show = (value) => ends.forEach((input, index) => write(input, value?.[index]));
  } else if (knob.type === "boolean") {
    field = select(id, [["", "Automatic"], ["true", "Yes"], ["false", "No"]], (text) => change(text === "" ? null : text === "true"));
    show = (value) => (field.value = value === null || value === undefined ? "" : String(value));
  } else if (knob.choices) {
    const open = knob.default === null || knob.default === undefined;
    field = select(
      id,
      [...(open ? [["", "Automatic"]] : []), ...knob.choices.map((choice) => [String(choice), named(choice)])],
      (text) => change(text === "" ? null : knob.type === "string" ? text : Number(text)),
    );
    show = (value) => (field.value = value === null || value === undefined ? "" : String(value));
  } else if (knob.type === "string") {
    field = h("input", { type: "text", id, oninput: () => change(field.value || null) });
    show = (value) => (field.value = value ?? "");
  } else {
    field = h("input.number", {
      type: "number",
      id,
      min: knob.minimum,
      max: knob.maximum,
      step: "any",
      placeholder: knob.default ?? (name === "seed" ? "random" : "auto"),
      oninput: () => change(read(field)),
    });
    show = (value) => write(field, value);
  }
  field.setAttribute("aria-describedby", hint.id);
  const slider =
    slides(name, knob) &&
    !knob.choices &&
    !Array.isArray(knob.default) &&
    h("input.slider", {
      type: "range",
      min: knob.minimum,
      max: knob.maximum,
      step: step(knob),
      "aria-label": `${title}, slider`,
      oninput: () => change(Number(slider.value)),
    });
  const element = h(
    "div.knob",
    { "data-field": name },
    h("div.knob-head", {}, h("label", { htmlFor: id }, title), reset, extra, field),
    slider,
    hint,
    error,
  );
  let left = null;
  let shown = null;
  element.show = (value) => {
    shown = value;
    // An empty field is not filled in again under the person's fingers.
    if (value !== null || document.activeElement !== field) show(value ?? (left === null ? knob.default : null) ?? null);
    if (slider) {
      slider.hidden = left !== null && value === null;
      slider.value = value ?? knob.default ?? knob.minimum;
      const share = (slider.value - slider.min) / (slider.max - slider.min || 1);
      slider.style.setProperty("--at", `${100 * share}%`);
    }
    reset.hidden = value === null || JSON.stringify(value) === JSON.stringify(knob.default ?? null);
  };
  /** Say in words what decides as long as no value is set; null: the model's own default. */
  element.leave = (words) => {
    if (words === left) return;
    left = words;
    field.placeholder = words === null ? (knob.default ?? "auto") : "auto";
    accepted.textContent = words ?? range(name, knob);
    element.show(shown);
  };
  element.fail = (message) => {
    error.textContent = message ?? "";
    error.hidden = !message;
    element.classList.toggle("failed", Boolean(message));
    field.toggleAttribute("aria-invalid", Boolean(message));
  };
  return element;
}

export function select(id, choices, onchange) {
  const element = h("select", { id, onchange: () => onchange(element.value) });
  element.append(...choices.map(([value, text]) => h("option", { value }, text)));
  return element;
}

// An unreadable number is sent as it stands, so that the server says what is wrong with it.
const read = (input) => (input.value === "" ? null : Number(input.value));
const write = (input, value) => {
  if (read(input) !== value) input.value = value ?? "";
};
