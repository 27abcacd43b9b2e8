// All jobs of the store: thumbnails, search, stars, delete.

import { get, serverOf } from "./api.js";
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

const hostOf = (job) => (serverOf(job.id) ? new URL(serverOf(job.id)).host : "");

export class History {
  constructor(go) {
    Object.assign(this, { go, filter: "all", words: "", loading: false, active: false, away: new Map() });
    this.cursors = new Map(); // of each server, "" is this one; null: all of its jobs are here
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
    if (!this.cursors.size) {
      const others = await get("studio/servers.json").catch(() => []);
      ["", ...others].forEach((server) => this.cursors.set(server, undefined));
      await this.#load();
    }
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
    if (this.loading || !this.#more()) return;
    this.loading = true;
    const one = async ([server, cursor]) => {
      try {
        this.cursors.set(server, await page(cursor, 60, server));
      } catch (error) {
        if (!server) toast(error.message, "bad");
        else this.away.set(server, error.message);
        this.cursors.set(server, null);
      }
      this.draw();
    };
    await Promise.all([...this.cursors].filter(([, cursor]) => cursor !== null).map(one));
    this.loading = false;
    this.draw();
  }

  /** Whether a server may have more than is here. */
  #more() {
    return !this.cursors.size || [...this.cursors.values()].some((cursor) => cursor !== null);
  }

  /** What is searched for may be anywhere. */
  async #all() {
    while (this.active && this.#more() && !this.loading) await this.#load();
  }

  #matches(job) {
    const [, , passes] = FILTERS.find(([name]) => name === this.filter) ?? FILTERS[0];
    if (!passes(job)) return false;
    const { request } = job;
    const text = [job.id, hostOf(job), job.model, job.mode, request.prompt, `seed ${request.seed}`, `steps ${request.steps}`, ...Object.values(job.metadata ?? {})];
    const hay = text.join(" ").toLowerCase();
    return this.words
      .toLowerCase()
      .split(/\s+/)
      .every((word) => hay.includes(word));
  }

  draw() {
    this.filters.querySelectorAll("button").forEach((one) => one.setAttribute("aria-pressed", String(one.dataset.filter === this.filter)));
    const jobs = known().filter((job) => this.#matches(job));
    const more = this.#more();
    const away = [...this.away].map(([server, why]) => `${new URL(server).host}: ${why}`);
    const others = this.cursors.size > 1 ? ` of ${this.cursors.size} servers` : "";
    this.count.textContent = [`${jobs.length}${more ? "+" : ""} ${jobs.length === 1 ? "clip" : "clips"}${others}`, ...away].join(" · ");
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
        hostOf(job) && h("p.hint", { title: `A job of ${serverOf(job.id)}` }, hostOf(job)),
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
    if (card.when.textContent !== text) card.when.title = card.when.textContent = text;
    return card;
  }
}
