// Clips that play in step, to the frame.

import { clipBlob, clipUrl } from "./api.js";
import { button, h, icon } from "./dom.js";
import { clipOf } from "./jobs.js";

const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** One time for any number of videos of the same rate. Tells of every frame by the event `tick`. */
export class Clock extends EventTarget {
  constructor({ fps, frames }) {
    super();
    Object.assign(this, { fps, frames, videos: new Set(), playing: false, rate: 1, told: -1, at: 0 });
    this.aligned_at = 0;
  }

  add(video) {
    video.loop = false;
    this.videos.add(video);
    video.addEventListener("loadeddata", () => this.#join(video), { once: true });
    if (video.readyState >= 2) this.#join(video);
  }

  #join(video) {
    video.playbackRate = this.rate;
    video.currentTime = this.#time(this.frame);
    if (this.playing) video.play().catch(() => {});
    this.dispatchEvent(new Event("tick"));
  }

  remove(video) {
    this.videos.delete(video);
    video.pause();
  }

  get leader() {
    return [...this.videos].find((video) => video.readyState >= 2) ?? null;
  }

  /** The frame that is shown; where nothing plays, the one that was last asked for, even if a video is still seeking it. */
  get frame() {
    const { leader } = this;
    if (this.playing && leader) this.at = Math.min(this.frames - 1, Math.floor(leader.currentTime * this.fps + 0.01));
    return this.at;
  }

  // The middle of a frame, so that rounding shows no neighbour.
  #time = (frame) => (frame + 0.5) / this.fps;

  start() {
    if (!calm() && this.frames > 1) this.play();
  }

  play() {
    if (this.playing) return;
    if (this.at >= this.frames - 1) this.#seek(0);
    this.playing = true;
    this.#align(0);
    this.videos.forEach((video) => video.play().catch(() => {}));
    this.#run();
  }

  pause() {
    const { frame } = this;
    this.playing = false;
    this.videos.forEach((video) => video.pause());
    this.#seek(frame);
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  step(by) {
    const { frame } = this;
    this.playing = false;
    this.videos.forEach((video) => video.pause());
    this.#seek((((frame + by) % this.frames) + this.frames) % this.frames);
  }

  seek(frame) {
    const was = this.playing;
    this.playing = false;
    this.videos.forEach((video) => video.pause());
    this.#seek(Math.min(this.frames - 1, Math.max(0, frame)));
    if (was) this.play();
  }

  setRate(rate) {
    this.rate = rate;
    this.videos.forEach((video) => (video.playbackRate = rate));
  }

  stop() {
    this.playing = false;
    this.videos.forEach((video) => video.pause());
    this.videos.clear();
  }

  #seek(frame) {
    this.at = frame;
    this.videos.forEach((video) => video.readyState >= 1 && (video.currentTime = this.#time(frame)));
    this.told = -1;
    requestAnimationFrame(() => this.dispatchEvent(new Event("tick")));
  }

  #align(slack_frames) {
    const { leader } = this;
    if (!leader) return;
    for (const video of this.videos) {
      if (video !== leader && video.readyState >= 2 && Math.abs(video.currentTime - leader.currentTime) * this.fps > slack_frames) {
        video.currentTime = leader.currentTime;
      }
    }
  }

  #run() {
    if (!this.playing) return;
    const { leader } = this;
    if (leader && (leader.ended || leader.currentTime * this.fps >= this.frames - 0.01)) {
      this.videos.forEach((video) => {
        video.currentTime = 0;
        video.play().catch(() => {});
      });
    } else if (performance.now() - this.aligned_at > 700) {
      this.aligned_at = performance.now();
      this.#align(1.5);
    }
    const { frame } = this;
    if (frame !== this.told) {
      this.told = frame;
      this.dispatchEvent(new Event("tick"));
    }
    requestAnimationFrame(() => this.#run());
  }
}

/** The buttons and the scrubber of a clock. */
export function transport(clock) {
  const toggle = button("Play", "play", () => clock.toggle(), { quiet: true, class: "play" });
  const scrub = h("input.slider", {
    type: "range",
    min: 0,
    max: Math.max(clock.frames - 1, 0),
    step: 1,
    value: 0,
    "aria-label": "Frame",
    oninput: () => clock.seek(Number(scrub.value)),
  });
  const count = h("output.frame-count", { "aria-live": "off" });
  const rates = [1, 0.5, 0.25];
  const speed = h(
    "button.text-button",
    {
      type: "button",
      "aria-label": "Speed",
      onclick: () => {
        clock.setRate(rates[(rates.indexOf(clock.rate) + 1) % rates.length]);
        speed.textContent = `${clock.rate}×`;
      },
    },
    `${clock.rate}×`,
  );
  const show = () => {
    const { frame } = clock;
    scrub.value = frame;
    scrub.setAttribute("aria-valuetext", `frame ${frame + 1} of ${clock.frames}`);
    scrub.style.setProperty("--at", `${(100 * frame) / Math.max(clock.frames - 1, 1)}%`);
    count.textContent = `${frame + 1} / ${clock.frames}`;
    const name = clock.playing ? "Pause" : "Play";
    if (toggle.title !== name) {
      toggle.title = name;
      toggle.setAttribute("aria-label", name);
      toggle.replaceChildren(icon(name.toLowerCase()));
    }
  };
  clock.addEventListener("tick", show);
  show();
  return h(
    "div.transport",
    { role: "group", "aria-label": "Playback" },
    button("Previous frame", "back", () => clock.step(-1), { quiet: true }),
    toggle,
    button("Next frame", "next", () => clock.step(1), { quiet: true }),
    scrub,
    count,
    speed,
  );
}

export const clockOf = (...jobs) =>
  new Clock({ fps: clipOf(jobs[0]).fps, frames: Math.min(...jobs.map((job) => clipOf(job).frames)) });

/** What shows a finished job: a `<video>` that follows `clock`, a picture, or words where neither can. */
export function screen(job, clock, { onfail } = {}) {
  const container = job.request.output?.container ?? "mp4";
  const alt = job.request.prompt || "The generated clip";
  const fail = (message) => {
    shown.replaceWith(h("p.screen-note", {}, message));
    onfail?.(message);
  };
  let shown;
  const unseen = { png: "PNG frames in a ZIP file", safetensors: "Frames as numbers, in a safetensors file" }[container];
  if (!job.result?.content_url) return h("p.screen-note", {}, "The file is not here any more: it was delivered to the client that waited for it, or removed.");
  if (unseen) return h("p.screen-note", {}, `${unseen}: download it to use them.`);
  if (container === "gif" || container === "jpeg") {
    shown = h("img", { alt });
  } else {
    shown = h("video", { muted: true, playsInline: true, preload: "auto", "aria-label": alt });
    clock?.add(shown);
  }
  shown.addEventListener("error", () => shown.src && fail("This browser cannot play the file; download it."));
  clipUrl(job.id).then(
    (url) => (shown.src = url),
    (error) => fail(error.status === 410 ? "The clip was removed from the server." : error.message),
  );
  return shown;
}

/** Save a job's file under a name that says what it is. */
export async function download(job) {
  const blob = await clipBlob(job.id);
  const { container } = job.request.output ?? { container: "mp4" };
  const suffix = { png: "zip", jpeg: "jpg" }[container] ?? container;
  const words = (job.request.prompt ?? "clip").toLowerCase().match(/[a-z0-9]+/g) ?? ["clip"];
  save(blob, `${words.slice(0, 8).join("-")}-${job.request.seed}.${suffix}`);
}

export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
