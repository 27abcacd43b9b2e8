// One request as curl, Python, OpenAI's SDK and JSON.

import { hasKey } from "./api.js";
import { copy, fill, h } from "./dom.js";

const OPENAI = new Set(["negative_prompt", "prompt_upsampling", "seed", "steps", "guidance_scale", "fps", "frames", "solver", "guidance_rescale", "conditioning_frames", "flow_shift"]);
const MEDIA = new Set(["image", "video"]);

const server = () => new URL(".", location.href.split("#")[0]).href.replace(/\/$/, "");

/** A value as Python writes it. */
function python(value) {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `(${value.map(python).join(", ")}${value.length === 1 ? "," : ""})`;
  if (typeof value === "object") return `{${Object.entries(value).map(([k, v]) => `${JSON.stringify(k)}: ${python(v)}`).join(", ")}}`;
  return JSON.stringify(value);
}

const isData = (value) => typeof value === "string" && (value.startsWith("data:") || value.startsWith("/v1/jobs/"));
const file = (name, value) =>
  name === "image" ? "start.png" : /^data:video\/webm/.test(value) ? "start.webm" : "start.mp4";

let usualNegative = null;

/** The negative prompt that a request has where it says none. */
export const setUsualNegative = (text) => (usualNegative = text || null);

/** What is left of a request once what says nothing is gone. */
export function essential(request) {
  const silent = {
    guidance_rescale: 0,
    reuse: 0,
    vae_tiling: 0,
    keep: "last",
    fit: false,
    guidance_interval: "[0,1]",
    controls: "[]",
    adapters: "[]",
  };
  return Object.fromEntries(
    Object.entries(request).filter(([name, value]) => {
      if (value === null || value === undefined || (name === "negative_prompt" && value === usualNegative)) return false;
      const text = typeof value === "object" ? JSON.stringify(value) : value;
      return silent[name] !== text;
    }),
  );
}

export function curl(request) {
  const body = { dialect: "cosmorama", ...essential(request) };
  const quote = (text) => text.replaceAll("'", "'\\''");
  const key = hasKey() ? " -H \"Authorization: Bearer $COSMORAMA_API_KEY\"" : "";
  const at = server();
  let text = quote(JSON.stringify(body, (name, value) => (isData(value) ? `@@${name}@@` : value), 2));
  for (const name of MEDIA) {
    if (!isData(request[name])) continue;
    const from = request[name].startsWith("/v1/") ? `curl -sS${key} ${at}${request[name]} | base64 -w0` : `base64 -w0 ${file(name, request[name])}`;
    text = text.replace(`@@${name}@@`, `'"$(${from})"'`);
  }
  text = text.replace(/@@\w+@@/g, "…");
  return `job=$(curl -sS ${at}/v1/jobs${key} -H 'Content-Type: application/json' -d '${text}' |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')
curl -sSN${key} ${at}/v1/jobs/$job/events > /dev/null  # until it is finished
curl -sS${key} -o clip.mp4 ${at}/v1/jobs/$job/content`;
}

export function pythonClient(request) {
  const { prompt, output, model, controls, adapters, action, ...rest } = essential(request);
  const suffix = { png: "zip", jpeg: "jpg" }[output?.container] ?? output?.container ?? "mp4";
  const media = (name, value) => (isData(value) ? JSON.stringify(file(name, value)) : python(value));
  const classes = { controls: "Control", adapters: "Adapter" };
  const made = Object.entries({ controls, adapters })
    .filter(([, list]) => list)
    .map(([name, list]) => [name, `(${list.map((one) => `cosmorama.request.${classes[name]}(${keywords(one)})`).join(", ")},)`]);
  if (action) made.push(["action", `cosmorama.request.Action(${keywords(action)})`]);
  const lines = [
    prompt ? python(prompt) : null,
    ...Object.entries(rest).map(([name, value]) => `${name}=${MEDIA.has(name) ? media(name, value) : python(value)}`),
    ...made.map(([name, text]) => `${name}=${text}`),
    model ? `model=${python(model)}` : null,
    suffix === "mp4" ? null : `output="clip.${suffix}"`,
  ].filter(Boolean);
  const key = hasKey() ? ', api_key=os.environ["COSMORAMA_API_KEY"]' : "";
  return `${key ? "import os\n\n" : ""}import cosmorama${made.length ? "\nimport cosmorama.request" : ""}

with cosmorama.Client("${server()}"${key}) as client:
    clip = client.generate(
${lines.map((line) => `        ${line},`).join("\n")}
    )
    clip.save("clip.${suffix}")`;
}

