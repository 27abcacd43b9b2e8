// Making clips: one job on the stage, from the queue to its frames, and the newest ones below.

import { ApiError, clipBlob, get, jobPath, thumbUrl } from "./api.js";
import { codeTabs } from "./code.js";
import { bytes, button, copy, fill, h, lines, seconds, toast } from "./dom.js";
import { cancel, clipOf, fetchJob, find, followJob, known, over, remove, share, stageText, star, starred, submit, watched } from "./jobs.js";
import { label, named } from "./knobs.js";
import { frameOf } from "./media.js";
import { clockOf, download, save, screen, transport } from "./player.js";

export class Make {
  constructor(form, go) {
    Object.assign(this, { form, go, clock: null, id: null, following: null, preview: null });
    this.stage = h("div.stage", { tabIndex: -1 });
    this.about = h("div.about");
    this.strip = h("div.strip", { role: "list", "aria-label": "Newest clips" });
    this.element = h("div.make", {}, this.stage, this.about, h("section.recent", {}, h("h2", {}, "Newest"), this.strip));
    this.cards = new Map();
    watched.addEventListener("job", ({ detail }) => {
      if (detail.id === this.id) {
        this.#show(detail);
        this.starButton?.setAttribute("aria-pressed", String(starred(this.id)));
      }
      this.#list();
    });
    watched.addEventListener("gone", ({ detail }) => {
      if (detail === this.id) this.open(null);
      this.#list();
    });
    this.open(null);
  }

  /** Submit what the form holds. */
  async generate() {
    this.form.clearErrors();
    try {
      const job = await submit(await this.form.body());
      this.form.submitted = job.id;
      this.go(`#/job/${job.id}`);
      if (matchMedia("(max-width: 860px)").matches) this.stage.scrollIntoView({ block: "start" });
    } catch (error) {
      const rest = this.form.fail(error);
      if (rest) toast(error.status === 429 ? `The queue is full. ${error.message}` : rest, "bad");
    }
  }

  async open(id) {
    if (id === this.id && this.shown) return;
    this.following?.abort();
    this.clock?.stop();
    Object.assign(this, { id, following: null, clock: null, preview: null, shown: null });
    this.#list();
    if (!id) {
      this.shown = "empty";
      fill(this.about);
      fill(
        this.stage,
        h(
          "div.stage-empty",
          {},
          h("p.big", {}, "Nothing on the stage yet"),
          h("p", {}, "Write what should happen and press Generate. The clip forms here, step by step."),
        ),
      );
      return;
    }
    let job = find(id);
    try {
      job ??= await fetchJob(id);
    } catch (error) {
      if (this.id !== id) return;
      this.shown = "missing";
      fill(this.stage, h("div.stage-empty", {}, h("p.big", {}, error.status === 404 ? "There is no such job any more" : error.message)));
      return;
    }
    if (this.id !== id) return;
    this.#show(job);
    if (!over(job)) this.#follow(id);
  }

