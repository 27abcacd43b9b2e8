// The server's public routes, with the key that the server may want. Every address is relative to the page's own, so
// the page works behind any path prefix.

import { ask, h } from "./dom.js";

const KEY = "cosmorama.key";
const WHERE = "cosmorama.where";

// Jobs of other servers, by their ids: the address of the server that has them.
const where = new Map(Object.entries(JSON.parse(sessionStorage.getItem(WHERE) ?? "{}")));

/** Which other server has a job; "" is this one. */
export const serverOf = (id) => where.get(id) ?? "";

/** The address of a job. */
export const jobPath = (id) => `${serverOf(id)}v1/jobs/${encodeURIComponent(id)}`;

/** Remember that these jobs are another server's. */
export function keepAt(server, ids) {
  ids.forEach((id) => where.set(id, server));
  sessionStorage.setItem(WHERE, JSON.stringify(Object.fromEntries(where)));
}

/** Where the key of an address is kept: each server has its own. */
const keyOf = (path) => (/^https?:/.test(path) ? `${KEY} ${new URL(path).origin}` : KEY);

export class ApiError extends Error {
  constructor(status, message, type, retry_s) {
    super(message);
    Object.assign(this, { status, type, retry_s });
  }

  /** What is wrong with which field: `[[field, message], ...]`, as far as the message names fields. */
  get problems() {
    return this.message
      .split(/; (?=[a-z_][\w.]*: )/)
      .map((part) => part.match(/^([a-z_][\w.]*): (.*)$/s))
      .filter(Boolean)
      .map(([, field, text]) => [field, text]);
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

const asking = new Map();

/** Ask for an API key, once for all that wait for it. */
function askKey(kept, refused) {
  const [, host] = kept.split(/\s+https?:\/\//);
  const asked = asking.get(kept) ?? ask(`${host ?? "This server"} wants an API key`, (close) => {
    const input = h("input", { type: "password", id: "api-key", autocomplete: "off", required: true });
    return h(
      "form.stack",
      {
        onsubmit: (event) => {
          event.preventDefault();
          close(input.value.trim());
        },
      },
      refused && h("p.error", { role: "alert" }, "The server does not know this key."),
      h("label", { htmlFor: "api-key" }, "API key"),
      input,
      h("p.hint", {}, "Kept in this tab until it is closed, and sent to this server alone."),
      h("button.button.primary", { type: "submit" }, "Continue"),
    );
  }).then((key) => {
    asking.delete(kept);
    if (!key) throw new ApiError(401, "no API key was given", "authentication_error");
    sessionStorage.setItem(kept, key);
  });
  asking.set(kept, asked);
  return asked;
}

/** An answer of a server that is not an error. `path` is such as `v1/jobs`, or begins with another server's address. */
export async function call(path, { headers = {}, ...options } = {}) {
  const kept = keyOf(path);
  for (;;) {
    const key = sessionStorage.getItem(kept);
    const answer = await fetch(path, {
      ...options,
      headers: { ...headers, ...(key === null ? {} : { Authorization: `Bearer ${key}` }) },
    }).catch((error) => {
      if (options.signal?.aborted) throw error;
      throw new ApiError(0, "the server cannot be reached", "unreachable");
    });
    if (answer.status === 401) {
      // Another call may have asked meanwhile; then the new key has not been tried here.
      if (sessionStorage.getItem(kept) === key) await askKey(kept, key !== null);
      continue;
    }
    if (!answer.ok) {
      const body = await answer.json().catch(() => ({}));
      const { message = `the server answered ${answer.status}`, type } = body.error ?? body;
      throw new ApiError(answer.status, message, type, Number(answer.headers.get("Retry-After")) || undefined);
    }
    return answer;
  }
}

export const get = async (path, options) => (await call(path, options)).json();

export const post = async (path, body, headers = {}) =>
  (await call(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json", ...headers } })).json();

/** Follow server-sent events until the last one; broken connections are made again. */
export async function follow(path, onEvent, signal) {
  let last = null;
  for (let wait_ms = 500; ; wait_ms = Math.min(wait_ms * 2, 8000)) {
    try {
      const headers = { Accept: "text/event-stream", ...(last === null ? {} : { "Last-Event-ID": last }) };
      const answer = await call(path, { headers, signal });
      if (answer.status === 204) return;
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let buffer = ""; ; ) {
        const { done, value } = await reader.read();
        if (done) break;
        buffer += value;
        const blocks = buffer.split(/\r?\n\r?\n/);
        buffer = blocks.pop();
        for (const block of blocks) {
          const event = parse(block);
          if (event.data === "") continue;
          last = event.id ?? last;
          wait_ms = 500;
          if (onEvent(event.kind, JSON.parse(event.data)) === "end") {
            await reader.cancel();
            return;
          }
        }
      }
    } catch (error) {
      if (signal?.aborted || (error instanceof ApiError && error.status >= 400 && error.status < 500)) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, wait_ms));
    if (signal?.aborted) return;
  }
}

function parse(block) {
  const event = { kind: "message", data: "", id: null };
  for (const line of block.split(/\r?\n/)) {
    const [, name, value] = line.match(/^(\w+): ?(.*)$/) ?? [];
    if (name === "event") event.kind = value;
    else if (name === "data") event.data += value;
    else if (name === "id") event.id = value;
  }
  return event;
}

/** Blobs by address, the newest kept: `blob(path)` gives an object URL. */
class Blobs {
  constructor(most_bytes) {
    this.most = most_bytes;
    this.kept = new Map();
  }

  async url(path) {
    let entry = this.kept.get(path);
    this.kept.delete(path);
    entry ??= call(path)
      .then((answer) => answer.blob())
      .then((blob) => ({ blob, url: URL.createObjectURL(blob) }));
    this.kept.set(path, entry);
    try {
      const found = await entry;
      this.trim();
      return found.url;
    } catch (error) {
      this.kept.delete(path);
      throw error;
    }
  }

  async blob(path) {
    await this.url(path);
    return (await this.kept.get(path)).blob;
  }

  async trim() {
    const all = await Promise.all([...this.kept].map(async ([path, entry]) => [path, await entry.catch(() => null)]));
    let sum = all.reduce((total, [, found]) => total + (found?.blob.size ?? 0), 0);
    for (const [path, found] of all) {
      if (sum <= this.most) return;
      if (!found || inUse(found.url)) continue;
      sum -= found.blob.size;
      this.kept.delete(path);
      URL.revokeObjectURL(found.url);
    }
  }
}

const inUse = (url) => [...document.querySelectorAll("video, img")].some((shown) => shown.src === url);

const clips = new Blobs(400e6);
const thumbs = new Blobs(40e6);

export const clipPath = (id) => `${jobPath(id)}/content`;
export const clipUrl = (id) => clips.url(clipPath(id));
export const clipBlob = (id) => clips.blob(clipPath(id));
export const thumbUrl = (id) => thumbs.url(`${clipPath(id)}?variant=thumbnail`);
/** A picture or clip that came with a job, as a blob; `path` is what the job's request holds. */
export const inputBlob = (path) => clips.blob(path.replace(/^\/v1\/jobs\/([^/]+)/, (_, id) => jobPath(id)));