const keywords = (object) =>
  Object.entries(object)
    .filter(([, value]) => value !== null)
    .map(([name, value]) => `${name}=${isData(value) ? "Path(...)" : python(value)}`)
    .join(", ");

export function openaiSdk(request) {
  const { prompt, width, height, image, video, output, ...rest } = essential(request);
  const extra = Object.entries(rest).filter(([name]) => OPENAI.has(name));
  if (output?.quality) extra.push(["quality", output.quality]);
  const left = Object.keys(rest).filter((name) => !OPENAI.has(name) && name !== "model");
  const source = image ?? video;
  const name = image ? "image" : "video";
  const reference = source && (isData(source) ? `open(${JSON.stringify(file(name, source))}, "rb")` : python({ [`${name}_url`]: source }));
  const key = hasKey() ? 'os.environ["COSMORAMA_API_KEY"]' : '"none"';
  return `${hasKey() ? "import os\n\n" : ""}import openai

client = openai.OpenAI(base_url="${server()}/v1", api_key=${key})
video = client.videos.create_and_poll(
    prompt=${python(prompt ?? "")},
    size="${width}x${height}",${reference ? `\n    input_reference=${reference},` : ""}
    extra_body=${pretty(extra)},
)${left.length ? `  # not in this API: ${left.join(", ")}` : ""}
client.videos.download_content(video.id).write_to_file("clip.mp4")`;
}

const pretty = (entries) =>
  entries.length ? `{\n${entries.map(([name, value]) => `        ${JSON.stringify(name)}: ${python(value)},`).join("\n")}\n    }` : "{}";

export const json = (request) => JSON.stringify({ dialect: "cosmorama", ...essential(request) }, null, 2);

/** The four ways as tabs. `request` is a job's or a body. */
export function codeTabs(request) {
  const ways = [
    ["curl", curl],
    ["Python", pythonClient],
    ["OpenAI SDK", openaiSdk],
    ["JSON", json],
  ];
  const code = h("code");
  const panel = h("pre", { role: "tabpanel", id: "code-panel", tabIndex: 0 }, code);
  let text = "";
  const tabs = ways.map(([name, write], index) =>
    h(
      "button.tab",
      {
        type: "button",
        role: "tab",
        id: `code-tab-${index}`,
        "aria-controls": "code-panel",
        onclick: () => choose(index),
        onkeydown: (event) => {
          const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
          if (!by) return;
          event.stopPropagation();
          const to = (index + by + ways.length) % ways.length;
          choose(to);
          tabs[to].focus();
        },
      },
      name,
    ),
  );
  const choose = (index) => {
    tabs.forEach((tab, at) => {
      tab.setAttribute("aria-selected", String(at === index));
      tab.tabIndex = at === index ? 0 : -1;
    });
    panel.setAttribute("aria-labelledby", `code-tab-${index}`);
    text = ways[index][1](request);
    fill(code, text.replace(/(base64,[A-Za-z0-9+/]{24})[A-Za-z0-9+/=]{80,}/g, "$1…"));
  };
  choose(0);
  return h(
    "div.code",
    {},
    h(
      "div.tabs",
      {},
      h("div", { role: "tablist", "aria-label": "This request as" }, tabs),
      h("button.text-button", { type: "button", onclick: () => copy(text) }, "Copy"),
    ),
    panel,
  );
}