  #follow(id) {
    this.following = new AbortController();
    const { signal } = this.following;
    followJob(
      id,
      (url) => {
        if (this.id !== id || !this.preview) return;
        this.preview.src = url;
        this.preview.hidden = false;
      },
      signal,
    ).catch(() => {});
  }

  #show(job) {
    if (!over(job)) this.#live(job);
    else if (this.shown !== job.state) this.#final(job);
  }

  // --- while it is made

  #live(job) {
    if (this.shown !== "live") {
      this.shown = "live";
      const { width, height } = clipOf(job);
      this.preview = h("img.preview", { alt: "The clip as it is estimated now", hidden: true });
      this.bar = h("progress", { max: 1, value: 0, "aria-label": "Progress" });
      this.says = h("p.says", { role: "status" });
      this.left = h("p.left");
      const box = h("div.screen", {}, h("div.waiting", { "aria-hidden": "true" }), this.preview);
      box.style.setProperty("--ratio", `${width} / ${height}`);
      fill(
        this.stage,
        box,
        h("div.live", {}, h("div.live-text", {}, this.says, this.left), this.bar, button("Cancel", "close", () => this.#cancel(job.id))),
      );
      fill(this.about, facts(job));
    }
    this.says.textContent = stageText(job);
    this.left.textContent = job.eta_s === null ? "" : `about ${seconds(Math.max(1, job.eta_s))} left`;
    this.bar.value = share(job);
  }

  async #cancel(id) {
    try {
      await cancel(id);
    } catch (error) {
      toast(error.message, "bad");
    }
  }

  // --- when it is over

  #final(job) {
    this.shown = job.state;
    this.clock?.stop();
    if (job.state !== "succeeded") {
      const words = job.state === "cancelled" ? "Cancelled before it was finished" : "This did not work";
      fill(
        this.stage,
        h(
          "div.stage-empty",
          { class: job.state },
          h("p.big", {}, words),
          job.state === "failed" && h("p.error", { role: "alert" }, job.error?.message),
          h(
            "div.row.centered",
            {},
            button("Edit and try again", "tune", () => this.#reuse(job, true)),
            button("Delete", "trash", () => this.#remove(job)),
          ),
        ),
      );
      fill(this.about, facts(job), code(job));
      if (job.state === "failed" && job.error && this.form.submitted === job.id) this.form.fail(new ApiError(job.error.code, job.error.message, job.error.type));
      return;
    }
    this.clock = clockOf(job);
    const shown = screen(job, this.clock);
    const box = h("div.screen", {}, shown);
    const { width, height, frames } = clipOf(job);
    box.style.setProperty("--ratio", `${width} / ${height}`);
    if (shown.tagName === "VIDEO") {
      box.addEventListener("click", () => this.clock.toggle());
      shown.addEventListener("loadeddata", () => this.clock?.start(), { once: true });
    }
    const moving = shown.tagName === "VIDEO" && frames > 1;
    const kept = job.result.content_url;
    const can = this.form.can.modes;
    const isStarred = starred(job.id);
    this.starButton = button("Star", "star", () => star(job.id, !starred(job.id)).catch((error) => toast(error.message, "bad")), { quiet: true, "aria-pressed": String(isStarred) });
    fill(
      this.stage,
      box,
      moving && transport(this.clock),
      h(
        "div.actions",
        {},
        button("Again, new seed", "again", () => this.#again(job)),
        button("Same seed, change…", "tune", () => this.#reuse(job, true)),
        can.includes("video2world") && moving && button("Go on from the end", "forward", () => this.#goOn(job)),
        can.includes("image2world") && shown.matches("video, img") && button("Start from this frame", "flag", () => this.#startFrom(job, box.firstChild)),
        h(
          "div.tools",
          {},
          this.starButton,
          kept && button("Compare", "compare", () => this.go(`#/compare?a=${job.id}`), { quiet: true }),
          button("Copy a link to these settings", "link", () => this.#link(job), { quiet: true }),
          kept && button("Download", "download", () => download(job).catch((error) => toast(error.message, "bad")), { quiet: true }),
          button("Delete", "trash", () => this.#remove(job), { quiet: true }),
        ),
      ),
    );
    fill(this.about, facts(job), code(job));
    if (job.result.actions_url) this.#actions(job).catch((error) => toast(error.message, "bad"));
  }

  /** The actions that the model predicted: drawn over time, and to be taken away. */
  async #actions(job) {
    const predicted = await get(`${jobPath(job.id)}/actions`);
    if (this.id !== job.id) return;
    const [count, width] = predicted.shape;
    const json = new Blob([JSON.stringify(predicted, null, 1)], { type: "application/json" });
    const csv = new Blob([predicted.data.map((row) => row.join(",")).join("\n")], { type: "text/csv" });
    this.about.prepend(
      h(
        "section.predicted",
        { "aria-label": "Predicted actions" },
        h("h2", {}, "Predicted actions"),
        h("p.hint", {}, `${count} actions of ${width} numbers, each number a line from the first action to the last.`),
        lines(predicted.data),
        h(
          "div.row",
          {},
          button("JSON", "download", () => save(json, `${job.id}-actions.json`)),
          button("CSV", "download", () => save(csv, `${job.id}-actions.csv`)),
        ),
      ),
    );
  }

  async #again(job) {
    await this.form.fillIn(job.request, { keepSeed: false });
    await this.generate();
  }

  async #reuse(job, keepSeed) {
    await this.form.fillIn(job.request, { keepSeed });
    this.#toForm("Turn one knob, then Generate.");
  }

  async #goOn(job) {
    const blob = await clipBlob(job.id);
    this.form.setSource({ kind: "video", blob, name: "the clip before" });
    this.form.set("seed", null);
    this.#toForm("The clip is in the form. Say what happens next, then Generate.");
  }

  async #startFrom(job, shown) {
    this.clock.pause();
    const frame = this.clock.frame + 1;
    this.form.setSource({ kind: "image", blob: await frameOf(shown), name: `frame ${frame}` });
    this.form.set("seed", null);
    this.#toForm(`Frame ${frame} is in the form. Say what happens, then Generate.`);
  }

  #toForm(words) {
    toast(words);
    const prompt = document.getElementById("field-prompt");
    prompt.scrollIntoView({ block: "center" });
    prompt.focus({ preventScroll: true });
  }

  async #link(job) {
    await this.form.fillIn(job.request);
    await copy(new URL(this.form.link(), location.href).href, "Link copied: it restores these settings.");
  }

  async #remove(job) {
    try {
      await remove(job.id);
      this.go("#/make");
    } catch (error) {
      toast(error.message, "bad");
    }
  }

  // --- the newest

  #list() {
    const newest = known().slice(0, 14);
    for (const id of this.cards.keys()) if (!newest.some((job) => job.id === id)) this.cards.delete(id);
    fill(this.strip, newest.map((job) => this.#card(job)));
    this.strip.parentElement.hidden = newest.length === 0;
  }

  #card(job) {
    let card = this.cards.get(job.id);
    if (!card) {
      card = h("a.thumb", { href: `#/job/${job.id}` });
      this.cards.set(job.id, card);
    }
    card.toggleAttribute("aria-current", job.id === this.id);
    thumb(card, job);
    return h("div", { role: "listitem" }, card);
  }
}

