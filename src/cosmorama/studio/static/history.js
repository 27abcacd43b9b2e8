// All jobs of the store: thumbnails, search, stars, delete.

import { ago, button, fill, h, later, toast } from "./dom.js";
import { known, over, page, remove, stageText, star, starred, watched } from "./jobs.js";
import { seen, thumb } from "./make.js";

const FILTERS = [
  ["all", "All", () => true],
  ["starred", "Starred", (job) => starred(job.id)],
  ["open", "In progress", (job) => !over(job)],
  ["succeeded", "Finished", (job) => job.state === "succeeded"],
  ["failed", "Failed or cancelled", (job) => job.state === "failed" || job.state === "cancelled"],
];

export class History {
  constructor(go) {
    Object.assign(this, { go, cursor: undefined, filter: "all", words: "", loading: false, active: false });
    this.cards = new Map();
    this.search = h("input", {
      type: "search",
      placeholder: "Prompt, seed, model, id…",
      "aria-label": "Search the history",
      oninput: later(() => this.#find(this.search.value), 200),
    });
    this.filters = h(
      "div.chips",
      { role: "group", "aria-label": "Show" },
      FILTERS.map(([name, title]) => h("button.chip", { type: "button", "data-filter": name, onclick: () => this.#choose(name) }, title)),
    );
    this.count = h("p.hint", { role: "status" });
    this.list = h("div.cards", { role: "list" });
    this.more = h("div.more");
    this.element = h(
      "div.history",
      {},
      h("div.page-head", {}, h("h1", {}, "History"), h("div.search", {}, this.search), this.filters, this.count),
      this.list,
      this.more,
    );
    watched.addEventListener("job", () => this.redraw());
    watched.addEventListener("gone", () => this.redraw());
    this.redraw = later(() => this.active && this.draw(), 60);
  }

  async open(query) {
    this.active = true;
    this.words = query.get("q") ?? "";
    this.search.value = this.words;
    this.filter = query.get("show") ?? "all";
    this.draw();
    if (this.cursor === undefined) await this.#load();
    if (this.words || this.filter !== "all") this.#all();
  }

  close() {
    this.active = false;
  }

  #remember() {
    const query = new URLSearchParams();
    if (this.words) query.set("q", this.words);
    if (this.filter !== "all") query.set("show", this.filter);
    history.replaceState(null, "", `#/history${query.size ? `?${query}` : ""}`);
  }

  #find(words) {
    this.words = words;
    this.#remember();
    this.draw();
    if (words) this.#all();
  }

  #choose(name) {
    this.filter = name;
    this.#remember();
    this.draw();
    if (name !== "all") this.#all();
  }

  async #load() {
    if (this.loading || this.cursor === null) return;
    this.loading = true;
    try {
      this.cursor = await page(this.cursor, 60);
    } catch (error) {
      toast(error.message, "bad");
      this.cursor = null;
    } finally {
      this.loading = false;
    }
    this.draw();
  }

  /** What is searched for may be anywhere. */
  async #all() {
    while (this.active && this.cursor !== null && !this.loading) await this.#load();
  }

  #matches(job) {
    const [, , passes] = FILTERS.find(([name]) => name === this.filter) ?? FILTERS[0];
    if (!passes(job)) return false;
    const { request } = job;
    const text = [job.id, job.model, job.mode, request.prompt, `seed ${request.seed}`, `steps ${request.steps}`, ...Object.values(job.metadata ?? {})];
    const hay = text.join(" ").toLowerCase();
    return this.words
      .toLowerCase()
      .split(/\s+/)
      .every((word) => hay.includes(word));
  }

  draw() {
    this.filters.querySelectorAll("button").forEach((one) => one.setAttribute("aria-pressed", String(one.dataset.filter === this.filter)));
    const jobs = known().filter((job) => this.#matches(job));
    const more = this.cursor !== null;
    this.count.textContent = `${jobs.length}${more ? "+" : ""} ${jobs.length === 1 ? "clip" : "clips"}`;
    const wanted = new Set(jobs.map((job) => job.id));
    for (const [id, card] of this.cards) {
      if (!wanted.has(id)) {
        card.remove();
        this.cards.delete(id);
      }
    }
    let at = this.list.firstChild;
    for (const job of jobs) {
      const card = this.#card(job);
      if (card === at) at = at.nextSibling;
      else this.list.insertBefore(card, at);
    }
    const nothing = !jobs.length && !more && h("p.big", {}, known().length ? "Nothing matches" : "No clips yet");
    const mark = more && h("p.hint", {}, "Loading…");
    fill(this.more, nothing, mark);
    if (mark) seen(mark, () => this.#load());
  }

  #card(job) {
    let card = this.cards.get(job.id);
    if (!card) {
      const picture = h("a.thumb", { href: `#/job/${job.id}` });
      const starring = button("Star", "star", () => star(job.id, !starred(job.id)).catch((error) => toast(error.message, "bad")), { quiet: true });
      const when = h("span");
      card = h(
        "article.card",
        { role: "listitem", "data-job": job.id },
        picture,
        h("p.card-text", {}, job.request.prompt || h("em", {}, "no prompt")),
        h(
          "div.card-foot",
          {},
          when,
          h("span.spacer"),
          button("Compare", "compare", () => this.go(`#/compare?a=${job.id}`), { quiet: true }),
          starring,
          button("Delete", "trash", () => remove(job.id).catch((error) => toast(error.message, "bad")), { quiet: true }),
        ),
      );
      Object.assign(card, { picture, starring, when });
      this.cards.set(job.id, card);
    }
    thumb(card.picture, job);
    card.starring.setAttribute("aria-pressed", String(starred(job.id)));
    const text = `${over(job) ? ago(job.created_at) : stageText(job)} · seed ${job.request.seed}`;
    if (card.when.textContent !== text) card.when.textContent = text;
    return card;
  }
}
