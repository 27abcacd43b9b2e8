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

/** A frame of a `<video>`, `<img>` or canvas as a PNG blob, at its own size. */
export function frameOf(shown) {
  const canvas = h("canvas", { width: shown.videoWidth || shown.naturalWidth || shown.width, height: shown.videoHeight || shown.naturalHeight || shown.height });
  canvas.getContext("2d").drawImage(shown, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/**
 * A field that holds `{kind, blob, name}` or null. `accepts` lists the kinds; `change(value)` tells of a new one.
 * The element has `show(value)`, `take(blob, name)` and `fail(message)`.
 */
export function mediaField({ name, title, hint, accepts, change, webcam = true }) {
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
    change({ kind, blob, name: file_name });
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
      h("div.drop-name", {}, h("span", {}, value.name), h("span.hint", {}, bytes(value.blob.size))),
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
