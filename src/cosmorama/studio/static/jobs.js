// What is known of jobs: one book that every view reads, kept fresh while anything in it is unfinished.

import { call, follow, get, jobPath, keepAt, post, serverOf } from "./api.js";

const FINAL = new Set(["succeeded", "failed", "cancelled"]);
const POLL_MS = 1500;

export const over = (job) => FINAL.has(job.state);
export const watched = new EventTarget();

const book = new Map();
let polling = false;

/** Jobs known, newest first. */
export const known = () => [...book.values()].sort((a, b) => b.created_at - a.created_at || (a.id < b.id ? 1 : -1));
export const find = (id) => book.get(id);

export function note(job) {
  const before = book.get(job.id);
  // What is over stays so; an older answer may come late.
  if (before && over(before) && !over(job)) return before;
  book.set(job.id, job);
  if (!before || JSON.stringify(before) !== JSON.stringify(job)) {
    watched.dispatchEvent(new CustomEvent("job", { detail: job }));
  }
  if (!over(job)) poll();
  return job;
}

/** One page of the jobs of this server, or of another: its next cursor. */
export async function page(cursor = null, limit = 50, server = "") {
  const query = new URLSearchParams({ limit, ...(cursor ? { cursor } : {}) });
  const { data, next_cursor } = await get(`${server}v1/jobs?${query}`);
  if (server) keepAt(server, data.map(({ id }) => id));
  data.forEach(note);
  return next_cursor;
}

export const fetchJob = async (id) => note(await get(jobPath(id)));

export const submit = async (body, key = crypto.randomUUID?.() ?? String(Math.random())) =>
  note(await post("v1/jobs", { ...body, dialect: "cosmorama" }, { "Idempotency-Key": `studio-${key}` }));

export const cancel = async (id) => note(await post(`${jobPath(id)}/cancel`, {}));

export async function remove(id) {
  await call(jobPath(id), { method: "DELETE" }).catch((error) => {
    if (error.status !== 404) throw error;
  });
  forget(id);
}

function forget(id) {
  book.delete(id);
  watched.dispatchEvent(new CustomEvent("gone", { detail: id }));
}

/** Follow one job closely, previews included, until it is over or `signal` ends it. */
export function followJob(id, onPreview, signal) {
  return follow(
    `${jobPath(id)}/events`,
    (kind, data) => {
      if (kind === "preview") onPreview(`data:${data.media_type};base64,${data.data}`);
      else if (over(note(data))) return "end";
    },
    signal,
  );
}

async function poll() {
  if (polling) return;
  polling = true;
  try {
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, document.hidden ? POLL_MS * 4 : POLL_MS));
      const open = known().filter((job) => !over(job));
      if (open.length === 0) return;
      try {
        const many = open.filter((job) => !serverOf(job.id)).length > 4;
        if (many) await page(null, 100);
        const fresh = open.filter((job) => !many || serverOf(job.id)).slice(0, 8);
        await Promise.all(fresh.map((job) => fetchJob(job.id).catch((error) => error.status === 404 && forget(job.id))));
      } catch {
        // The server is away for a moment; the header says so.
      }
    }
  } finally {
    polling = false;
  }
}

/** Stars are labels of the jobs themselves, so every browser sees them. */
export const starred = (id) => book.get(id)?.metadata?.starred === "yes";
export async function star(id, on) {
  const options = { method: "PATCH", headers: { "Content-Type": "application/json" } };
  note(await get(jobPath(id), { ...options, body: JSON.stringify({ metadata: { starred: on ? "yes" : null } }) }));
}

/** Width, height, frames and rate of a job's clip; what was asked for, as long as it is not made. */
export const clipOf = (job) => Object.fromEntries(["width", "height", "frames", "fps"].map((name) => [name, job.result?.[name] ?? job.request[name]]));

/** Where a job is, in words. */
export function stageText(job) {
  if (job.state === "queued") return job.queue_position > 1 ? `Number ${job.queue_position} in the queue` : "Next in the queue";
  if (job.state !== "running") return { succeeded: "Finished", failed: "Failed", cancelled: "Cancelled" }[job.state];
  const of = job.total ? ` ${job.step} of ${job.total}` : "";
  const { steps } = job.request;
  // A still and then its clip, or a long clip in windows: each has the steps that were asked for.
  const part = job.total > steps && job.total % steps === 0 ? Math.min(Math.floor(job.step / steps), job.total / steps - 1) : null;
  const step = part === null ? of : ` ${job.step - part * steps} of ${steps}, part ${part + 1} of ${job.total / steps}`;
  return (
    { queued: "Starting", prepare: "Getting ready", encode: "Encoding", denoise: `Denoising, step${step}`, decode: `Decoding, frame${of}`, done: "Writing the file" }[
      job.stage
    ] ?? job.stage
  );
}

/** Part of a job that is done, 0 to 1: denoising is most of it. */
export function share(job) {
  if (over(job)) return 1;
  const part = job.total ? job.step / job.total : 0;
  return { queued: 0, prepare: 0.01, encode: 0.03, denoise: 0.04 + 0.78 * part, decode: 0.82 + 0.17 * part, done: 0.99 }[job.stage] ?? 0;
}