/** Put a job's small picture, or how far it is, into a card; does nothing where it is there already. */
export function thumb(card, job) {
  const state = over(job) ? job.state : `live ${job.stage}`;
  if (card.dataset.state !== state) {
    card.dataset.state = state;
    const words = job.request.prompt || label(job.mode);
    card.title = words;
    card.setAttribute("aria-label", `${words}, seed ${job.request.seed}, ${stageText(job)}`);
    if (job.state === "succeeded" && job.result?.content_url) {
      const img = h("img", { alt: "", loading: "lazy" });
      fill(card, img);
      seen(card, () => thumbUrl(job.id).then((url) => (img.src = url), () => fill(card, h("span.thumb-note", {}, named(job.request.output?.container ?? "file")))));
    } else {
      fill(card, h("span.thumb-note", {}, over(job) ? (job.result ? "Removed" : stageText(job)) : h("progress", { max: 1, value: share(job), "aria-label": "Progress" })));
    }
  }
  const bar = card.querySelector("progress");
  if (bar) bar.value = share(job);
}

const eye = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      eye.unobserve(target);
      target.onseen?.();
      target.onseen = null;
    }
  },
  { rootMargin: "300px" },
);

/** Call `f` once an element comes near the window. */
export function seen(element, f) {
  element.onseen = f;
  eye.observe(element);
}

const code = (job) => h("section.as-code", {}, h("h2", {}, "This request elsewhere"), codeTabs(job.request));

/** Everything that made the clip. */
function facts(job) {
  const { request, result } = job;
  const clip = clipOf(job);
  const rewritten = result?.upsampled_prompt && result.upsampled_prompt !== request.prompt ? result.upsampled_prompt : null;
  const time = result?.timings_s ? Object.values(result.timings_s).reduce((sum, s) => sum + s, 0) : null;
  const rows = [
    ["Seed", h("button.text-button.mono", { type: "button", title: "Copy", onclick: () => copy(String(request.seed)) }, String(request.seed))],
    ["Steps", request.steps],
    ["Guidance", request.guidance_scale],
    ["Solver", request.solver && named(request.solver)],
    ["Size", `${clip.width}×${clip.height}`],
    ["Length", clip.frames === 1 ? "1 frame" : `${clip.frames} frames at ${clip.fps}/s`],
    ["Interval", same(request.guidance_interval, [0, 1]) ? null : request.guidance_interval?.join(" to ")],
    ["Rescale", request.guidance_rescale || null],
    ["Shift", request.flow_shift],
    ["Reuse", request.reuse || null],
    ["Tiles", request.vae_tiling || null],
    ["Continued", job.mode === "video2world" && request.conditioning_frames ? `${request.conditioning_frames} frames` : null],
    ["Controls", (request.controls ?? []).map((c) => `${c.kind} ${c.weight}`).join(", ") || null],
    ["Robot", request.action && `domain ${request.action.domain}, ${request.action.steps} actions`],
    ["Adapters", (request.adapters ?? []).map((a) => `${a.name} ${a.scale}`).join(", ") || null],
    ["Model", job.model],
    ["Made in", time === null ? null : seconds(time)],
    ["File", result?.content_url ? bytes(result.bytes) : null],
  ].filter(([, value]) => value !== null && value !== undefined);
  return h(
    "section.facts",
    {},
    h("p.prompt-text", {}, request.prompt || h("em", {}, "No prompt: described from what was given")),
    rewritten && h("details.inline", {}, h("summary", {}, "As the model read it"), h("p", {}, rewritten)),
    (job.warnings ?? result?.warnings ?? []).map((text) => h("p.warning", {}, typeof text === "string" ? text : text.message)),
    h("dl", {}, rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
  );
}

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
