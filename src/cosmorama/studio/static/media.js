// A picture or a clip from the person: by file, drop, paste or webcam.

import { ask, button, fill, h, icon, toast } from "./dom.js";
import { bytes } from "./dom.js";

export const dataUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });

/** What a blob is, from its type or else its first bytes. */
async function kindOf(blob) {
  if (blob.type.startsWith("image/")) return "image";
  if (blob.type.startsWith("video/")) return "video";
  const head = new Uint8Array(await blob.slice(0, 12).arrayBuffer());
  const text = String.fromCharCode(...head);
  const clip = text.slice(4, 8) === "ftyp" || text.startsWith("\x1aE\xdf\xa3") || text.slice(8, 12) === "AVI ";
  return clip ? "video" : "image";
}

const SEARCHED = 1 << 18;

/** The comment at the end of a GIF, which is written in blocks with the length of each before it. */
function commentOf(bytes) {
  const parts = [];
  let at = 2 + bytes.findLastIndex((byte, place) => byte === 0x21 && bytes[place + 1] === 0xfe && bytes[place + 3] === 0x7b);
  for (; bytes[at]; at += 1 + bytes[at]) parts.push(...bytes.subarray(at + 1, at + 1 + bytes[at]));
  return new Uint8Array(parts);
}

/** The request of a file that Cosmorama made, which stands near its begin or end, or null; `mode` says what it was. */
export async function requestIn(blob) {
  const read = async (...range) => new Uint8Array(await blob.slice(...range).arrayBuffer());
  const head = await read(0, SEARCHED);
  const text = new TextDecoder().decode(head[0] === 0x47 ? commentOf(await read(-SEARCHED)) : head);
  try {
    const request = JSON.parse(JSON.parse(/"request":\s*("(?:[^"\\]|\\.)*")/.exec(text)[1]));
    return { ...request, mode: /"mode":\s*"(\w+)"/.exec(text)?.[1] };
  } catch {
    return null; // somebody else's file, or one whose request was too long to be kept whole
  }
}

/** A frame of a `<video>`, `<img>` or canvas as a PNG blob, at its own size. */
export function frameOf(shown) {
  const canvas = h("canvas", { width: shown.videoWidth || shown.naturalWidth || shown.width, height: shown.videoHeight || shown.naturalHeight || shown.height });
  canvas.getContext("2d").drawImage(shown, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/**
 * A field that holds `{kind, blob, name}` or null. `accepts` lists the kinds; `change(value)` tells of a new one.
 * The element has `show(value)`, `take(blob, name)` and `fail(message)`; `reuse(request)` gets that of a file of ours.
 */
export function mediaField({ name, title, hint, accepts, change, reuse, webcam = true }) {
  const id = `media-${name.replace(/\W/g, "-")}`;
  const input = h("input.offscreen", {
    type: "file",
    id,
    tabIndex: -1,
    accept: accepts.map((kind) => `${kind}/*`).join(","),
    "aria-label": `${title}: choose a file`,
    onchange: () => input.files[0] && element.take(input.files[0], input.files[0].name),
  });
  const error = h("p.error", { role: "alert", hidden: true });
  const what = accepts.length > 1 ? "picture or clip" : accepts[0] === "video" ? "clip" : "picture";
  const empty = h(
    "div.drop-empty",
    {},
    icon("picture"),
    h("p", {}, h("strong", {}, `Drop a ${what}`), h("br"), h("span.hint", {}, "or paste one, or")),
    h(
      "div.row",
      {},
      h("button.button.small", { type: "button", onclick: () => input.click() }, "Choose a file"),
      webcam && navigator.mediaDevices && h("button.button.small", { type: "button", onclick: shoot }, icon("camera"), h("span", {}, "Webcam")),
    ),
  );
  const held = h("div.drop-held", { hidden: true });
  const element = h(
    "div.drop",
    {
      "data-field": name,
      role: "group",
      "aria-label": title,
      ondragover: (event) => {
        event.preventDefault();
        element.classList.add("over");
      },
      ondragleave: () => element.classList.remove("over"),
      ondrop: (event) => {
        event.preventDefault();
        event.stopPropagation();
        element.classList.remove("over");
        const file = event.dataTransfer.files[0];
        if (file) element.take(file, file.name);
      },
    },
    input,
    empty,
    held,
    hint && h("p.hint", {}, hint),
    error,
  );

  async function shoot() {
    const taken = await webcamDialog(accepts.includes("video"));
    if (taken) element.take(taken, taken.type.startsWith("video") ? "webcam.webm" : "webcam.png");
  }

  let shownUrl = null;
  element.take = async (blob, file_name = "picture") => {
    const kind = await kindOf(blob);
    if (!accepts.includes(kind)) {
      element.fail(`This takes a ${what}.`);
      return;
    }
    change({ kind, blob, name: file_name, request: await requestIn(blob) });
  };
  element.show = (value) => {
    if (value && value === element.shown) return undefined;
    element.shown = value;
    // Not at once: what showed it may still be reading.
    if (shownUrl) setTimeout(URL.revokeObjectURL, 10_000, shownUrl);
    shownUrl = null;
    input.value = "";
    empty.hidden = value !== null;
    held.hidden = value === null;
    element.fail(null);
    if (value === null) return fill(held);
    shownUrl = URL.createObjectURL(value.blob);
    const shown =
      value.kind === "image"
        ? h("img", { src: shownUrl, alt: `The given picture, ${value.name}` })
        : h("video", { src: shownUrl, muted: true, loop: true, autoplay: true, playsInline: true, "aria-label": `The given clip, ${value.name}` });
    return fill(
      held,
      shown,
      h(
        "div.drop-name",
        {},
        h("span", {}, value.name),
        h("span.hint", {}, bytes(value.blob.size)),
        reuse && value.request && h("button.button.small", { type: "button", onclick: () => reuse(value.request) }, "Use its settings"),
      ),
      button("Remove", "close", () => change(null), { quiet: true }),
    );
  };
  element.fail = (message) => {
    error.textContent = message ?? "";
    error.hidden = !message;
    element.classList.toggle("failed", Boolean(message));
  };
  return element;
}

/** A picture or a short clip from the webcam, or undefined. */
async function webcamDialog(clips) {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: 1280, height: 720 } });
  } catch (error) {
    toast(error.name === "NotFoundError" ? "There is no webcam." : "The browser does not let this page use the webcam.", "bad");
    return undefined;
  }
  try {
    return await ask("Webcam", (close) => {
      const video = h("video.webcam", { srcObject: stream, muted: true, autoplay: true, playsInline: true });
      const record = () => {
        const pieces = [];
        const recorder = new MediaRecorder(stream);
        recorder.ondataavailable = (event) => pieces.push(event.data);
        recorder.onstop = () => close(new Blob(pieces, { type: "video/webm" }));
        recorder.start();
        clip.disabled = true;
        clip.lastChild.textContent = "Recording…";
        setTimeout(() => recorder.state === "recording" && recorder.stop(), 3000);
      };
      const clip = h("button.button", { type: "button", onclick: record }, h("span", {}, "Record 3 seconds"));
      return [
        video,
        h(
          "div.row",
          {},
          h("button.button.primary", { type: "button", onclick: async () => close(await frameOf(video)) }, "Take a picture"),
          clips && clip,
        ),
      ];
    });
  } finally {
    stream.getTracks().forEach((track) => track.stop());
  }
}
